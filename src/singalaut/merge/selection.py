"""Which entry of a huge tensor is the k-th largest: exactly, by blocks, without sorting.

The bits of a float that is not negative order like the float itself. One pass counts the upper
bits, a second one counts the lower bits of those entries whose upper bits hold the entry sought.
Both passes read all series at once. Equal entries are told apart by their place, as a stable sort
would, so how many of them lie in each block is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from singalaut.merge.blocks import Blocks, Rows, visit

UPPER_BITS = 15  # without the sign
LOWER_BITS = 16
Series = Callable[[Rows], Sequence[Float[Tensor, "rows columns"]]]
"""The tensors to order, made of the rows of a block; none has negative entries."""


@dataclass(frozen=True)
class Cut:
    """The value at one place of the sorted tensor, and where its equals lie."""

    bits: int
    less: int
    """Entries that are smaller."""
    greater: int
    """Entries that are larger."""
    ties: tuple[int, ...]
    """Equal entries in each block."""

    def first(self, count: int) -> list[int]:
        """How many of the first `count` equal entries lie in each block."""
        taken = []
        for ties in self.ties:
            taken.append(max(0, min(ties, count)))
            count -= ties
        return taken


def count_upper(blocks: Blocks, series: Series, num_series: int) -> list[np.ndarray]:
    """How many entries of each series have each value of their upper bits."""

    def measure(index: int, rows: Rows) -> list[Tensor]:
        return [
            torch.bincount((bits(values) >> LOWER_BITS).reshape(-1), minlength=1 << UPPER_BITS)
            for values in series(rows)
        ]

    totals = [np.zeros(1 << UPPER_BITS, np.int64) for _ in range(num_series)]
    for counts in visit(blocks, measure):
        for total, count in zip(totals, counts, strict=True):
            total += count.cpu().numpy()
    return totals


def find_cuts(
    blocks: Blocks,
    series: Series,
    upper: Sequence[np.ndarray],
    places: Sequence[Sequence[int]],
) -> list[list[Cut]]:
    """For each series, the cuts at these places of its ascending order, counted from 0."""
    bins = [
        [int(np.searchsorted(np.cumsum(u), p, side="right")) for p in ps]
        for u, ps in zip(upper, places, strict=True)
    ]

    def measure(index: int, rows: Rows) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        found = []
        for values, wanted in zip(series(rows), bins, strict=True):
            flat = bits(values).reshape(-1)
            high = flat >> LOWER_BITS
            found.append([_distinct(flat, high == each) for each in wanted])
        return found

    passes = visit(blocks, measure)
    cuts: list[list[Cut]] = []
    for s, (wanted, ps) in enumerate(zip(bins, places, strict=True)):
        cuts.append(
            [
                _cut([found[s][i] for found in passes], upper[s], each, place)
                for i, (each, place) in enumerate(zip(wanted, ps, strict=True))
            ]
        )
    return cuts


def bits(values: Float[Tensor, "..."]) -> Tensor:
    """The bits of floats as integers; those of -0.0 would be negative, so `values` has none."""
    return values.contiguous().view(torch.int32)


def first_true(mask: Bool[Tensor, "..."], count: int) -> Bool[Tensor, "..."]:
    """Only the first `count` true entries of the mask."""
    flat = mask.reshape(-1)
    if count <= 0:
        return torch.zeros_like(mask)
    where = flat.nonzero().squeeze(1)
    if count >= len(where):
        return mask
    flat = flat.clone()
    flat[where[count:]] = False
    return flat.reshape(mask.shape)


def _distinct(flat: Tensor, chosen: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values among the chosen entries, ascending, and how often each occurs."""
    values, counts = torch.unique(flat[chosen], return_counts=True)
    return values.cpu().numpy(), counts.cpu().numpy()


def _cut(
    found: Sequence[tuple[np.ndarray, np.ndarray]], upper: np.ndarray, chosen: int, place: int
) -> Cut:
    below = int(upper[:chosen].sum())
    lower = np.zeros(1 << LOWER_BITS, np.int64)
    mask = (1 << LOWER_BITS) - 1
    for values, counts in found:
        lower[values & mask] += counts
    low = int(np.searchsorted(np.cumsum(lower), place - below, side="right"))
    value = (chosen << LOWER_BITS) | low
    less = below + int(lower[:low].sum())
    ties = []
    for values, counts in found:
        at = int(np.searchsorted(values, value))
        ties.append(int(counts[at]) if at < len(values) and values[at] == value else 0)
    return Cut(value, less, int(upper.sum()) - less - sum(ties), tuple(ties))
