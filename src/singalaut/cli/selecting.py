"""The command that chooses what to learn from: conversations, pairs or prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from singalaut.cli.recipes import SetOption
from singalaut.cli.stages import (
    MODEL_HELP,
    DataOption,
    OutputOption,
    RecipeOption,
    SeedOption,
    StageOption,
    data_source,
    pairs_source,
    prompt_source,
    reward_settings,
    run_stage,
)


def select(
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    data: DataOption = [],  # noqa: B006 - typer copies it
    pairs: Annotated[
        list[str], typer.Option(metavar="FILE|FOLDER", help="Instead: pairs, for `apo`.")
    ] = [],  # noqa: B006 - typer copies it
    prompts: Annotated[
        list[str],
        typer.Option(metavar="FILE|FOLDER", help="Instead: prompts, for `rl` and `pairs`."),
    ] = [],  # noqa: B006 - typer copies it
    reward: Annotated[
        list[str],
        typer.Option(metavar="KIND", help="Of answers to prompts: `maths`, …, or `module:name`."),
    ] = [],  # noqa: B006 - typer copies it
    target: Annotated[
        list[str], typer.Option(metavar="NAME=FILE", help="Rows that the chosen shall help with.")
    ] = [],  # noqa: B006 - typer copies it
    method: Annotated[
        str | None,
        typer.Option(
            help="influence, gradient-norm, random; of conversations el2n, loss, length, bm25, "
            "too; of prompts spread  [influence]"
        ),
    ] = None,
    share: Annotated[float | None, typer.Option(help="Share of the pool that is chosen.")] = None,
    count: Annotated[int | None, typer.Option(help="Rows that are chosen, instead.")] = None,
    quota_by: Annotated[str | None, typer.Option(help="language or source")] = None,
    diversity: Annotated[str | None, typer.Option(help="k-centre or facility-location")] = None,
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Choose what helps most; prints the folder, which `--data` or `--prompts` takes."""
    from singalaut.errors import RecipeError
    from singalaut.recipe.plan import shown

    kind = "select_pairs" if pairs else "select_prompts" if prompts else "select"
    if sum(map(bool, (data, pairs, prompts))) > 1:
        raise RecipeError("one of `--data`, `--pairs` and `--prompts` can be chosen from")
    pools: dict[str, dict[str, object]] = {
        "select": {"data": [data_source(place) for place in data]},
        "select_pairs": {"data": [pairs_source(place) for place in pairs]},
        "select_prompts": {"prompts": [prompt_source(place) for place in prompts]},
    }
    settings = pools[kind] | {
        "reward": reward_settings(reward),
        "targets": [_target(given, kind) for given in target],
        "method": method,
        "share": share,
        "count": count,
        "quota_by": quota_by,
        "diversity": diversity,
    }
    flags = {"--model": model, "--seed": seed, "--output": output}
    models = {} if model is None else {"base": model}
    made = run_stage(kind, recipe, stage, overrides, settings, models, flags, kinds=tuple(pools))
    print(shown(made.path))


def _target(given: str, kind: str) -> dict[str, object]:
    """`th=rows.jsonl`; a file alone gives its own name."""
    name, equals, place = given.rpartition("=")
    rows = {"select": data_source, "select_pairs": pairs_source, "select_prompts": prompt_source}
    field = "prompts" if kind == "select_prompts" else "data"
    return {"name": name if equals else place, field: rows[kind](place)}
