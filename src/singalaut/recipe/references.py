"""Whether the stages of a recipe fit together: names, and what each takes from earlier ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from singalaut.recipe.problems import Problem, nearest
from singalaut.recipe.schema import Recipe, StageConfig

RECIPE_NAME = re.compile(r"[^\s./\\\x00-\x1f-][^\s/\\\x00-\x1f]*")
STAGE_NAME = re.compile(r"[^\s./\\=\x00-\x1f-][^\s./\\=\x00-\x1f]*")  # is part of `--set` keys
WORDS = {
    "model": "a model",
    "data": "prepared data",
    "evaluation": "an evaluation",
    "release": "a release",
    "pairs": "pairs",
    "prompts": "chosen prompts",
}
NEEDS = {
    "evaluation": "evaluation",
    "prepared": "data",
    "pairs": "pairs",
    "prompts": "prompts",
}  # by the label of an input; else a model
RESERVED = ("base", *Recipe.model_fields)


def reference_problems(recipe: Recipe, models: Collection[str] = ("base",)) -> list[Problem]:
    """Names that clash or cannot name a folder, and references to what is not there.

    `models` are the names of the models that the recipe starts from.
    """
    problems = []
    if not RECIPE_NAME.fullmatch(recipe.name):
        hint = "use letters, digits, `-` and `_`"
        problems.append(Problem(("name",), f'the name "{recipe.name}" cannot name a folder', hint))
    for model in () if recipe.model is None else recipe.model.others:
        if not STAGE_NAME.fullmatch(model) or model in RESERVED:
            what = f'a starting model cannot be named "{model}"'
            problems.append(Problem(("model", "others", model), what, "choose another name"))
    outputs = dict.fromkeys(models, "model")
    for index, stage in enumerate(recipe.stage):
        path = ("stage", index)
        later = {other.name for other in recipe.stage[index:]}
        problems += [Problem((*path, *p.path), p.what, p.hint) for p in _name(stage, outputs)]
        problems += [
            Problem((*path, *p.path), p.what, p.hint) for p in _inputs(stage, outputs, later)
        ]
        outputs[stage.name] = stage.OUTPUT
    return problems


def _name(stage: StageConfig, earlier: Mapping[str, str]) -> list[Problem]:
    if not STAGE_NAME.fullmatch(stage.name):
        hint = "use letters, digits, `-` and `_`"
        return [Problem(("name",), f'the name "{stage.name}" cannot name a stage', hint)]
    if stage.name in RESERVED:
        return [Problem(("name",), f"no stage can be named `{stage.name}`", "choose another name")]
    if stage.name in earlier:
        what = f"two stages are named `{stage.name}`"
        return [Problem(("name",), what, f'name this one, as in `name = "{stage.kind}-2"`')]
    return []


def _inputs(stage: StageConfig, earlier: Mapping[str, str], later: set[str]) -> list[Problem]:
    problems = []
    for label, reference in stage.inputs().items():
        path = tuple(int(part) if part.isdigit() else part for part in label.split("."))
        needed = NEEDS.get(str(path[0]), "model")
        fitting = [name for name, output in earlier.items() if output == needed]
        place = f"`{stage.name}.{path[0]}`"
        if reference in fitting:
            continue
        if reference in earlier:
            found = WORDS[earlier[reference]]
            what = f"{place} needs {WORDS[needed]}, and `{reference}` gives {found}"
        elif reference in later:
            what = f"{place} needs an earlier stage; `{reference}` is not earlier"
        else:
            what = f"{place} names `{reference}`, and no earlier stage has that name"
        hint = nearest(reference, fitting, "it can be") if fitting else None
        problems.append(Problem(path, what, hint))
    return problems
