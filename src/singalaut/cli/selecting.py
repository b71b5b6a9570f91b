"""The command that chooses rows to learn from."""

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
    run_stage,
)


def select(
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    data: DataOption = [],  # noqa: B006 - typer copies it
    target: Annotated[
        list[str], typer.Option(metavar="NAME=FILE", help="Rows that the chosen shall help with.")
    ] = [],  # noqa: B006 - typer copies it
    method: Annotated[
        str | None,
        typer.Option(
            help="influence, gradient-norm, el2n, loss, length, bm25 or random  [influence]"
        ),
    ] = None,
    share: Annotated[float | None, typer.Option(help="Share of the pool that is chosen.")] = None,
    count: Annotated[int | None, typer.Option(help="Rows that are chosen, instead.")] = None,
    quota_by: Annotated[str | None, typer.Option(help="language or source")] = None,
    diversity: Annotated[str | None, typer.Option(help="k-centre or facility-location")] = None,
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Choose the rows that help most; prints the folder, which `sft --data` takes."""
    from singalaut.recipe.plan import shown

    settings = {
        "data": [data_source(place) for place in data],
        "targets": [_target(given) for given in target],
        "method": method,
        "share": share,
        "count": count,
        "quota_by": quota_by,
        "diversity": diversity,
    }
    flags = {"--model": model, "--seed": seed, "--output": output}
    models = {} if model is None else {"base": model}
    made = run_stage("select", recipe, stage, overrides, settings, models, flags)
    print(shown(made.path))


def _target(given: str) -> dict[str, object]:
    """`th=rows.jsonl`; a file alone gives its own name."""
    name, equals, place = given.rpartition("=")
    return {"name": name if equals else place, "data": data_source(place)}
