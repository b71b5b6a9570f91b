"""Products of rows with a weight, in tiles of one size whatever the number of rows.

Every entry of the result is summed over the width in the same order and by the same instructions,
so a row gets the same bits in any company. The weight may be int8 or FP8 with a scale for each of
its rows: it is widened where it is used, and scaled at the end.

Shapes: R rows, W width, N rows of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS, TILE_OUT, TILE_WIDTH = 64, 64, 64
GROUP_ROWS = 8  # tiles of rows that go over the same part of the weight after each other
FP8_LARGEST = 448.0  # of the format e4m3
DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": FP8_LARGEST}


@dataclass
class Quantised:
    """A weight [N, W] in eight bits and the scale of each of its rows, [N]."""

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor, kind: str) -> Quantised:
        """`weight` rounded to `kind`, int8 or fp8, the largest value of a row exactly."""
        made = cls(
            torch.empty_like(weight, dtype=DTYPES[kind]),
            torch.empty(len(weight), dtype=torch.float32, device=weight.device),
        )
        made.fill(weight)
        return made

    def fill(self, weight: Tensor) -> None:
        """Take over other numbers, some rows at a time: float32 copies of a head are large."""
        kind = "int8" if self.values.dtype == torch.int8 else "fp8"
        for first in range(0, len(weight), 16384):
            part = weight[first : first + 16384].float()
            scales = part.abs().amax(1).clamp(min=1e-12) / LARGEST[kind]
            part = part / scales[:, None]
            self.values[first : first + 16384] = part.round() if kind == "int8" else part
            self.scales[first : first + 16384] = scales

    def dequantised(self) -> Tensor:
        return self.values.float() * self.scales[:, None]


Matrix = Tensor | Quantised


def values_of(matrix: Matrix) -> Tensor:
    return matrix.values if isinstance(matrix, Quantised) else matrix


def rows_of(matrix: Matrix, first: int, end: int) -> Matrix:
    if isinstance(matrix, Quantised):
        return Quantised(matrix.values[first:end], matrix.scales[first:end])
    return matrix[first:end]


def product(x: Tensor, weight: Matrix, out_dtype: torch.dtype | None = None) -> Tensor:
    """x · weightᵀ, [R, N], by tiles."""
    values = values_of(weight)
    scales = weight.scales if isinstance(weight, Quantised) else None
    rows, (count, width) = len(x), values.shape
    out = torch.empty(rows, count, dtype=out_dtype or x.dtype, device=x.device)
    tiles = triton.cdiv(rows, TILE_ROWS) * triton.cdiv(count, TILE_OUT)
    _product[tiles,](
        x, values, values if scales is None else scales, out, rows, x.stride(0),
        COUNT=count, WIDTH=width, SCALED=scales is not None, ROWS=TILE_ROWS, OUT=TILE_OUT,
        AT_ONCE=TILE_WIDTH, GROUP=GROUP_ROWS, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def fp8_product(x: Tensor, weight: Quantised, out_dtype: torch.dtype) -> Tensor:
    """x · weightᵀ with both in FP8: each row of `x` is scaled to the format's range."""
    rows, width = x.shape
    narrow = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    narrow_rows(x, narrow, scales)
    # row-wise scales give bfloat16 only
    out = torch._scaled_mm(
        narrow, weight.values.T, scales, weight.scales[None], out_dtype=torch.bfloat16
    )
    return out.to(out_dtype)


def narrow_rows(x: Tensor, out: Tensor, scales: Tensor) -> None:
    """out = x / scale in FP8, where the scale of a row brings its largest value to the limit."""
    rows, width = x.shape
    _narrow_rows[rows,](
        x, out, scales, WIDTH=width, BLOCK=triton.next_power_of_2(width), LARGEST=FP8_LARGEST,
        num_warps=4 if width <= 4096 else 8,
    )  # fmt: skip


@triton.jit
def _narrow_rows(
    x, out, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr
):  # fmt: skip
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = at < WIDTH
    values = tl.load(x + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), 0), 1e-12) / LARGEST
    narrow = tl.minimum(tl.maximum(values / scale, -LARGEST), LARGEST)
    tl.store(out + row * WIDTH + at, narrow.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def tile_of(program, row_tiles, out_tiles, GROUP: tl.constexpr):
    """The tile of a program: groups of rows go over the same part of the weight together."""
    group = program // (GROUP * out_tiles)
    first = group * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    within = program % (GROUP * out_tiles)
    return first + within % size, within // size


@triton.jit(do_not_specialize=["rows"])
def _product(
    x, weight, scales, out, rows, row_stride,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr,
    OUT: tl.constexpr, AT_ONCE: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_tile, out_tile = tile_of(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(COUNT, OUT), GROUP)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    place = out_tile * OUT + tl.arange(0, OUT)
    at = tl.arange(0, AT_ONCE)
    is_row, is_out = (row < rows)[:, None], (place < COUNT)[None, :]
    x_at = x + row.to(tl.int64)[:, None] * row_stride + at[None, :]
    weight_at = weight + place.to(tl.int64)[None, :] * WIDTH + at[:, None]
    DTYPE: tl.constexpr = x.dtype.element_ty
    acc = tl.zeros([ROWS, OUT], tl.float32)
    for start in range(0, WIDTH, AT_ONCE):
        inside = at < WIDTH - start
        a = tl.load(x_at + start, mask=is_row & inside[None, :], other=0.0)
        w = tl.load(weight_at + start, mask=is_out & inside[:, None], other=0.0)
        acc = tl.dot(a, w.to(DTYPE), acc, input_precision="ieee")
    if SCALED:
        acc *= tl.load(scales + place, mask=place < COUNT, other=0.0)[None, :]
    target = out + row.to(tl.int64)[:, None] * COUNT + place[None, :]
    tl.store(target, acc, mask=is_row & is_out)
