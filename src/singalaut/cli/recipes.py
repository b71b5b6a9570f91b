"""Commands on whole recipes: run, recipe show, status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in TOML.")]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, as in `--set sft.steps=100`; an empty value takes it away.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run(
    recipe: RecipeFile,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="The last stage.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="The first stage.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would be done, and stop.")] = False,
) -> None:
    """Run the stages of a recipe; what has finished before is used again."""
    from singalaut.cli import show as shows
    from singalaut.recipe.load import load_recipe
    from singalaut.recipe.run import choose, plan_recipe, run_recipe

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        chosen = choose(loaded, from_, until)
        rows = plan_recipe(loaded, recipe.parent, fetch=False).as_rows()
        print(shows.table([r for r in rows if r["kind"] == "start" or r["stage"] in chosen]))
        return
    made = run_recipe(loaded, recipe.parent, until=until, from_=from_)
    for artifact in made:
        if artifact.kind == "evaluate":
            print(f"{shows.results(artifact.path)}\n")
    print(shows.outputs(made))


def show(recipe: RecipeFile, overrides: SetOption = []) -> None:  # noqa: B006 - typer copies it
    """Print a recipe with every setting written out."""
    from singalaut.recipe.load import load_recipe
    from singalaut.recipe.write import recipe_toml

    print(recipe_toml(load_recipe(recipe, overrides)), end="")


def status(
    path: Annotated[Path, typer.Argument(metavar="RECIPE|FOLDER", help="A recipe or run folder.")],
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    as_json: JsonOption = False,
) -> None:
    """Show which stages have finished, how long they took and where they lie."""
    from singalaut.cli import show as shows
    from singalaut.recipe.load import load_recipe
    from singalaut.recipe.plan import scan
    from singalaut.recipe.run import plan_recipe

    if path.is_dir():
        rows = scan(path)
    else:
        rows = plan_recipe(load_recipe(path, overrides), path.parent, fetch=False).as_rows()
    if as_json:
        print(shows.as_json(rows))
    elif rows:
        print(shows.table(rows))
    else:
        typer.echo(f"no stages in {path}", err=True)
