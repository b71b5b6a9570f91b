"""Commands on training stages that have run or are running: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    stage: Annotated[
        str, typer.Argument(metavar="FOLDER|RECIPE:STAGE", help="Of a stage sft, apo or rl.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page there.")
    ] = None,
) -> None:
    """Draw how a training stage went, or goes, as one HTML page; prints where it is."""
    from singalaut.errors import RecipeError
    from singalaut.recipe.plan import shown
    from singalaut.watch.report import PAGE, write_report

    folder = _folder(stage)
    if output is not None and output.is_dir():
        raise RecipeError("this is a folder", where=output, hint="name a file, as in page.html")
    is_finished = (folder / "manifest.json").exists()
    if output is None and is_finished and (folder / PAGE).exists():
        print(shown(folder / PAGE))  # a finished folder is never changed
        return
    if output is None and is_finished:
        output = Path(f"{folder.name}.html")
    print(shown(write_report(folder, output)))


def _folder(stage: str) -> Path:
    """The folder of a stage, finished or not; `RECIPE.toml:STAGE` may name it."""
    from singalaut.errors import ArtifactError
    from singalaut.recipe.load import load_recipe
    from singalaut.recipe.run import check_name, plan_recipe

    recipe, _, name = stage.rpartition(":")
    folder = Path(stage)
    if recipe.endswith(".toml"):
        loaded = load_recipe(Path(recipe))
        check_name(loaded, name, recipe)
        plan = plan_recipe(loaded, Path(recipe).parent, fetch=False)
        folder = next(each.folder for each in plan.stages if each.name == name)
    for candidate in (folder, folder.with_name(folder.name + ".partial")):
        if candidate.is_dir():
            return candidate
    raise ArtifactError(
        "there is no such stage, finished or begun",
        where=folder,
        hint="`singalaut status` shows where stages lie",
    )
