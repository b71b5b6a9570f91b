"""Commands that run one stage: prepare, sft; and what `merge` and `eval` share with them.

Options make a recipe of one stage, so that both ways run the same code and give the same artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from singalaut.cli.recipes import SetOption

if TYPE_CHECKING:
    from singalaut.recipe.lines import KeyPath
    from singalaut.recipe.schema import Recipe

MODEL_HELP = "A model directory, a stage's folder, a hub id, a GGUF file or `demo:gemma-3-270m`."
NAMED_HELP = MODEL_HELP[:-1] + "; or RECIPE.toml:STAGE."
RunStage = Callable[..., Any]
OWN_FLAGS = {
    "adapter": "--rank",
    "evaluations": "--evaluation",
    "tasks": "--task",
    "languages": "--language",
    "models": "MODEL",
    "endpoints": "--endpoint",
    "protocol": "--seeds",
}
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", help="Take the stage from this recipe.")
]
StageOption = Annotated[
    str | None, typer.Option("--stage", metavar="NAME", help="Which stage of the recipe.")
]
OutputOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the stage's folder is made  [runs]")
]
DataOption = Annotated[
    list[str],
    typer.Option(metavar="FILE|FOLDER", help="Rows; or `hub:ORG/NAME`, a data set of the hub."),
]
SeedOption = Annotated[int | None, typer.Option(help="Decides everything that is random  [0]")]


def prepare(
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    data: DataOption = [],  # noqa: B006 - typer copies it
    max_tokens: Annotated[int | None, typer.Option(help="Longest conversation.")] = None,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Leave out rows as alike as this, as in 0.8.")
    ] = None,
    evaluation: Annotated[
        list[str], typer.Option(metavar="PACK", help="Leave out rows that hold its texts.")
    ] = [],  # noqa: B006
    workers: Annotated[int | None, typer.Option(help="Processes  [one for each core]")] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Help a run that works on another machine.")
    ] = False,
    output: OutputOption = None,
) -> None:
    """Clean and tokenise rows for training; prints the folder of the result."""
    from singalaut.recipe.plan import shown
    from singalaut.recipe.run import join_stage

    clean = {"near_duplicates": near_duplicates, "evaluations": evaluation}
    given = {name: value for name, value in clean.items() if value not in (None, [])}
    settings = {
        "data": [data_source(place) for place in data],
        "max_tokens": max_tokens,
        "clean": given or None,
        "workers": workers,
    }
    flags = {"--model": model, "--seed": None, "--output": output}
    models = {} if model is None else {"base": model}
    run = join_stage if join else None
    made = run_stage("prepare", recipe, stage, overrides, settings, models, flags, run)
    print(shown(made.folder if join else made.path))


def sft(
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    data: DataOption = [],  # noqa: B006 - typer copies it
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data instead.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Conversations in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule.")] = None,
    rank: Annotated[int | None, typer.Option(help="Train an adapter of this rank.")] = None,
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Tune a model on conversations; prints the folder of the result."""
    from singalaut.recipe.plan import shown

    settings = {
        "data": [data_source(place) for place in data],
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "adapter": None if rank is None else {"rank": rank},
    }
    flags = {"--model": model, "--seed": seed, "--output": output}
    models = {} if model is None else {"base": model}
    made = run_stage("sft", recipe, stage, overrides, settings, models, flags)
    print(shown(made.path))


def run_stage(
    kind: str,
    recipe_file: Path | None,
    stage: str | None,
    overrides: Sequence[str],
    settings: Mapping[str, Any],
    models: Mapping[str, str],
    flags: Mapping[str, Any],
    run: RunStage | None = None,
    kinds: Sequence[str] = (),
) -> Any:
    """Run the stage of the recipe, or the one that the options describe; `run` may only help.

    A recipe's stage may be of any of `kinds`, if given.
    """
    from singalaut.errors import RecipeError

    given = {name: value for name, value in settings.items() if value not in (None, [])}
    if recipe_file is not None:
        used = [flag for flag, value in flags.items() if value is not None]
        used += [_flag(name) for name in given]
        return _run_from_recipe(kinds or (kind,), recipe_file, stage, overrides, used, run)
    if stage is not None:
        raise RecipeError("`--stage` needs a recipe", where="--stage", hint="add `--recipe`")
    return _run_from_options(kind, overrides, settings, models, flags, run)


def _run_from_recipe(
    kinds: Sequence[str],
    file: Path,
    stage: str | None,
    overrides: Sequence[str],
    used: Sequence[str],
    run: RunStage | None,
) -> Any:
    from singalaut.errors import RecipeError
    from singalaut.recipe.load import load_recipe
    from singalaut.recipe.problems import nearest
    from singalaut.recipe.run import run_one_stage

    if used:
        hint = "change the recipe's settings with `--set`"
        raise RecipeError(f"`{used[0]}` cannot be used with `--recipe`", where=used[0], hint=hint)
    recipe = load_recipe(file, overrides)
    names = [each.name for each in recipe.stage if each.kind in kinds]
    kind = "` or `".join(kinds)
    if stage is None and len(names) == 1:
        stage = names[0]
    if stage is None:
        hint = "choose with `--stage`: " + ", ".join(names) if names else "use another recipe"
        raise RecipeError(f"{len(names)} stages are of kind `{kind}`", where=file, hint=hint)
    if stage not in names:
        hint = nearest(stage, names, "it has")
        raise RecipeError(f"no stage of kind `{kind}` is named `{stage}`", where=file, hint=hint)
    return (run or run_one_stage)(recipe, stage, file.parent)


