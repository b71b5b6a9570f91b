"""Task vectors of several models into one: summed, or only where they agree on the sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from singalaut.merge.blocks import Blocks, Combine, Rows, num_elements, total
from singalaut.merge.selection import bits, count_upper, find_cuts, first_true
from singalaut.merge.sparse import Thin

Delta = Float[Tensor, "rows columns"]
NO_WEIGHT = 1e-8  # sum of weights that nothing is divided by
SMALLEST_DIVISOR = 1e-6  # of SCE


def agreeing(deltas: Sequence[Delta]) -> list[Bool[Tensor, "rows columns"]]:
    """Where each has the sign of the sum of all; a sum of zero counts as positive.

    Source: TIES, arXiv 2306.01708.
    """
    summed = deltas[0].clone()
    for delta in deltas[1:]:
        summed += delta
    positive = summed >= 0
    return [torch.where(positive, delta > 0, delta < 0) for delta in deltas]


def add_task_vectors(
    thin: Thin, weights: Sequence[float], *, elect: bool, normalize: bool, factor: float
) -> Combine:
    """θ_0 + λ Σ w_k τ_k over thinned task vectors, or over those that agree where `elect`.

    `normalize` divides by the sum of the weights; where signs are elected, entry by entry by the
    weights of those that agree. Sources: task arithmetic, arXiv 2212.04089; TIES.
    """

    def combine(index: int, rows: Rows) -> Tensor:
        assert rows.base is not None
        deltas = [
            # a product of its own: fused with the sum, opposite entries would not cancel
            thin(index, model, delta).mul_(weights[model])
            for model, delta in enumerate(rows.task_vectors())
        ]
        divisor: Tensor | float
        if elect:
            masks = agreeing(deltas)
            divisor = torch.zeros_like(deltas[0])
            for delta, mask, weight in zip(deltas, masks, weights, strict=True):
                delta.mul_(mask)
                divisor.add_(mask, alpha=weight)
            divisor.masked_fill_(divisor == 0, 1.0)
        else:
            divisor = 1.0 if abs(sum(weights)) < NO_WEIGHT else sum(weights)
        merged = deltas[0]
        for delta in deltas[1:]:
            merged.add_(delta)
        if normalize:
            merged.div_(divisor)
        return rows.base.add_(merged, alpha=factor)

    return combine


def sce(blocks: Blocks, density: float, uniform_below: float) -> Combine:
    """Select what varies, weigh models by mean square, erase the sign that lost.

    The share `density` of the entries whose variance across models is not zero, those of largest
    variance, takes part; w_k ∝ mean τ_k² over the tensor. Source: arXiv 2408.07990. All models
    weigh the same where those means sum to less than `uniform_below`.
    """
    select = _most_varying(blocks, density)

    def squares(index: int, rows: Rows) -> Tensor:
        deltas = select(index, rows.task_vectors())
        return torch.stack([delta.square().sum().double().cpu() for delta in deltas])

    means = total(blocks, squares) / num_elements(blocks)
    sum_of_means = float(means.sum())
    count = blocks.num_models
    uniform = sum_of_means < uniform_below or sum_of_means == 0
    weights = [1 / count] * count if uniform else (means / sum_of_means).tolist()

    def combine(index: int, rows: Rows) -> Tensor:
        assert rows.base is not None
        deltas = select(index, rows.task_vectors())
        divisor = torch.zeros_like(deltas[0])
        for delta, mask, weight in zip(deltas, agreeing(deltas), weights, strict=True):
            divisor.add_(mask, alpha=weight)
            delta.mul_(mask).mul_(weight)
        merged = deltas[0]
        for delta in deltas[1:]:
            merged.add_(delta)
        return rows.base.add_(merged.div_(divisor.clamp_(min=SMALLEST_DIVISOR)))

    return combine


def _most_varying(blocks: Blocks, density: float) -> Callable[[int, list[Delta]], list[Delta]]:
    """Blanks the task vectors, in place, where they vary too little across models."""
    if density >= 1:
        return lambda index, deltas: deltas

    def variance(deltas: Sequence[Delta]) -> Delta:
        return torch.stack(list(deltas)).var(0, unbiased=False)

    def series(rows: Rows) -> list[Delta]:
        return [variance(rows.task_vectors())]

    upper = count_upper(blocks, series, 1)
    zero = find_cuts(blocks, series, upper, [[0]])[0][0]
    count = num_elements(blocks)
    nonzero = count - (sum(zero.ties) if zero.bits == 0 else 0)
    kept = int(nonzero * density) if density > 0 else 0
    if kept == 0:
        return lambda index, deltas: [delta.mul_(0.0) for delta in deltas]
    cut = find_cuts(blocks, series, upper, [[count - kept]])[0][0]
    ties = cut.first(kept - cut.greater)

    def select(index: int, deltas: list[Delta]) -> list[Delta]:
        found = bits(variance(deltas))
        mask = (found > cut.bits) | first_true(found == cut.bits, ties[index])
        return [delta.mul_(mask) for delta in deltas]

    return select
