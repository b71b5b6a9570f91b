"""Task vectors of several models into one: summed, or only where they agree on the sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from singalaut.merge.blocks import Blocks, Combine, Rows, num_elements, total
from singalaut.merge.selection import bits, count_upper, find_cuts, first_true
from singalaut.merge.sparse import Thin

Delta = Float[Tensor, "rows columns"]
NO_WEIGHT = 1e-8  # sum of weights that nothing is divided by
SMALLEST_DIVISOR = 1e-6  # of SCE
SMALLEST_WEIGHT = 1e-30


def elected_signs(deltas: Sequence[Delta], out: Delta) -> Delta:
    """The sign of the sum of all, entry by entry; a sum of zero counts as positive.

    Source: TIES, arXiv 2306.01708.
    """
    out.copy_(deltas[0])
    for delta in deltas[1:]:
        out.add_(delta)
    return out.sign_().add_(0.5).sign_()


def add_task_vectors(
    thin: Thin, weights: Sequence[float], *, elect: bool, normalize: bool, factor: float
) -> Combine:
    """θ_0 + λ Σ w_k τ_k over thinned task vectors, or over those that agree where `elect`.

    `normalize` divides by the sum of the weights; where signs are elected, entry by entry by the
    weights of those that agree. Sources: task arithmetic, arXiv 2212.04089; TIES.
    """
    total = sum(weights)

    def combine(index: int, rows: Rows) -> Tensor:
        assert rows.base is not None
        deltas = [
            # a product of its own: fused with the sum, opposite entries would not cancel
            thin(index, model, delta).mul_(weights[model])
            for model, delta in enumerate(rows.task_vectors())
        ]
        if elect:
            signs = elected_signs(deltas, rows.spare("signs"))
            for delta in deltas:
                delta.mul_(signs).clamp_(min=0)  # the agreeing parts, without their signs
            if normalize:
                divisor = _agreeing_weight(deltas, weights, rows)
            merged = _sum(deltas).mul_(signs)
            if normalize:
                merged.div_(divisor)
        else:
            merged = _sum(deltas)
            if normalize and abs(total) >= NO_WEIGHT:
                merged.div_(total)
        return rows.base.add_(merged, alpha=factor)

    return combine


def _sum(tensors: Sequence[Delta]) -> Delta:
    """Their sum, in place of the first."""
    merged = tensors[0]
    for tensor in tensors[1:]:
        merged.add_(tensor)
    return merged


def _agreeing_weight(parts: Sequence[Delta], weights: Sequence[float], rows: Rows) -> Delta:
    """Entry by entry, the weight of the parts that are not zero; 1 where there is none."""
    divisor, present = rows.spare("divisor").zero_(), rows.spare("present")
    for part, weight in zip(parts, weights, strict=True):
        divisor.add_(torch.sign(part, out=present), alpha=weight)
    if min(weights) > SMALLEST_WEIGHT:
        return divisor.clamp_(min=SMALLEST_WEIGHT)  # zero only where there is nothing to divide
    return divisor.masked_fill_(divisor == 0, 1.0)


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
        signs = elected_signs(deltas, rows.spare("signs"))
        divisor, present = rows.spare("divisor").zero_(), rows.spare("present")
        for delta, weight in zip(deltas, weights, strict=True):
            delta.mul_(signs).clamp_(min=0)
            divisor.add_(torch.sign(delta, out=present), alpha=weight)
            delta.mul_(weight)
        merged = _sum(deltas).mul_(signs)
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
