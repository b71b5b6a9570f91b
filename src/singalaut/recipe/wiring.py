"""Chooses which code runs each kind of stage, and how names become models and packs.

The only part of a recipe that knows the rooms behind the stages; it loads them when a stage runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from singalaut.artifact import Work
from singalaut.data.config import DataSource, PrepareConfig
from singalaut.evals.config import EvaluateConfig
from singalaut.merge.config import MergeConfig, MergeSearchConfig
from singalaut.publish.config import CardConfig
from singalaut.recipe.lineage import lineage
from singalaut.recipe.plan import Plan, PlannedStage
from singalaut.train.config import SftConfig

StageFunction = Callable[[PlannedStage, Plan, Work], None]


def open_model(source: str, folder: Path) -> Path:
    """The Hugging Face directory of a model's name or stage's folder, fetched if need be."""
    from singalaut.checkpoint.resolve import resolve_model

    return resolve_model(source, base_folder=folder)


def present_model(source: str, folder: Path) -> Path | None:
    """The same directory if nothing has to be fetched or converted for it, else None."""
    from singalaut.checkpoint.resolve import local_model

    return local_model(source, base_folder=folder)


def locate(label: str, value: str, folder: Path) -> Path:
    """Where an input file lies; only packs have names that are no paths."""
    if label.split(".")[0] == "pack":
        from singalaut.evals.tasks import pack_path

        named = pack_path(value).expanduser()
        return named if named.is_absolute() else folder / named
    return folder / Path(value).expanduser()


def model_path(stage: PlannedStage, plan: Plan, label: str) -> Path:
    """The model directory behind an input: a starting model's own, or `model/` of a stage."""
    path = stage.inputs[label].path
    return path if stage.config.inputs()[label] in plan.models else path / "model"


def source_paths(stage: PlannedStage, sources: Sequence[DataSource]) -> list[Path | None]:
    """Where each source of rows lies; None for those of the hub."""
    labels = [f"data.{i}" for i in range(len(sources))]
    return [stage.inputs[label].path if label in stage.inputs else None for label in labels]


def _prepare(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.data.prepare import run_prepare
    from singalaut.train.pictures import sight_of

    assert isinstance(stage.config, PrepareConfig)
    model = model_path(stage, plan, "model")
    packs = [stage.inputs[f"pack.{i}"].path for i in range(len(stage.config.clean.evaluations))]
    run_prepare(
        stage.config,
        model=model,
        data=source_paths(stage, stage.config.data),
        packs=packs,
        work=work,
        identify=_identify(),
        sight=sight_of(model),
    )


def join(stage: PlannedStage, plan: Plan) -> int:
    """Help a run of a stage that works on another machine; returns how many pieces it has."""
    from singalaut.data.prepare import join_prepare
    from singalaut.train.pictures import sight_of

    assert isinstance(stage.config, PrepareConfig)
    model = model_path(stage, plan, "model")
    return join_prepare(
        stage.config,
        model=model,
        data=source_paths(stage, stage.config.data),
        folder=stage.partial,
        identify=_identify(),
        sight=sight_of(model),
    )


def _identify() -> Callable[[str], Any]:
    from singalaut.verify.language import identify

    return identify


def _sft(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.train.sft import run_sft

    assert isinstance(stage.config, SftConfig)
    prepared = stage.inputs.get("prepared")
    run_sft(
        stage.config,
        model=model_path(stage, plan, "model"),
        data=source_paths(stage, stage.config.data),
        work=work,
        seed=plan.recipe.seed,
        prepared=None if prepared is None else prepared.path / "data",
    )


def _merge(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.merge.stream import run_merge

    assert isinstance(stage.config, MergeConfig)
    models = {label: model_path(stage, plan, label) for label in stage.config.inputs()}
    adapters = {label: stage.inputs[label].path for label in stage.config.files()}
    run_merge(stage.config, models=models, adapters=adapters, work=work, seed=plan.recipe.seed)


def _merge_search(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.artifact import stage_key
    from singalaut.evals.results import load_results
    from singalaut.evals.runner import run_evaluate
    from singalaut.generate.engine import open_engine
    from singalaut.merge.search import Inputs, run_merge_search

    config = stage.config
    assert isinstance(config, MergeSearchConfig)
    seed, pack = plan.recipe.seed, stage.inputs["pack"]
    names = ("pack", "tasks", "languages", "limit")
    asked = EvaluateConfig.model_validate(
        {"models": ("merged",), **{name: getattr(config, name) for name in names}}
    )

    def evaluate(model: Path, scratch: Path) -> dict[str, float]:
        run_evaluate(
            asked,
            models={"merged": model},
            pack=pack.path,
            work=Work(scratch),
            seed=seed,
            open_sampler=open_engine,
        )
        return {row["name"]: row["scores"]["merged"] for row in load_results(scratch)["rows"]}

    settings = {"seed": seed, "settings": asked.key_settings()}
    adapters = [label for label in config.files() if label != "pack"]
    inputs = Inputs(
        {label: model_path(stage, plan, label) for label in config.inputs()},
        {label: stage.inputs[label].path for label in adapters},
        {label: stage.inputs[label].key for label in (*config.inputs(), *adapters)},
        stage_key(asked.kind, asked.VERSION, settings, {"pack": pack.key}),
    )
    run_merge_search(config, inputs, work=work, seed=seed, evaluate=evaluate)


def _evaluate(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.evals.runner import run_evaluate
    from singalaut.generate.engine import open_engine

    assert isinstance(stage.config, EvaluateConfig)
    models = {name: model_path(stage, plan, label) for label, name in stage.config.inputs().items()}
    run_evaluate(
        stage.config,
        models=models,
        pack=stage.inputs["pack"].path,
        work=work,
        seed=plan.recipe.seed,
        open_sampler=open_engine,
    )


def _card(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.publish.card import run_card

    assert isinstance(stage.config, CardConfig)
    evaluation = stage.inputs.get("evaluation")
    run_card(
        stage.config,
        model=stage.inputs["model"].path,
        evaluation=None if evaluation is None else evaluation.path,
        lineage=lineage(stage.config.inputs()["model"], plan),
        work=work,
    )


STAGES: Mapping[str, StageFunction] = {
    "prepare": _prepare,
    "sft": _sft,
    "merge": _merge,
    "merge_search": _merge_search,
    "evaluate": _evaluate,
    "card": _card,
}
