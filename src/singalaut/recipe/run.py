"""Runs the stages of a recipe, each once, and goes on where a stopped run left off.

Which code runs a kind of stage is chosen in `wiring`; `opening` makes directories of models' names.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from singalaut.artifact import Artifact, Work, content_hash, find, open_artifact
from singalaut.errors import RecipeError
from singalaut.recipe.lineage import find_stage, public_settings
from singalaut.recipe.load import load_recipe
from singalaut.recipe.opening import locate, open_model, present_model
from singalaut.recipe.plan import Model, Plan, PlannedStage, make_plan, shown
from singalaut.recipe.problems import nearest
from singalaut.recipe.schema import Recipe
from singalaut.recipe.wiring import STAGES, StageFunction, join

log = logging.getLogger("singalaut")
TOGETHER = ("sft", "apo", "rl")  # kinds of stages that all processes of a job work on


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    until: str | None = None,
    from_: str | None = None,
    models: Mapping[str, str] | None = None,
    root: Path | None = None,
    stages: Mapping[str, StageFunction] | None = None,
) -> list[Artifact]:
    """Run the recipe that lies in `folder`, from one stage until another; finished stages are kept.

    `models` names the starting models where there is not only the recipe's base, `root` replaces
    the run's folder, `stages` the code of each kind of stage.
    Raises: RecipeError for an unknown stage, or where `from_` needs a stage that has not finished.
    """
    chosen = choose(recipe, from_, until)
    plan = plan_recipe(recipe, folder, models=models, root=root)
    selected = [stage for stage in plan.stages if stage.name in chosen]
    _check_earlier(plan, selected)
    run = _help_stage if _is_helper() else _run_stage
    return [run(stage, plan, stages or STAGES) for stage in selected]


def run_one_stage(
    recipe: Recipe,
    name: str,
    folder: Path,
    *,
    models: Mapping[str, str] | None = None,
    root: Path | None = None,
) -> Artifact:
    """Run one stage of a recipe, as the whole recipe would; what it takes must have finished."""
    return run_recipe(recipe, folder, until=name, from_=name, models=models, root=root)[-1]


def join_stage(
    recipe: Recipe,
    name: str,
    folder: Path,
    *,
    models: Mapping[str, str] | None = None,
    root: Path | None = None,
) -> PlannedStage:
    """Help a run of one stage that works on another machine, until nothing is left to help with.

    Raises: RecipeError for a stage whose work cannot be shared.
    """
    plan = plan_recipe(recipe, folder, models=models, root=root)
    stage = next(stage for stage in plan.stages if stage.name == name)
    if stage.config.kind != "prepare":
        raise RecipeError(f"the stage `{name}` cannot be shared by machines", where="--join")
    if find_stage(stage) is None:
        log.info("%s: helps", stage.name)
        join(stage, plan)
    return stage


def stage_model(recipe_file: Path, name: str) -> Path:
    """The model directory that a stage of a recipe has made.

    Raises: RecipeError where there is no such stage, or it has not finished.
    """
    recipe = load_recipe(recipe_file)
    choose(recipe, name, name)
    plan = plan_recipe(recipe, recipe_file.parent, fetch=False)
    stage = next(stage for stage in plan.stages if stage.name == name)
    if stage.config.OUTPUT != "model":
        raise RecipeError(f"the stage `{name}` makes no model", where=recipe_file)
    if stage.key is None or find_stage(stage) is None:
        hint = f"run `singalaut run {recipe_file} --until {name}` first"
        raise RecipeError(f"the stage `{name}` has not finished", where=recipe_file, hint=hint)
    return stage.folder / "model"


def plan_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    fetch: bool = True,
    models: Mapping[str, str] | None = None,
    root: Path | None = None,
) -> Plan:
    """Plan the recipe that lies in `folder`; without `fetch`, a model may stay to be fetched."""
    if models is None:
        models = {} if recipe.model is None else recipe.model.sources()
    sources = models
    found = {name: _model(source, folder, present_model) for name, source in sources.items()}
    plan = make_plan(recipe, folder, found, locate=locate, root=root)
    if not fetch or all(model.path for model in found.values()):
        return plan
    # nothing is fetched before everything else about the recipe is known to be in order
    found = {name: _model(source, folder, open_model) for name, source in sources.items()}
    return make_plan(recipe, folder, found, locate=locate, root=root)


def _run_stage(stage: PlannedStage, plan: Plan, stages: Mapping[str, StageFunction]) -> Artifact:
    """The stage's artifact: found, or made now."""
    assert stage.key is not None
    known = find_stage(stage)
    if known is not None:
        _report(stage, "finished before", known.manifest["seconds"])
        return known
    log.info("%s: %s", stage.name, "goes on" if stage.partial.exists() else "begins")
    begin = time.monotonic()
    with open_artifact(
        stage.folder,
        kind=stage.config.kind,
        key=stage.key,
        name=stage.name,
        version=stage.config.VERSION,
        config=public_settings(stage),
        inputs=stage.inputs,
        seed=plan.recipe.seed,
    ) as work:
        stages[stage.config.kind](stage, plan, work)
    made = find(stage.folder)
    assert made is not None
    _report(stage, "done", time.monotonic() - begin)
    return made


