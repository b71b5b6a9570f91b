"""From TOML text and `--set` options to a checked recipe; whatever is wrong is told at once."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from singalaut.errors import RecipeError
from singalaut.recipe.lines import KeyPath, key_lines
from singalaut.recipe.problems import as_error, display, nearest, validation_problems
from singalaut.recipe.references import reference_problems
from singalaut.recipe.schema import Recipe


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and change it by `KEY=VALUE` overrides such as `sft.learning_rate=2e-4`.

    Raises: RecipeError that names every problem with its line.
    """
    text = _read(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(str(error), path) from None
    places = {key: f"line {line}" for key, line in key_lines(text).items()}
    return parse_recipe(data, overrides, places=places, source=path)


def parse_recipe(
    data: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    places: dict[KeyPath, str] | None = None,
    source: str | Path | None = None,
    models: Collection[str] | None = None,
) -> Recipe:
    """A recipe from plain values; `places` says where each came from, for the messages.

    `models` are the names that stages may refer to beside the earlier stages, where they are not
    those of the recipe's own starting models.
    Raises: RecipeError that names every problem.
    """
    places = {} if places is None else places
    for override in overrides:
        _override(data, override, places)
    try:
        # JSON, because only there does the strict mode take a list for a tuple
        recipe = Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise as_error(validation_problems(error, data), places, source) from None
    if models is None:
        models = {} if recipe.model is None else recipe.model.sources()
    if problems := reference_problems(recipe, models):
        raise as_error(problems, places, source)
    return recipe


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError("no such recipe", where=path, hint="check the path") from None
    except IsADirectoryError:
        hint = "give the TOML file of a recipe"
        raise RecipeError("a recipe is a file, this is a folder", where=path, hint=hint) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(
            "the recipe is not UTF-8 text", where=f"{path}, line {line}", hint="save it as UTF-8"
        ) from None


def _syntax_error(message: str, path: Path) -> RecipeError:
    place = re.search(r" \(at (line \d+, column \d+|end of document)\)$", message)
    where = f"{path}, {place.group(1)}" if place else str(path)
    fact = message[: place.start()] if place else message
    hint = "text values need quotes; see https://toml.io"
    return RecipeError(f"this is not TOML: {fact[:1].lower()}{fact[1:]}", where=where, hint=hint)


def _override(data: dict[str, Any], override: str, places: dict[KeyPath, str]) -> None:
    """Change one value in place; an empty value gives the setting its default again."""
    key, separator, value = override.partition("=")
    where = f"--set {override}"
    if not separator or not key.strip():
        hint = "write `--set sft.steps=100` or `--set seed=3`"
        raise RecipeError("`--set` needs KEY=VALUE", where=where, hint=hint)
    names = key.strip().split(".")
    target, path = _start(data, names, where)
    for name in names[:-1]:
        target, path = _descend(target, path, name, data, where)
    last = _index(target, names[-1], path, data, where)
    if value:
        target[last] = _toml_value(value)
    elif isinstance(target, dict):
        target.pop(last, None)
    else:
        what = f"`{display((*path, last), data)}` is an entry of a list and cannot be taken away"
        raise RecipeError(what, where=where, hint="change the recipe's list itself")
    places[(*path, last)] = where


def _start(data: dict[str, Any], names: list[str], where: str) -> tuple[Any, KeyPath]:
    """The table that the rest of `names` is looked up in; a stage's name is taken off."""
    tables = data.get("stage")
    tables = tables if isinstance(tables, list) else []
    stages = [t.get("name", t.get("kind")) if isinstance(t, dict) else None for t in tables]
    settings = [name for name in Recipe.model_fields if name != "stage"]
    if names[0] in settings:
        return data, ()
    if names[0] not in stages:
        hint = nearest(names[0], [*settings, *(str(s) for s in stages if s)], "it can begin with")
        raise RecipeError(f"no stage or setting is named `{names[0]}`", where=where, hint=hint)
    stage = names.pop(0)
    if not names:
        hint = f"write `--set {stage}.SETTING=VALUE`"
        raise RecipeError(f"`{stage}` is a stage, not a setting", where=where, hint=hint)
    return tables[stages.index(stage)], ("stage", stages.index(stage))


def _descend(
    target: Any, path: KeyPath, name: str, data: dict[str, Any], where: str
) -> tuple[Any, KeyPath]:
    key = _index(target, name, path, data, where)
    inner = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
    if not isinstance(inner, dict | list):
        what = f"`{display((*path, key), data)}` is a single value and has no settings"
        raise RecipeError(what, where=where)
    return inner, (*path, key)


def _index(target: Any, name: str, path: KeyPath, data: dict[str, Any], where: str) -> str | int:
    """`name` as a key of `target`: itself in a table, a number in a list."""
    if isinstance(target, dict):
        return name
    if name.isdigit() and int(name) < len(target):
        return int(name)
    what = (
        f"`{display(path, data)}` is a list of {len(target)}, and `{name}` is none of its entries"
    )
    raise RecipeError(what, where=where, hint="entries are counted from 0")


def _toml_value(text: str) -> Any:
    """The text read as a TOML value, or itself where it is none."""
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if list(read) == ["value"] else text