def _run_from_options(
    kind: str,
    overrides: Sequence[str],
    settings: Mapping[str, Any],
    models: Mapping[str, str],
    flags: Mapping[str, Any],
    run: RunStage | None,
) -> Any:
    from singalaut.recipe.run import run_one_stage

    recipe, models = _recipe(kind, overrides, settings, models, flags)
    name = recipe.stage[0].name
    root = Path(recipe.output)
    return (run or run_one_stage)(recipe, name, Path(), models=models, root=root)


def as_recipe(
    kind: str,
    overrides: Sequence[str],
    settings: Mapping[str, Any],
    models: Mapping[str, str],
    flags: Mapping[str, Any],
) -> str:
    """What the options describe, as a recipe."""
    from singalaut.recipe.write import recipe_toml

    recipe, models = _recipe(kind, overrides, settings, models, flags)
    if recipe.model is not None:
        base = models.pop("base", recipe.model.base)
        model = recipe.model.model_copy(update={"base": base, "others": models})
        recipe = recipe.model_copy(update={"model": model})
    return recipe_toml(recipe)


def _recipe(
    kind: str,
    overrides: Sequence[str],
    settings: Mapping[str, Any],
    models: Mapping[str, str],
    flags: Mapping[str, Any],
) -> tuple[Recipe, dict[str, str]]:
    """A recipe of one stage, and the models behind the names in it."""
    from singalaut.errors import RecipeError
    from singalaut.recipe.load import parse_recipe

    models = {label: _stage_output(source) for label, source in models.items()}
    elsewhere = settings.get("endpoints") or settings.get("recorded")
    if not models and not elsewhere:
        if kind == "evaluate":
            hint = "name one with `--model`, `--endpoint` or `--recorded`"
            raise RecipeError("nothing to evaluate", hint=f"{hint}; see `singalaut eval --help`")
        command = {"merge_search": "merge search"}.get(kind, kind)
        raise RecipeError("no model is given", hint=f"see `singalaut {command} --help`")
    given = {name: value for name, value in settings.items() if value not in (None, [])}
    if elsewhere:
        given.setdefault("models", [])
    data: dict[str, Any] = {
        "name": kind,
        "seed": flags["--seed"] or 0,
        "output": str(flags["--output"] or "runs"),
        "stage": [{"kind": kind, **given}],
    }
    if models:
        data["model"] = {"base": next(iter(models.values()))}
    places: dict[KeyPath, str] = {("stage", 0, name): _flag(name) for name in settings}
    for name, value in given.items():
        if name in ("adapter", "clean", "protocol"):  # whose settings have flags of their own
            assert isinstance(value, Mapping)
            places |= {("stage", 0, name, inner): _flag(inner) for inner in value}
    places[("seed",)] = "--seed"
    return parse_recipe(data, overrides, places=places, models=models), dict(models)


def data_source(place: str) -> dict[str, str]:
    """What `--data` names: a file or folder, or `hub:org/name` with `:split` or without."""
    if not place.startswith("hub:"):
        return {"path": place}
    _, name, *split = place.split(":", 2)
    return {"hub": name, **({"split": split[0]} if split else {})}


def pairs_source(place: str) -> dict[str, str]:
    """A source of pairs; the folder of a stage that has made some stands for the file in it."""
    file = Path(place) / "data" / "pairs.jsonl"
    return data_source(str(file) if file.exists() else place)


def prompt_source(place: str) -> dict[str, object]:
    """A file of prompts; the folder of a stage that has chosen some stands for the file in it."""
    file = Path(place) / "data" / "prompts.jsonl"
    return {"path": str(file) if file.exists() else place}


def reward_settings(kinds: Sequence[str]) -> dict[str, Any] | None:
    """What `--reward` names, if anything: parts by kind, functions as `module:name`."""
    return {"parts": [reward_part(kind) for kind in kinds]} if kinds else None


def reward_part(kind: str) -> dict[str, str]:
    return {"kind": "function", "function": kind} if ":" in kind else {"kind": kind}


def _stage_output(source: str) -> str:
    """The directory behind `RECIPE.toml:STAGE`; any other name of a model as it is."""
    from singalaut.recipe.run import stage_model

    recipe, _, stage = source.rpartition(":")
    return str(stage_model(Path(recipe), stage)) if recipe.endswith(".toml") else source


def _flag(setting: str) -> str:
    """How the command line calls a setting of a stage."""
    return OWN_FLAGS.get(setting, f"--{setting.replace('_', '-')}")


def labelled(kind: str, sources: Sequence[str]) -> dict[str, str]:
    """Short names for models, distinct from each other and from the stage that takes them.

    They head columns and are written down, where a path would tell who ran it.
    """
    labels: dict[str, str] = {}
    for source in sources:
        parts = [part for part in source.replace(":", "/").split("/") if part] or ["model"]
        name = parts[-2] if parts[-1:] == ["model"] and len(parts) > 1 else parts[-1]
        count = 1
        while (label := name if count == 1 else f"{name}-{count}") in (kind, *labels):
            count += 1
        labels[label] = source
    return labels
