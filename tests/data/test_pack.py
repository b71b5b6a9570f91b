"""Packing against best-fit decreasing written out, and that it loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.data.pack import best_fit


def one_by_one(lengths, room):
    """The room left in each row when every document is placed by itself."""
    left = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, free in enumerate(left) if free >= length]
        if fitting:
            left[min(fitting, key=left.__getitem__)] -= length
        else:
            left.append(room - length)
    return sorted(left)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), room=st.integers(1, 40))
def test_rows_are_those_of_best_fit_decreasing(data, room):
    lengths = np.array(data.draw(st.lists(st.integers(1, room), max_size=40)), dtype=np.uint32)
    packing = best_fit(lengths, room)
    assert sorted(packing.items.tolist()) == list(range(len(lengths)))
    rows = [packing.row(number) for number in range(packing.num_rows)]
    left = [room - int(lengths[row].sum()) for row in rows]
    assert sorted(left) == one_by_one(lengths.tolist(), room)
    for row in rows:
        assert len(row) and (np.diff(lengths[row].astype(int)) <= 0).all()


def test_a_worse_packing_is_noticed():
    """Placing in the order given, without sorting, leaves other rooms: the oracle can fail."""
    lengths = [3, 5, 5, 7, 3, 7]
    packing = best_fit(np.array(lengths), 10)
    assert packing.num_rows == 3 and one_by_one(lengths, 10) == [0, 0, 0]
    unsorted = [10 - 3 - 5, 10 - 5 - 3, 10 - 7, 10 - 7]
    assert sorted(unsorted) != one_by_one(lengths, 10)


def test_a_million_documents_waste_little():
    lengths = np.random.default_rng(0).lognormal(5.5, 0.8, 1_000_000).astype(np.int64)
    lengths = np.clip(lengths, 1, 4096)
    packing = best_fit(lengths, 4096)
    assert lengths.sum() / (packing.num_rows * 4096) > 0.999
    sums = np.add.reduceat(lengths[packing.items], packing.bounds[:-1])
    assert sums.max() <= 4096


def test_nothing_and_too_much():
    assert best_fit(np.empty(0, dtype=np.uint32), 5).num_rows == 0
    with pytest.raises(AssertionError):
        best_fit(np.array([6]), 5)
