"""Trials of a search, which of them are not beaten, and a page that shows them.

The page is one file: a drawing, a table, no scripts, nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic
from singalaut.page.html import document, keys, table
from singalaut.page.plots import Plane, Point

WIDTH, HEIGHT = 640, 400
TRIAL, FRONT, BEST, MODEL = "var(--c10)", "var(--good)", "var(--bad)", "var(--c0)"
KEYS = {"the best": BEST, "not beaten": FRONT, "other trials": TRIAL, "given models": MODEL}


@dataclass(frozen=True)
class Trial:
    """One merge that was tried; `error` says why it has no scores."""

    number: int
    method: str
    values: Mapping[str, float]
    scores: Mapping[str, float]
    error: str | None
    cached: bool
    seconds: float

    @property
    def mean(self) -> float:
        return sum(self.scores.values()) / len(self.scores)

    def summary(self) -> str:
        values = ", ".join(f"{name} {value:g}" for name, value in self.values.items())
        scores = ", ".join(f"{name} {score:.2f}" for name, score in self.scores.items())
        return f"{self.method} with {values or 'nothing to set'}: {scores}"

    def as_row(self) -> dict[str, Any]:
        return {
            "trial": self.number,
            "method": self.method,
            "values": dict(self.values),
            "scores": dict(self.scores),
            "error": self.error,
            "cached": self.cached,
            "seconds": self.seconds,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Trial:
        return cls(
            row["trial"],
            row["method"],
            row["values"],
            row["scores"],
            row["error"],
            row["cached"],
            row["seconds"],
        )


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats: as good in every objective and better in one."""

    def beats(a: Trial, b: Trial) -> bool:
        pairs = [(a.scores[name], b.scores[name]) for name in a.scores]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    return [trial for trial in trials if not any(beats(other, trial) for other in trials)]


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest mean of its scores, the first of equals; it is on the front."""
    return max(trials, key=lambda trial: (trial.mean, -trial.number))


def write_page(
    file: Path,
    trials: Sequence[Trial],
    references: Mapping[str, Mapping[str, float]],
    chosen: Trial,
    models: Sequence[str],
) -> None:
    """Write the drawing of the front and the table of all trials."""
    done = [trial for trial in trials if trial.error is None]
    failed = [trial for trial in trials if trial.error is not None]
    unbeaten = {trial.number for trial in front(done)}
    objectives = list(chosen.scores)
    drawing = (
        _plane(done, references, unbeaten, chosen, objectives[:2])
        if len(objectives) > 1
        else _course(done, references, chosen, objectives[0])
    )
    parts = [
        f"<h1>Merges of {escape(', '.join(models))}</h1>",
        f"<p>{len(trials)} trials, {len(failed)} of which could not be merged. The best is trial "
        f"{chosen.number}: {escape(chosen.summary())}.</p>",
        drawing,
        keys(tuple(KEYS), tuple(KEYS.values())),
        _table(done, unbeaten, chosen, objectives),
    ]
    if failed:
        items = "".join(f"<li>trial {t.number}: {escape(str(t.error))}</li>" for t in failed)
        parts.append(f"<h2>Not merged</h2><ul>{items}</ul>")
    write_atomic(file, document("Merge search", parts).encode())


def _plane(
    trials: Sequence[Trial],
    references: Mapping[str, Mapping[str, float]],
    unbeaten: set[int],
    chosen: Trial,
    axes: Sequence[str],
) -> str:
    """Two objectives against each other."""
    x, y = axes
    points = [(t.scores[x], t.scores[y]) for t in trials]
    points += [(scores[x], scores[y]) for scores in references.values()]
    plane = Plane(points, WIDTH, HEIGHT)
    edge = sorted((t.scores[x], t.scores[y]) for t in trials if t.number in unbeaten)
    marks = [plane.line(edge, FRONT)]
    for trial in trials:
        colour = FRONT if trial.number in unbeaten else TRIAL
        marks.append(_dot(plane, (trial.scores[x], trial.scores[y]), trial, chosen, colour))
    for name, scores in references.items():
        marks.append(plane.label((scores[x], scores[y]), name, MODEL))
    return plane.drawn(marks, x, y)


def _course(
    trials: Sequence[Trial],
    references: Mapping[str, Mapping[str, float]],
    chosen: Trial,
    objective: str,
) -> str:
    """One objective over the trials, and the best so far."""
    points = [(float(t.number), t.scores[objective]) for t in trials]
    levels = {name: scores[objective] for name, scores in references.items()}
    everything = [*points, *((points[0][0], level) for level in levels.values())]
    plane = Plane(everything, WIDTH, HEIGHT)
    top = float("-inf")
    steps: list[Point] = []
    for number, score in points:
        if score > top:
            steps += [(number, top), (number, score)] if steps else [(number, score)]
            top = score
    steps.append((points[-1][0], top))
    marks = [plane.line(steps, FRONT)]
    for trial, point in zip(trials, points, strict=True):
        marks.append(_dot(plane, point, trial, chosen, TRIAL))
    marks += [plane.level(level, name, MODEL) for name, level in levels.items()]
    return plane.drawn(marks, "trial", objective)


def _dot(plane: Plane, point: Point, trial: Trial, chosen: Trial, colour: str) -> str:
    title = f"trial {trial.number}: {trial.summary()}"
    if trial.number == chosen.number:
        return plane.dot(point, BEST, title, 6)
    return plane.dot(point, colour, title)


def _table(
    trials: Sequence[Trial], unbeaten: set[int], chosen: Trial, objectives: Sequence[str]
) -> str:
    values = list(dict.fromkeys(name for trial in trials for name in trial.values))
    rows: list[list[Any]] = []
    classes: dict[int, str] = {}
    for trial in sorted(trials, key=lambda t: -t.mean):
        if trial.number in unbeaten:
            classes[len(rows)] = "front"
        if trial.number == chosen.number:
            classes[len(rows)] = "best"
        own = [trial.values.get(name) for name in values]
        rows.append([trial.number, trial.method, *own, *(trial.scores[n] for n in objectives)])
    return table(("trial", "method", *values, *objectives), rows, classes)
