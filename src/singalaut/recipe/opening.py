"""How names become models and packs, where the inputs of a stage lie, and how models are asked.

Which code runs a stage is chosen in `wiring.py`. The rooms behind are loaded when they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from singalaut.data.config import DataSource
from singalaut.recipe.plan import Plan, PlannedStage
from singalaut.remote.config import EndpointConfig
from singalaut.rewards.config import PromptSource

if TYPE_CHECKING:
    from singalaut.contracts import Sampler
    from singalaut.evals.evaluate import Subject
    from singalaut.rewards.samples import Source


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
        from singalaut.evals.pack import pack_path

        named = pack_path(value).expanduser()
        return named if named.is_absolute() else folder / named
    return folder / Path(value).expanduser()


def model_path(stage: PlannedStage, plan: Plan, label: str) -> Path:
    """The model directory behind an input: a starting model's own, or `model/` of a stage."""
    path = stage.inputs[label].path
    return path if stage.config.inputs()[label] in plan.models else path / "model"


def source_paths(
    stage: PlannedStage, sources: Sequence[DataSource], label: str = "data"
) -> list[Path | None]:
    """Where each source of rows lies; None for those of the hub."""
    labels = [f"{label}.{i}" for i in range(len(sources))]
    return [stage.inputs[label].path if label in stage.inputs else None for label in labels]


def prompt_sources(
    stage: PlannedStage, sources: Sequence[PromptSource], label: str = "prompts"
) -> list[Source]:
    """Where prompts with checkable answers come from: files, stages that chose them, or made."""
    from singalaut.rewards.samples import Source

    found = []
    for number, source in enumerate(sources):
        given = stage.inputs.get(f"{label}.{number}")
        file = None if given is None else given.path
        if file is not None and source.stage is not None:
            file = file / "data" / "prompts.jsonl"
        found.append(Source(file, source.generate, source.languages, source.language))
    return found


def local_subject(
    directory: Path,
    batch_size: int | None,
    replicas: int = 1,
    cache_gib: float | None = None,
    **ways: object,
) -> Subject:
    """The engine, or several side by side, over a model directory; opened when it is asked."""
    from singalaut.artifact import content_hash
    from singalaut.evals.evaluate import Subject

    if cache_gib is not None:
        ways["cache_bytes"] = int(cache_gib * 2**30)

    def open_sampler() -> Sampler:
        from singalaut.generate.engine import open_engine

        if replicas == 1:
            return open_engine(directory, batch_size, **ways)
        from singalaut.generate.replicas import Replicas

        return Replicas(directory, replicas, batch_size=batch_size, **ways)

    return Subject(content_hash(directory), open_sampler, directory)


def endpoint_subject(config: EndpointConfig, own_settings: bool) -> Subject:
    """Servers of a model; `own_settings` leaves sampling parameters at their defaults to them."""
    from singalaut.evals.evaluate import Subject

    def open_sampler() -> Sampler:
        from singalaut.remote.endpoint import EndpointSampler

        return EndpointSampler(config, own_settings=own_settings)

    tokenizer = Path(config.tokenizer).expanduser() if config.tokenizer else None
    return Subject(config.identity(), open_sampler, tokenizer)


def recorded_subject(file: Path) -> Subject:
    """Answers that were given elsewhere, from a file."""
    from singalaut.artifact import content_hash
    from singalaut.evals.evaluate import Subject
    from singalaut.remote.recorded import RecordedSampler

    return Subject(f"recorded {content_hash(file)}", lambda: RecordedSampler(file))
