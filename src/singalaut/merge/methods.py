"""Ways to combine the same tensor of several models: pure functions, computed in float32."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def linear(tensors: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """Σ w_k θ_k, divided by Σ w_k where `normalize`. Source: model soups, arXiv 2203.05482."""
    total = tensors[0].float() * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor.float(), alpha=weight)
    return total / sum(weights) if normalize else total