def _is_helper() -> bool:
    """Whether this is one of several processes of a job (`torchrun`), and not the first."""
    return int(os.environ.get("RANK", "0")) > 0


def _help_stage(stage: PlannedStage, plan: Plan, stages: Mapping[str, StageFunction]) -> Artifact:
    """Take part in a stage that the first process of the job runs, or wait until it has."""
    known = find_stage(stage)
    if known is None and stage.config.kind in TOGETHER:
        _wait_for(lambda: (stage.partial / "state.json").exists())
        stages[stage.config.kind](stage, plan, Work(stage.partial))
    _wait_for(lambda: find_stage(stage) is not None)
    made = find_stage(stage)
    assert made is not None
    return made


def _wait_for(what: Callable[[], bool]) -> None:
    """`torchrun` ends this process if the first one fails, so there is no limit here."""
    while not what():
        time.sleep(0.2)


def _report(stage: PlannedStage, state: str, seconds: float) -> None:
    log.info("%s: %s, %.1f s, %s", stage.name, state, seconds, shown(stage.folder))


def check_name(recipe: Recipe, name: str, where: str | Path) -> None:
    """Raises: RecipeError where no stage has this name."""
    names = [stage.name for stage in recipe.stage]
    if name not in names:
        hint = nearest(name, names, "stages")
        raise RecipeError(f"no stage is named `{name}`", where=where, hint=hint)


def choose(recipe: Recipe, from_: str | None, until: str | None) -> list[str]:
    """Names of the stages from one until another. Raises: RecipeError for a name that none has."""
    names = [stage.name for stage in recipe.stage]
    for option, name in (("--from", from_), ("--until", until)):
        if name is not None:
            check_name(recipe, name, option)
    first = 0 if from_ is None else names.index(from_)
    last = len(names) - 1 if until is None else names.index(until)
    if first > last:
        raise RecipeError(f"`{from_}` comes after `{until}`", where="--from", hint="swap them")
    return names[first : last + 1]


def _check_earlier(plan: Plan, selected: Sequence[PlannedStage]) -> None:
    """Whatever the selected stages take from stages that are not selected has to be there."""
    waiting = {stage.name: stage for stage in plan.stages if stage not in selected}
    for stage in selected:
        for reference in stage.config.inputs().values():
            if reference in waiting and find_stage(waiting[reference]) is None:
                raise RecipeError(
                    f"`{stage.name}` needs the stage `{reference}`, which has not finished",
                    where=waiting[reference].folder,
                    hint=f"run the recipe with `--until {reference}` first",
                )


def _model(source: str, folder: Path, opened: Callable[[str, Path], Path | None]) -> Model:
    path = opened(source, folder)
    return Model(source, path, None if path is None else content_hash(path))
