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

    @property
    def value(self) -> float:
        """The value itself."""
        return float(np.int32(self.bits).view(np.float32))

    @property
    def value_below(self) -> float:
        """The next smaller float."""
        return float(np.int32(self.bits - 1).view(np.float32))

    def first(self, count: int) -> list[int]:
        """How many of the first `count` equal entries lie in each block."""
        taken = []
        for ties in self.ties:
            taken.append(max(0, min(ties, count)))
            count -= ties
        return taken


def count_upper(blocks: Blocks, series: Series, num_series: int) -> list[np.ndarray]:
    """How many entries of each series have each value of their upper bits."""
    totals = torch.zeros(num_series, 1 << UPPER_BITS, dtype=torch.int64)
    for index in range(len(blocks.bounds)):
        for values, counts in zip(series(blocks.read(index)), totals, strict=True):
            upper = bits(values).bitwise_right_shift_(LOWER_BITS).reshape(-1)
            counts += torch.bincount(upper, minlength=1 << UPPER_BITS).cpu()
    return [counts.numpy() for counts in totals]


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
        return [
            [_distinct(values, each, rows) for each in wanted]
            for values, wanted in zip(series(rows), bins, strict=True)
        ]

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


def _distinct(values: Tensor, chosen: int, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The lower bits among the entries with these upper bits, ascending, and how often each occurs.

    Both in 16 and 32 bits, because there may be many blocks.
    """
    flat = bits(values).view(-1)
    upper = bits(rows.spare("upper")).view(-1)
    found = rows.spare("found").view(-1).view(torch.bool)[: flat.numel()]
    torch.bitwise_right_shift(flat, LOWER_BITS, out=upper)
    torch.eq(upper, chosen, out=found)
    lower = flat[found].bitwise_and_((1 << LOWER_BITS) - 1)
    counts = torch.bincount(lower, minlength=1 << LOWER_BITS).cpu().numpy()
    present = np.flatnonzero(counts)
    return present.astype(np.uint16), counts[present].astype(np.uint32)


def _cut(
    found: Sequence[tuple[np.ndarray, np.ndarray]], upper: np.ndarray, chosen: int, place: int
) -> Cut:
    below = int(upper[:chosen].sum())
    lower = np.zeros(1 << LOWER_BITS, np.int64)
    for values, counts in found:
        lower[values] += counts
    low = int(np.searchsorted(np.cumsum(lower), place - below, side="right"))
    value = (chosen << LOWER_BITS) | low
    less = below + int(lower[:low].sum())
    ties = []
    for values, counts in found:
        at = int(np.searchsorted(values, low))
        ties.append(int(counts[at]) if at < len(values) and values[at] == low else 0)
    return Cut(value, less, int(upper.sum()) - less - sum(ties), tuple(ties))
