"""A linear layer whose weight can also be held packed for a CPU's matrix kernels.

With few rows, the CPU library behind `torch.nn.functional.linear` repacks the weight at every
call, which costs more than the product. Packing it once makes decoding two to four times
faster; it takes a second copy of the weights, so only the generation engine asks for it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

MAX_PACKED_ROWS = 64  # beyond this the unpacked product is as fast


class Linear(nn.Module):
    """y = x Wᵀ without bias; W is [out, in]."""

    packed: Tensor | None = None  # not a buffer: never saved, moved or trained

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        if self.packed is not None:
            rows = x.reshape(-1, x.shape[-1])
            if len(rows) <= MAX_PACKED_ROWS and not torch.is_grad_enabled():
                out = torch.ops.mkldnn._linear_pointwise(rows, self.packed, None, "none", [], "")
                return out.reshape(*x.shape[:-1], -1)
        return linear(x, self.weight)

    def pack(self) -> None:
        """Hold the weight packed as well, where this machine and dtype have such a kernel."""
        weight = self.weight.detach()
        self.packed = None
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_packing():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)

    def unpack(self) -> None:
        self.packed = None


def _has_packing() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
