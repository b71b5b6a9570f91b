"""Commands that merge: models by options or by mergekit's files; the search for the best merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from singalaut.cli.recipes import SetOption
from singalaut.cli.stages import (
    OutputOption,
    RecipeOption,
    SeedOption,
    StageOption,
    as_recipe,
    labelled,
    run_stage,
)

BaseOption = Annotated[
    str | None, typer.Option(help="The model that task vectors are differences from.")
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="The model whose vocabulary is used, or `union`.")
]


def merge(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL[+ADAPTER][:WEIGHT]|FILE.yml",
            help="Models with their shares, or a configuration of mergekit.",
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="How, such as `ties`  [linear]")] = None,
    base: BaseOption = None,
    density: Annotated[
        float | None, typer.Option(help="Share of each task vector that is kept.")
    ] = None,
    t: Annotated[float | None, typer.Option("--t", help="SLERP: way to the second model.")] = None,
    tokenizer: TokenizerOption = None,
    show: Annotated[bool, typer.Option("--show", help="Print the stage and stop.")] = False,
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Combine models into one; prints the folder of the result.

    To look for the best weights: `singalaut merge search --help`.
    """
    from singalaut.recipe.plan import shown

    settings, models = merge_settings(sources or [], method, base, density, t, tokenizer)
    flags = {"--seed": seed, "--output": output}
    if show:
        print(as_recipe("merge", overrides, settings, models, flags), end="")
        return
    made = run_stage("merge", recipe, stage, overrides, settings, models, flags)
    print(shown(made.path))


def merge_settings(
    sources: Sequence[str],
    method: str | None,
    base: str | None,
    density: float | None,
    t: float | None,
    tokenizer: str | None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that options describe, and the models behind the names in them."""
    parameters = {"density": density, "t": t}
    given = {name: value for name, value in parameters.items() if value is not None}
    if len(sources) == 1 and sources[0].endswith((".yml", ".yaml")):
        options = {"--method": method, "--base": base, "--tokenizer": tokenizer}
        return _from_mergekit(Path(sources[0]), {**options, **given})
    pairs = [weighted(source) for source in sources]
    names = [name.partition("+")[0] for name, _ in pairs]
    labels = _names("merge", [*names, *([base] if base else [])])
    entries = []
    for name, (source, weight) in zip(names, pairs, strict=True):
        entry = {"from": labels[name], "weight": weight, "adapter": source.partition("+")[2]}
        entries.append({key: value for key, value in entry.items() if value not in (None, "")})
    settings = {
        "models": entries,
        "method": method,
        "base": labels.get(base or ""),
        "tokenizer": labels.get(tokenizer or "", tokenizer),
        "parameters": given or None,
    }
    return settings, {label: source for source, label in labels.items()}


def _from_mergekit(file: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings in a YAML file, which options may not change."""
    from singalaut.errors import RecipeError
    from singalaut.merge.mergekit import Translation, read_mergekit

    if used := [name for name, value in options.items() if value is not None]:
        raise RecipeError(
            f"`{used[0]}` cannot be used with a configuration of mergekit",
            where=file,
            hint="change the file",
        )
    translation = Translation(read_mergekit(file), file)
    labels = _names("merge", translation.models)
    settings = {k: v for k, v in translation.settings(labels).items() if k != "kind"}
    return settings, {label: source for source, label in labels.items()}


def _names(kind: str, sources: Sequence[str]) -> dict[str, str]:
    """A name for each distinct model."""
    distinct = list(dict.fromkeys(sources))
    return {source: label for label, source in labelled(kind, distinct).items()}


def weighted(source: str) -> tuple[str, float | None]:
    """`MODEL:0.8` as the model and its share, if it has one; a name may have colons of its own."""
    name, _, weight = source.rpartition(":")
    try:
        return (name, float(weight)) if name else (source, None)
    except ValueError:
        return source, None


def merge_search(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL[+ADAPTER]", help="The models to merge."),
    ] = None,
    base: BaseOption = None,
    method: Annotated[list[str], typer.Option(help="A method to try  [linear]")] = [],  # noqa: B006
    ranges: Annotated[
        list[str],
        typer.Option("--range", metavar="NAME=LOW:HIGH", help="What is searched for  [weight=0:1]"),
    ] = [],  # noqa: B006
    pack: Annotated[str | None, typer.Option(help="`demo`, or the folder of a pack.")] = None,
    task: Annotated[list[str], typer.Option(help="Only this task.")] = [],  # noqa: B006
    language: Annotated[list[str], typer.Option(help="Only this language.")] = [],  # noqa: B006
    limit: Annotated[int | None, typer.Option(help="Only the first rows of each.")] = None,
    objective: Annotated[
        list[str], typer.Option(help="A task, a language or `all`, to maximise  [all]")
    ] = [],  # noqa: B006
    trials: Annotated[int | None, typer.Option(help="Merges to try  [20]")] = None,
    tokenizer: TokenizerOption = None,
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Look for the merge that an evaluation likes best; prints the folder of the result.

    In it are the best model, `search.json` with every trial, and `search.html`, which shows them.
    """
    from singalaut.recipe.plan import shown

    settings, models = merge_settings(sources or [], None, base, None, None, tokenizer)
    settings = {name: settings[name] for name in ("models", "base", "tokenizer")}
    settings["models"] = [{k: v for k, v in m.items() if k != "weight"} for m in settings["models"]]
    settings |= {
        "methods": method,
        "ranges": dict(map(_range, ranges)) or None,
        "pack": pack,
        "tasks": task,
        "languages": language,
        "limit": limit,
        "objectives": objective,
        "trials": trials,
    }
    flags = {"--seed": seed, "--output": output}
    made = run_stage("merge_search", recipe, stage, overrides, settings, models, flags)
    found = made.manifest["search"]
    values = {"trial": found["best"], **found["values"], **found["scores"]}
    print(", ".join(f"{k} {v:g}" for k, v in values.items()))
    print(shown(made.path))


def _range(text: str) -> tuple[str, list[float]]:
    """`density=0.2:1` as a name and its smallest and largest value."""
    from singalaut.errors import RecipeError

    name, _, span = text.partition("=")
    low, _, high = span.partition(":")
    try:
        return name, [float(low), float(high)]
    except ValueError:
        raise RecipeError(
            "a range is NAME=LOW:HIGH", where=f"--range {text}", hint="`--range density=0.2:0.9`"
        ) from None
