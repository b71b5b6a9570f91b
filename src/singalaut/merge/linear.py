"""Weighted sums of models."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def weighted_sum(
    tensors: Sequence[Float[Tensor, "..."]], weights: Sequence[float]
) -> Float[Tensor, "..."]:
    """Σ w_k θ_k, made in place of the first tensor. Source: model soups, arXiv 2203.05482."""
    total = tensors[0].mul_(weights[0])
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def shares(weights: Sequence[float], normalize: bool) -> list[float]:
    """The weights, divided by their sum where `normalize`."""
    total = sum(weights) if normalize else 1.0
    return [weight / total for weight in weights]
