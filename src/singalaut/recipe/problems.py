"""What is wrong with a recipe, in plain words, with the place and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from singalaut.errors import RecipeError
from singalaut.recipe.lines import KeyPath
from singalaut.recipe.schema import KINDS, Recipe

NEEDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text in quotes",
    "bool_type": "`true` or `false`",
    "tuple_type": "a list, `[…]`",
    "dict_type": "a table, `{…}`",
    "model_type": "a table, `{…}`",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "at least {min_length} entry",
}


@dataclass(frozen=True)
class Problem:
    """One fault: where in the recipe, what it is, what to do."""

    path: KeyPath
    what: str
    hint: str | None = None


def nearest(name: str, known: Iterable[str], what: str = "known names") -> str:
    """A hint: the known name most like `name`, or all of them."""
    options = sorted(set(known))
    close = difflib.get_close_matches(name, options, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"{what}: " + ", ".join(f"`{option}`" for option in options)


def display(path: KeyPath, data: Mapping[str, Any]) -> str:
    """The path as a user writes it, with stages by name: `sft.data[0].path`."""
    text = ""
    if path[:1] == ("stage",) and len(path) > 1:
        text, path = _stage_name(data, path[1]), path[2:]
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def as_error(
    problems: Sequence[Problem], places: Mapping[KeyPath, str], source: str | Path | None
) -> RecipeError:
    """One error that tells all problems."""
    if len(problems) == 1:
        place = _place(problems[0].path, places)
        where = ", ".join(str(part) for part in (source, place) if part)
        return RecipeError(problems[0].what, where=where or None, hint=problems[0].hint)
    lines = []
    for problem in problems:
        place = _place(problem.path, places)
        hint = f" ({problem.hint})" if problem.hint else ""
        lines.append(f"  {place + ': ' if place else ''}{problem.what}{hint}")
    return RecipeError(
        f"{len(problems)} settings cannot be used\n" + "\n".join(lines), where=source
    )


def validation_problems(error: ValidationError, data: Mapping[str, Any]) -> list[Problem]:
    """pydantic's complaints as ours."""
    details = error.errors(include_url=False)
    # a list whose entries were refused is called too short as well
    real = [d for d in details if d["type"] != "too_short" or not d["input"]]
    return [_translate(dict(detail), data) for detail in real]


def _translate(detail: dict[str, Any], data: Mapping[str, Any]) -> Problem:
    kind, location, context = detail["type"], detail["loc"], detail.get("ctx", {})
    path = _without_kind(location)
    name = display(path, data)
    if kind == "extra_forbidden":
        owner = f"`{display(path[:-1], data)}`" if path[:-1] else "a recipe"
        fields = _fields(location[:-1])
        return Problem(
            path,
            f"`{path[-1]}` is not a setting of {owner}",
            nearest(str(path[-1]), fields, "its settings"),
        )
    if kind == "missing":
        return Problem(path, f"`{name}` is missing", _fields(location[:-1]).get(str(path[-1])))
    if kind == "union_tag_not_found":
        return Problem(path, f"`{name}` does not say its `kind`", nearest("", KINDS, "kinds"))
    if kind == "union_tag_invalid":
        tag = context["tag"]
        return Problem(
            (*path, "kind"), f"no kind of stage is `{tag}`", nearest(tag, KINDS, "kinds")
        )
    found = _found(detail["input"])
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        if path[-1] == "[key]":  # pydantic's mark for a name in a table
            path = path[:-1]
            what = f"`{path[-1]}` cannot be a name in `{display(path[:-1], data)}`"
            return Problem(path, what, nearest(str(path[-1]), options, "it can be"))
        hint = nearest(str(detail["input"]), options, "it can be")
        return Problem(path, f"`{name}` cannot be {found}", hint)
    if kind == "value_error":
        return Problem(path, f"`{name}`: {context['error']}")
    if path == ("stage",) and isinstance(detail["input"], dict):
        return Problem(path, "`stage` is one table", "write `[[stage]]`, with two brackets")
    if kind == "value_error":  # our own words
        what = detail["msg"].removeprefix("Value error, ")
        return Problem(path, f"`{name}` {what}; found {found}")
    if kind not in NEEDS:
        return Problem(path, f"`{name}`: {detail['msg'].lower()}, found {found}")
    return Problem(path, f"`{name}` needs {NEEDS[kind].format(**context)}, found {found}")


def _found(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'the text "{value}"'
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return "a table" if isinstance(value, dict) else f"{value}"


def _stage_name(data: Mapping[str, Any], index: str | int) -> str:
    try:
        stage = data["stage"][index]
        return str(stage.get("name") or stage["kind"])
    except (LookupError, TypeError, AttributeError):
        return f"stage[{index}]"


def _without_kind(location: Sequence[str | int]) -> KeyPath:
    """pydantic puts the kind of a stage behind its index; the file has no such key."""
    path = tuple(location)
    return path[:2] + path[3:] if path[:1] == ("stage",) and len(path) > 2 else path


def _place(path: KeyPath, places: Mapping[KeyPath, str]) -> str:
    """The place of the path, or of the nearest table around it."""
    lengths = range(len(path), 0, -1)
    return next((places[path[:n]] for n in lengths if path[:n] in places), "")


def _fields(location: Sequence[str | int]) -> dict[str, str | None]:
    """Names of the settings in the table at `location`, with their descriptions."""
    model: type[BaseModel] = Recipe
    for position, part in enumerate(location):
        if location[0] == "stage" and position == 2:
            model = KINDS[str(part)]
        elif isinstance(part, str) and part != "stage":
            found = (f for name, f in model.model_fields.items() if part in (name, f.alias))
            model = _model_in(next(found).annotation) or model
    return {field.alias or name: field.description for name, field in model.model_fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation such as `tuple[X, ...]` or `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in inner if model is not None), None)
