"""Commands of reinforcement learning: the stage, and rewards tried on answers from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from singalaut.cli.recipes import SetOption
from singalaut.cli.stages import (
    MODEL_HELP,
    OutputOption,
    RecipeOption,
    SeedOption,
    StageOption,
    run_stage,
)


def rl(
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    prompts: Annotated[
        list[str], typer.Option(metavar="FILE", help="Prompts whose answers can be checked.")
    ] = [],  # noqa: B006
    reward: Annotated[
        list[str], typer.Option(metavar="KIND", help="A part of the reward, such as `maths`.")
    ] = [],  # noqa: B006
    steps: Annotated[int | None, typer.Option(help="Rounds of asking and learning.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Constant.")] = None,
    rank: Annotated[int | None, typer.Option(help="Train an adapter of this rank.")] = None,
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Let a model learn from its own answers by a reward; prints the folder of the result."""
    from singalaut.recipe.plan import shown

    settings = {
        "prompts": [{"path": path} for path in prompts],
        "reward": {"parts": [{"kind": kind} for kind in reward]} if reward else None,
        "steps": steps,
        "learning_rate": learning_rate,
        "adapter": None if rank is None else {"rank": rank},
    }
    flags = {"--model": model, "--seed": seed, "--output": output}
    models = {} if model is None else {"base": model}
    made = run_stage("rl", recipe, stage, overrides, settings, models, flags)
    print(shown(made.path))


def check(
    file: Annotated[Path, typer.Argument(help="JSONL: prompts as for `rl`, each with `response`.")],
    part: Annotated[
        list[str], typer.Option("--part", metavar="KIND", help="What counts; may be repeated.")
    ] = ["maths", "constraints", "language"],  # noqa: B006
    recipe: Annotated[
        Path | None, typer.Option(help="Take the reward of this recipe's `rl` stage.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object a row.")] = False,
) -> None:
    """Score answers offline, and say why each got what it got."""
    from pydantic import ValidationError

    from singalaut.errors import DataError, RecipeError, SingalautError
    from singalaut.recipe.load import load_recipe
    from singalaut.rewards.compose import ComposedReward, prompt_text
    from singalaut.rewards.config import RewardConfig
    from singalaut.rewards.samples import sample_of

    try:
        config = RewardConfig.model_validate({"parts": [{"kind": kind} for kind in part]})
    except ValidationError as error:
        raise RecipeError(str(error.errors()[0]["msg"]), where="--part") from error
    if recipe is not None:
        stages = [each for each in load_recipe(recipe).stage if each.kind == "rl"]
        if not stages:
            raise RecipeError("no stage is of kind `rl`", where=recipe)
        config = stages[0].reward
    total = scored = rows = 0.0
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read: {error}", where=file) from error
    with ComposedReward(config) as reward:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                sample = sample_of(row, f"row {number}", file.stem, "en")
                response = row["response"]
            except SingalautError as error:
                raise DataError(error.what, where=f"{file.name}, row {number}") from error
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(
                    f"the row cannot be used: {type(error).__name__}: {error}",
                    where=f"{file.name}, row {number}",
                    hint="it needs a prompt as `rl` takes it, and `response`",
                ) from error
            score = reward.score_text(str(response), prompt_text(sample.messages), sample)
            rows += 1
            if score.value is not None:
                total, scored = total + score.value, scored + 1
            found = {"id": sample.id, "value": score.value, "parts": dict(score.parts)}
            if as_json:
                print(json.dumps(found | {"reasons": score.reasons}, ensure_ascii=False))
                continue
            value = "not scored" if score.value is None else f"{score.value:.3f}"
            print(f"{sample.id}: {value}")
            for reason in score.reasons:
                print(f"  {reason}")
    if not as_json:
        mean = f"{total / scored:.3f}" if scored else "none"
        print(f"{rows:.0f} answers, {scored:.0f} scored, mean {mean}")
