"""Drawings as inline SVG: bars, histograms, curves over steps, and points in a plane.

Colours are those of the page's style, so that a drawing follows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from singalaut.page.html import keys

WIDTH, LABEL, ROW = 720, 190, 22
KEPT, LEFT_OUT, FAULT, FAINT = "var(--good)", "var(--warn)", "var(--bad)", "var(--faint)"
COLOURS = tuple(f"var(--c{number})" for number in range(12))
MOST_POINTS = 400  # of a curve; steps between are drawn as their mean and a band of what they reach
FIGURE_WIDTH, FIGURE_HEIGHT, MARGIN = 480, 220, 58
Point = tuple[float, float]


def bars(rows: Sequence[tuple[str, Sequence[float]]], colours: Sequence[str]) -> str:
    """Horizontal bars of parts, each with its sum."""
    largest = max((sum(values) for _, values in rows), default=0) or 1
    room = WIDTH - LABEL - 90
    lines = []
    for number, (label, values) in enumerate(rows):
        top, left = number * ROW, float(LABEL)
        lines.append(
            f'<text class=label x="{LABEL - 8}" y="{top + 15}" text-anchor="end">'
            f"{escape(label[:28])}</text>"
        )
        for value, colour in zip(values, colours, strict=True):
            width = room * value / largest
            lines.append(
                f'<rect x="{left:.1f}" y="{top + 3}" width="{width:.1f}" height="{ROW - 6}" '
                f'fill="{colour}"><title>{number_text(value)}</title></rect>'
            )
            left += width
        total = number_text(sum(values))
        lines.append(f'<text class=label x="{left + 6:.1f}" y="{top + 15}">{total}</text>')
    return svg(WIDTH, len(rows) * ROW, lines)


def histogram(edges: Sequence[Any], counts: Sequence[int], axis: str) -> str:
    """Upright bars between edges."""
    if not counts:
        return ""
    height, largest = 160, max(counts) or 1
    width = (WIDTH - 20) / len(counts)
    step = -(-len(counts) // 12)
    lines = []
    for number, count in enumerate(counts):
        tall = height * count / largest
        left = 10 + number * width
        lines.append(
            f'<rect x="{left:.1f}" y="{10 + height - tall:.1f}" width="{width - 1:.1f}" '
            f'height="{tall:.1f}" fill="{KEPT}"><title>{edges[number]}–{edges[number + 1]}: '
            f"{count:,}</title></rect>"
        )
        if number % step == 0:
            lines.append(f'<text x="{left:.1f}" y="{height + 26}">{edges[number]}</text>')
    lines.append(
        f'<text x="{WIDTH / 2}" y="{height + 46}" text-anchor="middle">{escape(axis)}</text>'
    )
    return svg(WIDTH, height + 52, lines)


class Plane:
    """A drawing in which points have places: axes with round numbers, lines, dots and labels."""

    def __init__(
        self, points: Sequence[Point], width: int, height: int, *, room: float = 0.06
    ) -> None:
        self.width, self.height = width, height
        bounds = [_bounds([point[axis] for point in points], room) for axis in (0, 1)]
        (self.left, self.right), (self.bottom, self.top) = bounds

    @property
    def base(self) -> int:
        return self.height - MARGIN + 8

    def place(self, point: Point) -> Point:
        across = (point[0] - self.left) / (self.right - self.left)
        up = (point[1] - self.bottom) / (self.top - self.bottom)
        return MARGIN + across * (self.width - MARGIN - 12), (1 - up) * (self.height - MARGIN) + 8

    def line(self, points: Sequence[Point], colour: str, title: str = "") -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.place, points))
        inner = f"<title>{escape(title)}</title>" if title else ""
        return (
            f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=1.5 "
            f"stroke-linejoin=round>{inner}</polyline>"
        )

    def band(self, low: Sequence[Point], high: Sequence[Point], colour: str) -> str:
        corners = [*map(self.place, low), *map(self.place, reversed(high))]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        return f"<polygon points='{path}' fill='{colour}' fill-opacity=.15 stroke=none />"

    def dot(self, point: Point, colour: str, title: str, radius: float = 4) -> str:
        x, y = self.place(point)
        return (
            f"<circle cx={x:.1f} cy={y:.1f} r={radius} fill='{colour}' "
            f"fill-opacity=.85><title>{escape(title)}</title></circle>"
        )

    def label(self, point: Point, name: str, colour: str) -> str:
        """A diamond with a name beside it."""
        x, y = self.place(point)
        side = "end" if x > self.width / 2 else "start"
        return (
            f"<path d='M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z' fill='{colour}' />"
            f"<text x={x + (-10 if side == 'end' else 10):.1f} y={y + 4:.1f} text-anchor={side}>"
            f"{escape(name)}</text>"
        )

    def level(self, value: float, name: str, colour: str) -> str:
        """A dashed line across, with a name at its end."""
        y = self.place((self.left, value))[1]
        return (
            f"<line x1={MARGIN} x2={self.width - 12} y1={y:.1f} y2={y:.1f} "
            f"stroke='{colour}' stroke-dasharray='4 4' />"
            f"<text x={self.width - 14} y={y - 4:.1f} text-anchor=end>{escape(name)}</text>"
        )

    def drawn(self, marks: Sequence[str], x_name: str, y_name: str) -> str:
        """The whole drawing: axes below the marks."""
        base, lines = self.base, []
        for value in ticks(self.left, self.right, max(3, self.width // 110)):
            x = self.place((value, self.bottom))[0]
            lines.append(f"<text x={x:.1f} y={base + 16} text-anchor=middle>{tick(value)}</text>")
        for value in ticks(self.bottom, self.top, max(3, self.height // 55)):
            y = self.place((self.left, value))[1]
            lines.append(
                f"<path d='M{MARGIN} {y:.1f}H{self.width - 12}' stroke='var(--line)' "
                f"stroke-opacity=.5 /><text x={MARGIN - 6} y={y + 4:.1f} text-anchor=end>"
                f"{tick(value)}</text>"
            )
        lines.append(
            f"<path d='M{MARGIN} 8V{base}H{self.width - 12}' fill=none stroke='var(--line)' />"
            f"<text x={(self.width + MARGIN) / 2} y={base + 36} text-anchor=middle>"
            f"{escape(x_name)}</text>"
        )
        if y_name:
            lines.append(
                f"<text x=14 y={base / 2} text-anchor=middle transform='rotate(-90 14 {base / 2})'>"
                f"{escape(y_name)}</text>"
            )
        return svg(self.width, self.height, [*lines, *marks])


def curves(title: str, series: Mapping[str, Sequence[Point]], *, dots: bool = False) -> str:
    """A figure of values over steps, one line a name; nothing where no value is finite.

    With `dots` every point is marked: for what is measured now and then. A long curve is drawn by
    means of neighbouring steps, and a band from the smallest to the largest of them.
    """
    found = {name: [p for p in points if _is_finite(p)] for name, points in series.items()}
    found = {name: points for name, points in found.items() if points}
    if not found:
        return ""
    plane = Plane([p for points in found.values() for p in points], FIGURE_WIDTH, FIGURE_HEIGHT)
    marks, colours = [], []
    for number, (name, points) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        colours.append(colour)
        low, mean, high = thinned(points)
        if len(mean) < len(points) and len(found) <= 3:
            marks.append(plane.band(low, high, colour))
        marks.append(plane.line(mean, colour, name))
        if dots or len(mean) == 1:
            marks += [plane.dot(p, colour, f"{name}: {p[1]:.4g}, step {p[0]:g}", 3) for p in mean]
    legend = keys(list(found), colours) if len(found) > 1 else ""
    last = ""
    if len(found) == 1:
        last = f", {tick(next(iter(found.values()))[-1][1])} at the end"
    caption = f"<figcaption><b>{escape(title)}</b><span class=small>{last}</span></figcaption>"
    return f"<figure>{caption}{plane.drawn(marks, 'step', '')}{legend}</figure>"


def thinned(points: Sequence[Point]) -> tuple[list[Point], list[Point], list[Point]]:
    """Smallest, mean and largest values of at most `MOST_POINTS` groups of neighbours."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    at = [sum(x for x, _ in group) / len(group) for group in groups]
    values = [[y for _, y in group] for group in groups]
    return (
        [(x, min(v)) for x, v in zip(at, values, strict=True)],
        [(x, sum(v) / len(v)) for x, v in zip(at, values, strict=True)],
        [(x, max(v)) for x, v in zip(at, values, strict=True)],
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two values, evenly apart: at most `most` or so."""
    raw = (high - low) / max(1, most)
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick(value: float) -> str:
    """A number as short as an axis takes it."""
    if value == 0:
        return "0"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"


def number_text(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def svg(width: int, height: int, lines: Sequence[str]) -> str:
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {box} role="img">{"".join(lines)}</svg>'


def _bounds(values: Sequence[float], room: float) -> Point:
    """From the smallest to the largest with some room around; never empty."""
    low, high = min(values), max(values)
    if low == high == 0:
        return -0.05, 1.0
    more = room * (high - low) or 0.1 * abs(high)
    return low - more, high + more


def _is_finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])
