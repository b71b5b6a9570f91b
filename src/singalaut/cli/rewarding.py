"""Commands of reinforcement learning: the stage, and rewards tried on answers from a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from singalaut.cli.recipes import SetOption
from singalaut.cli.stages import (
    MODEL_HELP,
    OutputOption,
    RecipeOption,
    SeedOption,
    StageOption,
    prompt_source,
    reward_part,
    reward_settings,
    run_stage,
)

if TYPE_CHECKING:
    from singalaut.contracts import Sample
    from singalaut.rewards.config import RewardConfig


def rl(
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    prompts: Annotated[
        list[str], typer.Option(metavar="FILE|FOLDER", help="Prompts whose answers can be checked.")
    ] = [],  # noqa: B006
    reward: Annotated[
        list[str],
        typer.Option(metavar="KIND", help="Part of the reward: `maths`, …, or `module:name`."),
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
        "prompts": [prompt_source(place) for place in prompts],
        "reward": reward_settings(reward),
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
        list[str],
        typer.Option(
            "--part",
            metavar="KIND",
            help="What counts, or `module:name` of a function; may be repeated  [maths, "
            "constraints, language]",
        ),
    ] = [],  # noqa: B006
    recipe: Annotated[
        Path | None, typer.Option(help="Take the reward of this recipe's `rl` stage.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object a row.")] = False,
) -> None:
    """Score answers offline, and say why each got what it got."""
    from singalaut.errors import DataError
    from singalaut.rewards.compose import ComposedReward, prompt_text

    config = _reward(part, recipe)
    total = scored = rows = left_out = 0.0
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read: {error}", where=file) from error
    with ComposedReward(config) as reward:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                sample, response = _answer(line, f"row {number}", file.stem)
            except DataError as error:
                left_out += 1
                print(f"{file.name}, row {number} is left out: {error.what}", file=sys.stderr)
                continue
            score = reward.score_text(response, prompt_text(sample.messages), sample)
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
    if not rows:
        what = f"none of {left_out:.0f} rows can be used" if left_out else "the file is empty"
        raise DataError(
            what, where=file, hint="rows need a prompt as `rl` takes it, and `response`"
        )
    if not as_json:
        mean = f"{total / scored:.3f}" if scored else "none"
        more = f", {left_out:.0f} rows left out" if left_out else ""
        print(f"{rows:.0f} answers, {scored:.0f} scored, mean {mean}{more}")


def _reward(parts: Sequence[str], recipe: Path | None) -> RewardConfig:
    """What counts: the options' parts, or the reward of a recipe's stage. Raises: RecipeError."""
    from pydantic import ValidationError

    from singalaut.errors import RecipeError
    from singalaut.recipe.load import load_recipe
    from singalaut.recipe.problems import nearest
    from singalaut.rewards.config import Kind, RewardConfig

    if recipe is not None:
        if parts:
            raise RecipeError("`--part` cannot be used with `--recipe`", where="--part")
        stages = [each for each in load_recipe(recipe).stage if each.kind == "rl"]
        if not stages:
            raise RecipeError("no stage is of kind `rl`", where=recipe)
        return stages[0].reward
    for kind in parts:
        known = set(get_args(Kind)) - {"function"}
        if ":" not in kind and kind not in known:
            what = f"`{kind}` is no part of a reward"
            hint = nearest(kind, known, "a function is written `module:name`; known parts")
            raise RecipeError(what, where="--part", hint=hint)
    chosen = parts or ("maths", "constraints", "language")
    try:
        return RewardConfig.model_validate({"parts": [reward_part(kind) for kind in chosen]})
    except ValidationError as error:
        raise RecipeError(str(error.errors()[0]["ctx"]["error"]), where="--part") from error


def _answer(line: str, id: str, source: str) -> tuple[Sample, str]:
    """A row's sample and its response. Raises: DataError where it has not both."""
    from singalaut.errors import DataError, SingalautError
    from singalaut.rewards.samples import sample_of

    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError("it is no JSON object")
        if not isinstance(row.get("response"), str):
            raise DataError("it has no text as `response`")
        return sample_of(row, id, source, "en"), row["response"]
    except SingalautError as error:
        raise DataError(error.what) from error
    except ValueError as error:
        raise DataError(f"it is no JSON ({error})") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{type(error).__name__}: {error}") from error
