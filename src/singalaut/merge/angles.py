"""Methods that go along a sphere: what counts are angles between tensors.

Each of them ends in a weighted sum of the tensors, and the weights follow from the tensors' inner
products alone. So a tensor is gone over once for these products, and once for the sum. Here are
the weights as functions of the products; everything is float64 and may have leading dimensions,
for an angle in each row or column. Shapes: n tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from singalaut.merge.blocks import Blocks, Rows, total

Gram = Float[Tensor, "*batch n n"]
Weights = Float[Tensor, "*batch n"]
NEARLY_PARALLEL = 0.9995  # |cos Ω| above which SLERP is linear
SMALL_NORM = 1e-8
SMALL_PRODUCT = 1e-6  # of the norms of two task vectors; also of Model Stock's denominator


def inner_products(
    tensors: Sequence[Float[Tensor, "rows columns"]], spare: Float[Tensor, "rows columns"]
) -> Float[Tensor, "n n"]:
    """⟨x_i, x_j⟩ over all entries; `spare` is overwritten.

    The library's own product of vectors has too few digits for tensors that are nearly parallel;
    its sum adds in pairs.
    """
    gram = torch.empty(len(tensors), len(tensors), dtype=torch.float64)
    for i, x in enumerate(tensors):
        for j, y in enumerate(tensors[: i + 1]):
            gram[i, j] = gram[j, i] = torch.mul(x, y, out=spare).sum().double()
    return gram


def row_products(tensors: Sequence[Float[Tensor, "rows columns"]]) -> Float[Tensor, "rows n n"]:
    """⟨x_i, x_j⟩ in each row."""
    return _batched_products(tensors, dim=1)


def column_products(
    tensors: Sequence[Float[Tensor, "rows columns"]],
) -> Float[Tensor, "columns n n"]:
    """⟨x_i, x_j⟩ in each column."""
    return _batched_products(tensors, dim=0)


def _batched_products(tensors: Sequence[Tensor], dim: int) -> Tensor:
    pairs = [[(x * y).sum(dim).double() for y in tensors] for x in tensors]
    return torch.stack([torch.stack(row, -1) for row in pairs], -2)


def products_of_blocks(blocks: Blocks, task_vectors: bool) -> Float[Tensor, "n n"]:
    """The inner products of whole tensors, or of their differences from the base."""

    def measure(index: int, rows: Rows) -> Tensor:
        tensors = rows.task_vectors() if task_vectors else rows.models
        return inner_products(tensors, rows.spare("product"))

    return total(blocks, measure)


def column_products_of_blocks(blocks: Blocks, task_vectors: bool) -> Float[Tensor, "columns n n"]:
    """The inner products of whole columns, or of their differences from the base."""

    def measure(index: int, rows: Rows) -> Tensor:
        return column_products(rows.task_vectors() if task_vectors else rows.models)

    return total(blocks, measure)


def slerp_weights(gram: Gram, t: float) -> Weights:
    """(sin((1−t)Ω), sin(tΩ)) / sin Ω with cos Ω = ⟨a, b⟩ / (‖a‖ ‖b‖); linear if nearly parallel.

    The angle is that of the normalised tensors, the sum is that of the tensors themselves.
    Source: Shoemake 1985.
    """
    norms = _norms(gram)
    norms = torch.where(norms > SMALL_NORM, norms, 1.0)
    cosine = (gram[..., 0, 1] / (norms[..., 0] * norms[..., 1])).clamp(-1, 1)
    return _on_the_arc(cosine, t, linear=cosine.abs() > NEARLY_PARALLEL)


def nuslerp_weights(gram: Gram, weights: Sequence[float]) -> Weights:
    """SLERP at t = w_2 / (w_1 + w_2), also for small angles."""
    norms = _norms(gram).clamp(min=1e-7)
    cosine = (gram[..., 0, 1] / (norms[..., 0] * norms[..., 1])).clamp(-1, 1)
    return _on_the_arc(cosine, weights[1] / sum(weights), linear=1 - cosine.square() <= 1e-16)


def _on_the_arc(cosine: Tensor, t: float, linear: Tensor) -> Weights:
    angle = torch.acos(torch.where(linear, 0.0, cosine))
    first = torch.where(linear, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    second = torch.where(linear, t, torch.sin(t * angle) / torch.sin(angle))
    return torch.stack((first, second), -1)


def karcher_weights(
    gram: Float[Tensor, "n n"], shares: Sequence[float], max_iter: int, tol: float
) -> Float[Tensor, " n"]:
    """The mean on the unit sphere by tangent steps from the plain mean, times Σ w_k ‖θ_k‖.

    With unit vectors u_k the mean is m = Σ c_k u_k; a step adds the average of the tangents
    θ_k / sin θ_k · (u_k − cos θ_k · m), cos θ_k = ⟨m, u_k⟩, and follows the great circle.
    """
    norms = _norms(gram)
    scale = sum(share * float(norm) for share, norm in zip(shares, norms, strict=True))
    valid = norms > tol
    if not valid.any():
        return torch.zeros_like(norms)
    share = torch.tensor(shares, dtype=torch.float64)[valid]
    share = share / share.sum()
    units = gram[valid][:, valid] / (norms[valid, None] * norms[None, valid])
    mean = share.clone()
    length = _length(mean, units)
    mean = mean / length if length >= tol else torch.eye(len(mean), dtype=torch.float64)[0]
    for _ in range(max_iter):
        cosine = (units @ mean).clamp(-1, 1)
        angle = torch.acos(cosine)
        stretch = torch.where(angle < tol, 0.0, share * angle / torch.sin(angle))
        tangent = stretch - (stretch * cosine).sum() * mean
        length = _length(tangent, units)
        if length < tol:
            break
        mean = torch.cos(length) * mean + torch.sin(length) / length * tangent
        mean = mean / _length(mean, units)
    found = torch.zeros_like(norms)
    found[valid] = scale * mean / norms[valid]
    return found


def model_stock_share(gram: Gram) -> Float[Tensor, "*batch"]:
    """N cos θ / (1 + (N − 1) cos θ): how far from the base to the mean of N models.

    cos θ is the mean cosine between two task vectors, whose inner products `gram` has; where the
    denominator vanishes the base is kept. Source: arXiv 2403.19522.
    """
    norms, count = _norms(gram), gram.shape[-1]
    upper = torch.triu_indices(count, count, offset=1)
    products = norms[..., upper[0]] * norms[..., upper[1]]
    cosines = gram[..., upper[0], upper[1]] / products.clamp(min=SMALL_PRODUCT)
    cosine = cosines.clamp(-1, 1).mean(-1)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < SMALL_PRODUCT
    return torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, denominator))


def _norms(gram: Gram) -> Weights:
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def _length(coefficients: Float[Tensor, " n"], gram: Float[Tensor, "n n"]) -> Tensor:
    return (coefficients @ gram @ coefficients).clamp(min=0).sqrt()
