"""A training stage as its folder tells it: begun or finished, metrics, samples, settings.

Only files are read, so that a run can be looked at from outside while it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from singalaut.errors import ArtifactError

KINDS = ("sft", "apo", "rl")  # of stages that have a page
RUN_FILE = "run.json"  # in `report/`: steps in all, what the run is on
Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What is known of a stage; `about` is its manifest, or what is there of one so far."""

    folder: Path
    name: str
    kind: str
    is_finished: bool
    about: dict[str, Any]
    steps: int | None
    lines: list[Line]
    samples: list[Line]

    @property
    def trained(self) -> list[Line]:
        """The lines of steps, without those of measurements between them."""
        return [line for line in self.lines if "gradient_norm" in line or "reward" in line]

    @property
    def done(self) -> int:
        """Steps that have been taken."""
        return 1 + max((line["step"] for line in self.trained), default=-1)

    @property
    def seconds(self) -> float:
        """Time spent on steps, as far as it was logged."""
        return sum(map(step_seconds, self.trained))


def read_run(folder: Path) -> Run:
    """What the folder of a stage holds. Raises: ArtifactError where it has no metrics."""
    about = _about(folder)
    if not (folder / "metrics.jsonl").exists() or not about.get("kind", "sft"):
        raise ArtifactError(
            "this is no folder of a stage that trains, or nothing has been logged yet",
            where=folder,
            hint=f"give the folder of a stage of kind {', '.join(f'`{k}`' for k in KINDS)}",
        )
    lines = [line for line in _lines(folder / "metrics.jsonl") if isinstance(line.get("step"), int)]
    own = read_json(folder / "report" / RUN_FILE)
    name = folder.name.removesuffix(".partial")
    return Run(
        folder,
        str(about.get("stage") or name),
        str(about.get("kind") or own.get("kind") or "sft"),
        (folder / "manifest.json").exists() or bool(own.get("ended")),
        {**own, **about},
        own.get("steps"),
        lines,
        _lines(folder / "samples.jsonl"),
    )


def step_seconds(line: Line) -> float:
    """What a step took, in all its phases."""
    seconds = line.get("seconds", 0.0)
    return float(sum(seconds.values()) if isinstance(seconds, dict) else seconds)


def column(lines: Iterable[Line], name: str) -> list[tuple[float, float]]:
    """Steps and values of the lines that have a number under this name."""
    return [
        (float(line["step"]), float(line[name]))
        for line in lines
        if isinstance(line.get(name), int | float) and not isinstance(line[name], bool)
    ]


def columns(lines: Iterable[Line], name: str) -> dict[str, list[tuple[float, float]]]:
    """The same for a group of named numbers, such as losses by language."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        group = line.get(name)
        if isinstance(group, dict):
            for label, value in group.items():
                if isinstance(value, int | float):
                    found.setdefault(label, []).append((float(line["step"]), float(value)))
    return dict(sorted(found.items()))


def _about(folder: Path) -> dict[str, Any]:
    return read_json(folder / "manifest.json") or read_json(folder / "state.json")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(file: Path) -> list[Line]:
    """The objects of a file of JSON lines; what a kill or a write under way has cut is left out."""
    found = []
    try:
        data = file.read_bytes()
    except OSError:
        return []
    for line in data.split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
