"""Drawings: what is drawn is there, round numbers on axes, and nothing that a text could break."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.page.html import document, table, text_block
from singalaut.page.plots import (
    MARGIN,
    MOST_POINTS,
    Plane,
    bars,
    curves,
    histogram,
    thinned,
    tick,
    ticks,
)

EMPTY = {"meta", "br", "input"}


class Tags(HTMLParser):
    """Every element is closed by its own name."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())


def parsed(text):
    reader = Tags()
    reader.feed(text)
    assert not reader.open
    return reader.seen


NUMBERS = st.floats(-1e12, 1e12).filter(lambda x: x == 0 or abs(x) > 1e-9)


@given(st.lists(st.tuples(st.integers(0, 10**6).map(float), NUMBERS), min_size=1, max_size=30))
def test_every_point_lies_in_the_drawing(points):
    plane = Plane(points, 400, 200)
    for point in points:
        x, y = plane.place(point)
        assert MARGIN <= x <= 388 and 8 <= y <= 152
    assert "nan" not in plane.drawn([plane.line(points, "red")], "step", "loss")


@given(NUMBERS, st.floats(1e-6, 1e9), st.integers(2, 9))
def test_ticks_are_round_and_inside(low, width, most):
    high = low + width * max(1.0, abs(low) * 1e-6)
    found = ticks(low, high, most)
    room = 1e-6 * (high - low)
    assert len(found) <= most + 2
    assert all(low - room <= value <= high + room for value in found)


@given(st.lists(st.tuples(st.floats(0, 1e6), NUMBERS), min_size=1, max_size=3000))
def test_a_long_curve_keeps_its_range(points):
    low, mean, high = thinned(points)
    assert len(mean) <= MOST_POINTS
    assert min(y for _, y in low) == min(y for _, y in points)
    assert max(y for _, y in high) == max(y for _, y in points)
    slack = 1e-9 * (1 + max(abs(y) for _, y in points))
    assert all(
        a[1] - slack <= b[1] <= c[1] + slack for a, b, c in zip(low, mean, high, strict=True)
    )


def test_what_is_not_finite_is_not_drawn():
    assert curves("Loss", {"loss": [(0.0, math.nan), (1.0, math.inf)]}) == ""
    drawn = curves("Loss", {"loss": [(0.0, 1.0), (1.0, math.nan), (2.0, 3.0)]})
    assert "nan" not in drawn and drawn.count("<polyline") == 1
    assert curves("Loss", {}) == "" == histogram([], [], "x")


@pytest.mark.parametrize("hostile", ["<script>x</script>", "a & b", "'\"><img src=x onerror=1>"])
def test_texts_cannot_become_elements(hostile):
    made = [
        table((hostile,), [[hostile]]),
        text_block(hostile),
        bars([(hostile, (1.0,))], ("red",)),
        curves(hostile, {hostile: [(0.0, 1.0)], "b": [(0.0, 2.0)]}, dots=True),
        histogram([0, 1], [3], hostile),
    ]
    page = document(hostile, made)
    assert not {"script", "img"} & set(parsed(page))


def test_a_page_needs_nothing_else():
    page = document("Page", [table(("a", "b"), [[1, 2.5], [None, True]])])
    assert "http" not in page and "prefers-color-scheme: dark" in page
    for script in ("Thai", "Lao", "Khmer", "Myanmar", "Tamil"):
        assert f"Noto Sans {script}" in page
    assert "1" in page and ">2.5<" in page and ">yes<" in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.25, "0.25"), (1500, "1500"), (68_377, "68.38k"), (2.1e6, "2.1M"), (5e14, "500T")],
)
def test_numbers_of_an_axis_are_short(value, shown):
    assert tick(value) == shown
