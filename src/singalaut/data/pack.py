"""Best-fit packing: documents into rows of fixed room, with as little room left as can be.

The rows are those of best-fit decreasing: the longest document first, each into the fullest row
that still takes it. Documents of one length are alike to it, so they are placed together, and the
work grows with the number of lengths, not of documents. Source: the idea of packing without
truncation is that of arXiv 2404.10830; placing whole lengths at once is ours.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np


class Packing(NamedTuple):
    """Row r holds the documents `items[bounds[r] : bounds[r + 1]]`, numbered as they were given."""

    items: np.ndarray
    bounds: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.bounds) - 1

    def row(self, number: int) -> np.ndarray:
        return self.items[self.bounds[number] : self.bounds[number + 1]]


def best_fit(lengths: np.ndarray, room: int) -> Packing:
    """Pack documents of these lengths into rows of `room` tokens; none may be longer, or empty.

    Documents of one length are taken in the order given; a row has its longest document first.
    """
    lengths = lengths.astype(np.int64)
    assert len(lengths) == 0 or 0 < lengths.min() <= lengths.max() <= room
    longest_first = np.argsort(-lengths, kind="stable")
    counts = np.bincount(lengths)
    row_of = np.empty(len(lengths), dtype=np.int64)
    rows = _OpenRows(room)
    done = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        waiting = longest_first[done : done + counts[length]]
        done += len(waiting)
        while len(waiting):
            left, chosen = rows.take(length, len(waiting))
            each = left // length
            placed = min(len(waiting), each * len(chosen))
            row_of[waiting[:placed]] = np.repeat(chosen, each)[:placed]
            full, rest = divmod(placed, each)
            rows.give_back(left - each * length, chosen[:full])
            rows.give_back(left - rest * length, chosen[full:])
            waiting = waiting[placed:]
    order = np.argsort(row_of[longest_first], kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows.num_rows))])
    return Packing(longest_first[order], bounds)


class _OpenRows:
    """The rows begun so far, by the room that is left in them."""

    def __init__(self, room: int):
        self.num_rows = 0
        self._room = room
        self._by_room: dict[int, list[np.ndarray]] = {}
        self._rooms: list[int] = []  # sorted

    def take(self, length: int, count: int) -> tuple[int, np.ndarray]:
        """Rows for up to `count` documents of a length: the fullest that take one, else new ones.

        All have the same room left, which comes first.
        """
        place = bisect_left(self._rooms, length)
        if place == len(self._rooms):
            wanted = -(-count // (self._room // length))
            self.num_rows += wanted
            return self._room, np.arange(self.num_rows - wanted, self.num_rows)
        left = self._rooms[place]
        wanted = -(-count // (left // length))
        parts, taken = self._by_room[left], []
        while wanted and parts:
            part = parts.pop()
            if len(part) > wanted:
                parts.append(part[wanted:])
                part = part[:wanted]
            taken.append(part)
            wanted -= len(part)
        if not parts:
            del self._by_room[left], self._rooms[place]
        return left, np.concatenate(taken)

    def give_back(self, left: int, rows: np.ndarray) -> None:
        if not len(rows) or not left:
            return
        if left not in self._by_room:
            self._by_room[left] = []
            insort(self._rooms, left)
        self._by_room[left].append(rows)
