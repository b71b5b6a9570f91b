"""What a recipe would do: the key, the folder and the state of each stage, before anything runs.

Where models lie and how packs are named is told by the caller; nothing is fetched or written here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from singalaut.artifact import Input, content_hash, find, stage_key
from singalaut.errors import ArtifactError, RecipeError
from singalaut.recipe.schema import Recipe, StageConfig

State = Literal["finished", "partial", "missing", "damaged"]
KEY_LENGTH = 8  # of the part of a key that names folders
Locate = Callable[[str, str, Path], Path]


@dataclass(frozen=True)
class Model:
    """A model that a recipe starts from: its name as written, and where it lies, once fetched."""

    source: str
    path: Path | None
    key: str | None


@dataclass(frozen=True)
class PlannedStage:
    """A stage with the key of its output; `key` is None while a model is still to be fetched."""

    config: StageConfig
    key: str | None
    folder: Path
    inputs: Mapping[str, Input]
    """By label; a stage's folder, a starting model's directory, a file or a pack."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def partial(self) -> Path:
        return self.folder.with_name(self.folder.name + ".partial")

    def state(self) -> State:
        return "missing" if self.key is None else folder_state(self.folder)


@dataclass(frozen=True)
class Plan:
    """The stages of a recipe in order, and the models they start from."""

    recipe: Recipe
    models: Mapping[str, Model]
    stages: tuple[PlannedStage, ...]

    def as_rows(self) -> list[dict[str, Any]]:
        """One row for each model and stage, to print: stage, kind, state, key, seconds, path."""
        rows: list[dict[str, Any]] = []
        for name, model in self.models.items():
            state = "to fetch" if model.path is None else "ready"
            key = (model.key or "")[:KEY_LENGTH]
            path = model.source if model.path is None else shown(model.path)
            rows.append(_row(name, "start", state, key, None, path))
        for stage in self.stages:
            state = stage.state()
            folder = stage.partial if state == "partial" else stage.folder
            key = (stage.key or "")[:KEY_LENGTH]
            seconds = _seconds(_about(folder))
            rows.append(_row(stage.name, stage.config.kind, state, key, seconds, shown(folder)))
        return rows


def make_plan(
    recipe: Recipe,
    folder: Path,
    models: Mapping[str, Model],
    *,
    locate: Locate,
    root: Path | None = None,
) -> Plan:
    """Plan the recipe that lies in `folder`.

    `locate(label, value, folder)` is the path of an input file; `root` replaces the run's folder,
    `<output>/<recipe name>`. Raises: RecipeError for a file that is missing.
    """
    root = root or folder / Path(recipe.output).expanduser() / recipe.name
    root = Path(os.path.normpath(root.absolute()))
    known = {name: _as_input(model.path, model.key) for name, model in models.items()}
    stages: list[PlannedStage] = []
    for config in recipe.stage:
        inputs = {label: known[name] for label, name in config.inputs().items()}
        for label, value in config.files().items():
            inputs[label] = _file(config.name, label, locate(label, value, folder))
        ready = {label: found for label, found in inputs.items() if found is not None}
        names = {name: model.source for name, model in models.items()} | {
            stage.name: stage.config.kind for stage in stages
        }
        key = None if len(ready) < len(inputs) else _key(config, recipe.seed, ready, names)
        suffix = "?" if key is None else key[:KEY_LENGTH]
        stage = PlannedStage(config, key, root / f"{config.name}-{suffix}", ready)
        known[config.name] = _as_input(stage.folder, key)
        stages.append(stage)
    return Plan(recipe, models, tuple(stages))


def shown(path: Path) -> str:
    """The path as short as it can be printed."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def folder_state(folder: Path) -> State:
    """Whether a stage's folder is finished and whole, begun, or not there."""
    try:
        if find(folder) is not None:
            return "finished"
    except ArtifactError:
        return "damaged"
    return "partial" if folder.with_name(folder.name + ".partial").exists() else "missing"


def scan(folder: Path) -> list[dict[str, Any]]:
    """A row as in `Plan.as_rows` for every stage's folder at or below `folder`, oldest first."""
    rows = []
    for file in [*folder.rglob("manifest.json"), *folder.rglob("state.json")]:
        path, partial = file.parent, file.parent.name.endswith(".partial")
        stem, _, key = path.name.removesuffix(".partial").rpartition("-")
        if not stem or partial != (file.name == "state.json"):
            continue
        about = _about(path)
        state = "partial" if partial else folder_state(path)
        row = _row(stem, str(about.get("kind", "")), state, key, _seconds(about), shown(path))
        rows.append((str(about.get("started", "")), str(path), row))
    return [row for _, _, row in sorted(rows, key=lambda entry: entry[:2])]


def _about(folder: Path) -> dict[str, Any]:
    """What a finished or partial folder says of itself; nothing where that cannot be read."""
    for name in ("manifest.json", "state.json"):
        try:
            about = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(about, dict):
            return about
    return {}


def _seconds(about: Mapping[str, Any]) -> float | None:
    seconds = about.get("seconds")
    return seconds if isinstance(seconds, int | float) else None


def _row(
    stage: str, kind: str, state: str, key: str, seconds: float | None, path: str
) -> dict[str, Any]:
    return {
        "stage": stage,
        "kind": kind,
        "state": state,
        "key": key,
        "seconds": seconds,
        "path": path,
    }


def _as_input(path: Path | None, key: str | None) -> Input | None:
    return None if path is None or key is None else Input(path, key)


def _file(stage: str, label: str, path: Path) -> Input:
    if not path.exists():
        raise RecipeError(
            f"`{stage}.{label}` is not there",
            where=path,
            hint="check the path; the paths of a recipe are relative to its folder"
            + ("; `demo` is a pack that is always there" if label.startswith("pack.") else ""),
        )
    return Input(path, content_hash(path))


def _key(
    config: StageConfig, seed: int, inputs: Mapping[str, Input], names: Mapping[str, str]
) -> str:
    settings: dict[str, Any] = {"seed": seed, "settings": config.key_settings()}
    if config.NAMES_IN_KEY:
        settings["names"] = dict(names)
    # what a stage is only watched by decides nothing of its output
    keys = {k: given.key for k, given in inputs.items() if not k.startswith("watch.")}
    return stage_key(config.kind, config.VERSION, settings, keys)
