"""Trials of a search, which of them are not beaten, and a page that shows them.

The page is one file: a drawing, a table, no scripts, nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic

WIDTH, HEIGHT, MARGIN = 640, 400, 56
Point = tuple[float, float]
Place = Callable[[Point], Point]
STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #d0d5dd; --paper: #fff;
  --trial: #7a8699; --front: #0b6e4f; --best: #c2410c; --model: #1d4ed8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b3; --line: #344054;
  --paper: #12161d; --trial: #8793a6; --front: #34d399; --best: #fb923c; --model: #93b4ff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:nth-child(2), td:nth-child(2) { text-align: left; }
.best td { color: var(--best); font-weight: 600; } .front td:first-child { color: var(--front); }
"""


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
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>Merge search</title><style>{STYLE}</style>",
        f"<h1>Merges of {escape(', '.join(models))}</h1>",
        f"<p>{len(trials)} trials, {len(failed)} of which could not be merged. The best is trial "
        f"{chosen.number}: {escape(chosen.summary())}.</p>",
        drawing,
        _table(done, unbeaten, chosen, objectives),
    ]
    if failed:
        items = "".join(f"<li>trial {t.number}: {escape(str(t.error))}</li>" for t in failed)
        parts.append(f"<h2>Not merged</h2><ul>{items}</ul>")
    write_atomic(file, "".join(parts).encode())


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
    place = _scale(points)
    marks = []
    edge = sorted((t.scores[x], t.scores[y]) for t in trials if t.number in unbeaten)
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in map(place, edge))
    marks.append(f"<polyline points='{path}' fill=none stroke='var(--front)' stroke-width=1.5 />")
    for trial in trials:
        colour = "front" if trial.number in unbeaten else "trial"
        colour = "best" if trial.number == chosen.number else colour
        title = f"trial {trial.number}: {trial.summary()}"
        marks.append(_dot(place((trial.scores[x], trial.scores[y])), colour, title))
    for name, scores in references.items():
        marks.append(_label(place((scores[x], scores[y])), name))
    return _frame(marks, points, place, x, y)


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
    place = _scale(everything)
    marks, top = [], float("-inf")
    steps: list[Point] = []
    for number, score in points:
        if score > top:
            steps += [(number, top), (number, score)] if steps else [(number, score)]
            top = score
    steps.append((points[-1][0], top))
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in map(place, steps))
    marks.append(f"<polyline points='{path}' fill=none stroke='var(--front)' stroke-width=1.5 />")
    for trial, point in zip(trials, points, strict=True):
        colour = "best" if trial.number == chosen.number else "trial"
        marks.append(_dot(place(point), colour, f"trial {trial.number}: {trial.summary()}"))
    for name, level in levels.items():
        _, height = place((points[0][0], level))
        marks.append(
            f"<line x1={MARGIN} x2={WIDTH - 12} y1={height:.1f} y2={height:.1f} "
            "stroke='var(--model)' stroke-dasharray='4 4' />"
            f"<text x={WIDTH - 14} y={height - 4:.1f} text-anchor=end>{escape(name)}</text>"
        )
    return _frame(marks, everything, place, "trial", objective)


def _scale(points: Sequence[Point]) -> Place:
    """From scores to places in the drawing, with some room around."""
    bounds = []
    for values in zip(*points, strict=True):
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 1.0
        bounds.append((low - room, high + room))
    (left, right), (bottom, top) = bounds

    def place(point: Point) -> Point:
        across = (point[0] - left) / (right - left)
        up = (point[1] - bottom) / (top - bottom)
        return MARGIN + across * (WIDTH - MARGIN - 12), (1 - up) * (HEIGHT - MARGIN) + 8

    return place


def _frame(marks: Sequence[str], points: Sequence[Point], place: Place, x: str, y: str) -> str:
    base = HEIGHT - MARGIN + 8
    labels = []
    for axis in (0, 1):
        values = sorted({point[axis] for point in points})
        for value in dict.fromkeys((values[0], values[-1])):
            at = place((value, value))[axis]
            where = f"x={at:.1f} y={base + 16} text-anchor=middle"
            if axis:
                where = f"x={MARGIN - 6} y={at + 4:.1f} text-anchor=end"
            labels.append(
                f"<text {where}>{value:g}</text>"
                if value == int(value)
                else f"<text {where}>{value:.1f}</text>"
            )
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img>"
        f"<path d='M{MARGIN} 8V{base}H{WIDTH - 12}' fill=none stroke='var(--line)' />"
        + "".join(labels)
        + f"<text x={(WIDTH + MARGIN) / 2} y={base + 36} text-anchor=middle>{escape(x)}</text>"
        f"<text x=14 y={base / 2} text-anchor=middle transform='rotate(-90 14 {base / 2})'>"
        f"{escape(y)}</text>" + "".join(marks) + "</svg>"
    )


def _dot(place: Point, colour: str, title: str) -> str:
    radius = 6 if colour == "best" else 4
    return (
        f"<circle cx={place[0]:.1f} cy={place[1]:.1f} r={radius} fill='var(--{colour})' "
        f"fill-opacity=.85><title>{escape(title)}</title></circle>"
    )


def _label(place: Point, name: str) -> str:
    x, y = place
    side = "end" if x > WIDTH / 2 else "start"
    return (
        f"<path d='M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z' fill='var(--model)' />"
        f"<text x={x + (-10 if side == 'end' else 10):.1f} y={y + 4:.1f} text-anchor={side}>"
        f"{escape(name)}</text>"
    )


def _table(
    trials: Sequence[Trial], unbeaten: set[int], chosen: Trial, objectives: Sequence[str]
) -> str:
    values = list(dict.fromkeys(name for trial in trials for name in trial.values))
    head = "".join(f"<th>{escape(h)}</th>" for h in ("trial", "method", *values, *objectives))
    rows = []
    for trial in sorted(trials, key=lambda t: -t.mean):
        kind = "best" if trial.number == chosen.number else ""
        kind = kind or ("front" if trial.number in unbeaten else "")
        cells = [str(trial.number), trial.method]
        cells += [f"{trial.values[n]:g}" if n in trial.values else "" for n in values]
        cells += [f"{trial.scores[name]:.2f}" for name in objectives]
        body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr class='{kind}'>{body}</tr>")
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>"
