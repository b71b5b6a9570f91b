"""The norm that text decoder and projector share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RmsNorm(nn.Module):
    """x / √(mean(x²) + eps) · (1 + weight), in float32, cast after the product.

    The result has the weight's dtype, or `dtype` where one is given.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "*batch W"], dtype: torch.dtype | None = None
    ) -> Float[Tensor, "*batch W"]:
        scale = 1.0 + self.weight.float()
        normed = nn.functional.rms_norm(x.float(), scale.shape, scale, self.eps)
        return normed.to(dtype or self.weight.dtype)
