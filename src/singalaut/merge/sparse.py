"""Thinning task vectors: by magnitude, without the outliers, at random, at random by rank.

Each function looks at the whole tensor and returns how a block of one model's task vector is
thinned. What is not a number is never dropped, so that it is noticed in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from singalaut.merge.blocks import Blocks, Rows, num_elements, random, visit
from singalaut.merge.selection import Cut, count_upper, find_cuts

Thin = Callable[[int, int, Tensor], Tensor]
"""The thinned task vector of a model in a block: (block, model, task vector), in place."""
TINY_SUM = 1e-7  # sums of magnitudes below which nothing is scaled


def keep_all(index: int, model: int, delta: Tensor) -> Tensor:
    return delta


def keep_largest(blocks: Blocks, densities: Sequence[float]) -> Thin:
    """The k = max(1, ⌊density · n⌋) entries of largest magnitude; equal ones in their order.

    Source: TIES, arXiv 2306.01708.
    """
    total = num_elements(blocks)
    kept = [max(1, int(density * total)) if 0 < density < 1 else 0 for density in densities]
    cuts = _cuts(blocks, [[total - count] if count else [] for count in kept])
    ties = [
        cut[0].first(count - cut[0].greater) if cut else []
        for count, cut in zip(kept, cuts, strict=True)
    ]

    def thin(index: int, model: int, delta: Tensor) -> Tensor:
        if not cuts[model]:
            return delta if densities[model] >= 1 else delta.mul_(0.0)
        return _drop_below(delta, cuts[model][0], index, first=ties[model][index])

    return thin


def keep_middle(blocks: Blocks, densities: Sequence[float], gammas: Sequence[float]) -> Thin:
    """⌊density · n⌋ entries next below the ⌊γ n⌋ largest; fewer outliers go if few are dropped.

    Source: Model Breadcrumbs, arXiv 2312.06795.
    """
    total = num_elements(blocks)
    spans = []
    for density, gamma in zip(densities, gammas, strict=True):
        kept = int(density * total)
        start = max(0, total - kept - int(gamma * total))
        spans.append((start, start + kept) if density < 1 else (0, total))
    cuts = _cuts(blocks, [[p for p in span if 0 < p < total] for span in spans])
    by_place = [
        dict(zip([p for p in span if 0 < p < total], found, strict=True))
        for span, found in zip(spans, cuts, strict=True)
    ]

    def thin(index: int, model: int, delta: Tensor) -> Tensor:
        start, stop = spans[model]
        if start >= stop:
            return delta.mul_(0.0)
        if cut := by_place[model].get(stop):
            # equal entries are kept in their order here, and dropped in their order below
            kept = cut.first(stop - cut.less)[index]
            above = _drop_below(delta.clone(), cut, index, last=cut.ties[index] - kept)
            delta = delta.sub_(above)
        if cut := by_place[model].get(start):
            dropped = cut.first(start - cut.less)[index]
            delta = _drop_below(delta, cut, index, last=cut.ties[index] - dropped)
        return delta

    return thin


def _drop_below(
    delta: Tensor, cut: Cut, index: int, *, first: int | None = None, last: int | None = None
) -> Tensor:
    """Zero below the cut, in place; of the entries at it, the `first` or `last` few are kept."""
    kept = first if first is not None else last
    assert kept is not None
    if cut.bits == 0:
        return delta  # what is at the cut is zero
    if kept == 0:
        return torch.hardshrink(delta, cut.value, out=delta)
    torch.hardshrink(delta, cut.value_below, out=delta)
    if kept < cut.ties[index]:
        flat = delta.view(-1)
        equal = (flat.abs() == cut.value).nonzero().squeeze(1)
        flat[equal[kept:] if first is not None else equal[: len(equal) - kept]] = 0.0
    return delta


def keep_at_random(blocks: Blocks, densities: Sequence[float]) -> Thin:
    """Each entry with probability `density`. Source: DARE, arXiv 2311.03099."""

    def thin(index: int, model: int, delta: Tensor) -> Tensor:
        if densities[model] >= 1:
            return delta
        return delta.mul_(_uniform(blocks, index, model, delta) < densities[model])

    return thin


def keep_by_rank(blocks: Blocks, densities: Sequence[float], epsilons: Sequence[float]) -> Thin:
    """Each entry with a probability that grows with its rank in the row, density ± ε.

    Source: DELLA, arXiv 2406.11617.
    """
    masks: dict[tuple[int, int], np.ndarray] = {}  # a row is sorted once, however often it is read

    def thin(index: int, model: int, delta: Tensor) -> Tensor:
        density, epsilon = densities[model], epsilons[model]
        if density >= 1 or density <= 0:
            return delta if density >= 1 else delta.mul_(0.0)
        if (known := masks.get((index, model))) is not None:
            flat = np.unpackbits(known, count=delta.numel()).view(bool)
            return delta.mul_(torch.from_numpy(flat).reshape(delta.shape).to(delta.device))
        order = delta.abs().argsort(dim=1)
        columns = delta.shape[1]
        share = torch.linspace(0, 1, columns, device=delta.device).expand_as(delta)
        rank = torch.empty_like(delta).scatter_(1, order, share)
        probability = rank.mul_(2 * epsilon).add_(density - epsilon)
        if columns == 1:
            probability.fill_(density)
        mask = _uniform(blocks, index, model, delta) < probability
        masks[index, model] = np.packbits(mask.cpu().numpy().reshape(-1))
        return delta.mul_(mask)

    return thin


def rescaled(blocks: Blocks, thin: Thin) -> Thin:
    """`thin`, and each model's result scaled so that its magnitudes sum to what they did before."""

    def measure(index: int, rows: Rows) -> list[tuple[float, float]]:
        sums = []
        for model, delta in enumerate(rows.task_vectors()):
            before = float(delta.abs().sum())
            sums.append((before, float(thin(index, model, delta).abs().sum())))
        return sums

    totals = np.array(visit(blocks, measure), np.float64).sum(0).tolist()
    factors = [
        before / after if before >= TINY_SUM and after >= TINY_SUM else 1.0
        for before, after in totals
    ]
    return lambda index, model, delta: thin(index, model, delta).mul_(factors[model])


def _cuts(blocks: Blocks, places: Sequence[Sequence[int]]) -> list[list[Cut]]:
    """The cuts of each model's magnitudes at these places; a model without any is not looked at."""
    wanted = [model for model, each in enumerate(places) if each]
    cuts: list[list[Cut]] = [[] for _ in places]
    if not wanted:
        return cuts

    def magnitudes(rows: Rows) -> list[Tensor]:
        assert rows.base is not None
        return [rows.models[model].sub_(rows.base).abs_() for model in wanted]

    upper = count_upper(blocks, magnitudes, len(wanted))
    found = find_cuts(blocks, magnitudes, upper, [places[model] for model in wanted])
    for model, each in zip(wanted, found, strict=True):
        cuts[model] = each
    return cuts


def _uniform(blocks: Blocks, index: int, model: int, delta: Tensor) -> Float[Tensor, "..."]:
    """Uniform numbers in [0, 1), drawn on the CPU whatever the device."""
    drawn = random(blocks, index, model).random(delta.shape, dtype=np.float32)
    return torch.from_numpy(drawn).to(delta.device)
