"""A linear layer whose weight can also be held packed for a CPU's matrix kernels.

With few rows, the CPU library behind `torch.nn.functional.linear` repacks the weight at every
call, which costs more than the product. Packing it once makes decoding two to four times
faster; it takes a second copy of the weights, so only the generation engine asks for it. A packed
copy may have fewer bits: decoding one sequence is bound by how fast weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from singalaut.errors import MachineError

MAX_PACKED_ROWS = 64  # beyond this the unpacked product is as fast
INT4_GROUP = 32  # weights of a row that share a scale and a least value
INT4_OUT = 16  # the kernel wants the rows of a weight in such multiples
PackedKind = Literal["int8", "int4"]


@dataclass(frozen=True)
class Float32:
    """The weight as it is."""

    packed: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Float32:
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight, 16))

    def product(self, rows: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        return torch.ops.mkldnn._linear_pointwise(rows, self.packed, None, "none", [], "")


@dataclass(frozen=True)
class Int8:
    """y = scale_row · scale_out · (high + low / 254) w₈ᵀ: sums of integers.

    A row of w and a row of x have a scale each. x takes part with 15 bits, in two rows of 8: its
    largest entries are so much larger than the others that with 8 bits these would be lost, and
    while weights are what takes time, the second row is free.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Int8:
        scales = weight.abs().amax(1).clamp(min=1e-12) / 127
        values = (weight / scales[:, None]).round().to(torch.int8)
        zeros = torch.zeros(len(weight), dtype=torch.int32)
        return cls(torch.ops.onednn.qlinear_prepack(values, None), scales, zeros)

    def product(self, rows: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        scale = rows.abs().amax(1, keepdim=True).clamp_(min=1e-12).div_(127)
        exact = rows.div(scale)
        high = exact.round()
        low = exact.sub_(high).mul_(254).round_()
        # 128 stands for zero: the processor multiplies unsigned by signed bytes
        both = torch.cat((high, low)).add_(128).to(torch.uint8)
        out = torch.ops.onednn.qlinear_pointwise(
            both, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        of_high, of_low = out.chunk(2)
        return of_high.add_(of_low, alpha=1 / 254).mul_(scale)


@dataclass(frozen=True)
class Int4:
    """Weights of 4 bits, scaled in groups of a row; products in bfloat16, sums in float32."""

    packed: Tensor
    scales: Tensor  # [groups, out, 2]: scale, and what the value 8 stands for
    width: int
    count: int

    @classmethod
    def of(cls, weight: Tensor) -> Int4:
        count, width = weight.shape
        whole = pad(weight, (0, -width % INT4_GROUP, 0, -count % INT4_OUT))
        groups = whole.unflatten(1, (-1, INT4_GROUP))
        least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((most - least) / 15).clamp(min=1e-12).bfloat16()
        middle = (least + 8 * scale.float()).bfloat16()
        values = ((groups - middle.float()) / scale.float() + 8).round().clamp(0, 15)
        values = values.flatten(1).to(torch.int32)
        both = torch.cat((scale, middle), dim=-1).transpose(0, 1).contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
        return cls(packed, both, width, count)

    def product(self, rows: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        x = pad(rows, (0, -self.width % INT4_GROUP)).bfloat16()
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, INT4_GROUP, self.scales)
        return out[:, : self.count].to(rows.dtype)


class Linear(nn.Module):
    """y = x Wᵀ without bias; W is [out, in]."""

    packed: Float32 | Int8 | Int4 | None = None  # not a buffer: never saved, moved or trained

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        packed = self.packed
        if packed is not None and not torch.is_grad_enabled():
            rows = x.reshape(-1, x.shape[-1])
            if len(rows) <= MAX_PACKED_ROWS or not isinstance(packed, Float32):
                return packed.product(rows).reshape(*x.shape[:-1], -1)
        return linear(x, self.weight)

    def pack(self, kind: PackedKind | None = None) -> None:
        """Hold the weight packed as well, where this machine and dtype have such a kernel.

        Raises: MachineError where fewer bits are wanted and cannot be had.
        """
        weight = self.weight.detach()
        self.packed = None
        fits = weight.device.type == "cpu" and weight.dtype == torch.float32
        if kind is not None:
            if not fits or not _has_kernel(kind):
                raise MachineError(
                    f"weights in {kind} need a CPU and this PyTorch's kernels for it",
                    hint="leave `weights` out; on a GPU, use int8 or fp8",
                )
            self.packed = Int8.of(weight) if kind == "int8" else Int4.of(weight)
        elif fits and _has_packing():
            self.packed = Float32.of(weight)

    def unpack(self) -> None:
        self.packed = None


def _has_packing() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


def _has_kernel(kind: PackedKind) -> bool:
    if kind == "int8":
        return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_prepack")
    return hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
