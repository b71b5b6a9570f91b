"""What a stage's result has behind it: the settings and manifests that are written down with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from singalaut.artifact import Artifact, find
from singalaut.errors import ArtifactError
from singalaut.recipe.plan import Plan, PlannedStage


def lineage(name: str, plan: Plan) -> list[dict[str, Any]]:
    """What led to a stage's model: each starting model, then the manifests, in order."""
    stages = {stage.name: stage for stage in plan.stages}
    wanted = {name}
    for stage in reversed(plan.stages):
        if stage.name in wanted:
            wanted.update(stage.config.inputs().values())
    origins: list[dict[str, Any]] = [
        {"stage": model_name, "source": model.source, "content": model.key}
        for model_name, model in plan.models.items()
        if model_name in wanted
    ]
    return origins + [_manifest(stage) for label, stage in stages.items() if label in wanted]


def _manifest(stage: PlannedStage) -> dict[str, Any]:
    """The stage's manifest, or what the plan knows of it where its folder has been removed."""
    known = find_stage(stage)
    if known is not None:
        return dict(known.manifest)
    return {
        "kind": stage.config.kind,
        "key": stage.key,
        "stage": stage.name,
        "version": stage.config.VERSION,
        "config": public_settings(stage),
    }


def find_stage(stage: PlannedStage) -> Artifact | None:
    """The stage's finished artifact, checked, or None."""
    known = find(stage.folder)
    if known is not None and known.key != stage.key:
        what = "the folder of this stage holds the result of other settings"
        raise ArtifactError(what, where=stage.folder, hint="move it away")
    return known


def public_settings(stage: PlannedStage) -> dict[str, Any]:
    """The settings for the manifest, where an absolute path would tell who ran it and where."""
    private = {file for file in stage.config.files().values() if Path(file).is_absolute()}

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        if isinstance(value, list):
            return [cut(item) for item in value]
        return Path(value).name if isinstance(value, str) and value in private else value

    return cut(stage.config.model_dump(mode="json", by_alias=True))
