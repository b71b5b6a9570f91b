"""Products of some rows with a weight in eight bits, which is read once and widened in registers.

The weight is the left side of the products on tensor cores, whose entries may come from registers,
so that a widened weight never goes through shared memory again. Where a weight has too few rows to
keep the device busy, several programs share its width, and the last of them to finish adds up their
sums, always in the same order. How many there are depends on the number of rows: a row's last bits
depend on its company. For products that do not, see `matmul.py`.

Shapes: R rows, W width, N rows of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from singalaut.generate.kernels.matmul import GROUP_ROWS, Quantised, tile_of

AT_ONCE = 128  # of the width
TARGET_PROGRAMS = 264  # two for each multiprocessor of an H100
LEAST_STEPS = 4  # of a program over the width: with fewer, adding up costs more than it saves
MOST_SPLITS = 16


@dataclass(frozen=True)
class Tiling:
    """How a product is divided: a tile's rows, its rows of the weight, shares of the width."""

    rows: int
    out: int
    splits: int
    warps: int
    stages: int

    @classmethod
    def of(cls, rows: int, count: int, width: int, dtype: torch.dtype) -> Tiling:
        is_wide = dtype.itemsize == 4  # which fills shared memory twice as fast
        tile = min(64 if is_wide else 128, max(16, triton.next_power_of_2(rows)))
        out, warps, stages = (128, 8, 3) if tile == 128 else (64, 4, 2 if is_wide else 4)
        tiles = triton.cdiv(rows, tile) * triton.cdiv(count, out)
        steps = triton.cdiv(width, AT_ONCE)
        wanted = min(TARGET_PROGRAMS // tiles, steps // LEAST_STEPS, MOST_SPLITS)
        splits = 1 << (max(1, wanted).bit_length() - 1)
        return cls(tile, out, splits, warps, stages)


class SharesScratch:
    """Room for the sums of programs that share a width; counters return to zero by themselves."""

    def __init__(self, device: torch.device):
        most = TARGET_PROGRAMS * 128 * 128  # entries of all tiles that are ever shared
        self.parts = torch.empty(most, dtype=torch.float32, device=device)
        self.counters = torch.zeros(TARGET_PROGRAMS, dtype=torch.int32, device=device)


def narrow_product(
    x: Tensor,
    weight: Quantised,
    scratch: SharesScratch | None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x · weightᵀ, [R, N], sums in float32."""
    assert scratch is not None
    rows, (count, width) = len(x), weight.values.shape
    tiling = Tiling.of(rows, count, width, x.dtype)
    out = torch.empty(rows, count, dtype=out_dtype or x.dtype, device=x.device)
    grid = triton.cdiv(count, tiling.out) * triton.cdiv(rows, tiling.rows), tiling.splits
    share = AT_ONCE * triton.cdiv(triton.cdiv(width, AT_ONCE), tiling.splits)
    _narrow_product[grid](
        x, weight.values, weight.scales, out, scratch.parts, scratch.counters, rows, count, width,
        share, x.stride(0), weight.values.stride(0),
        GROUP=GROUP_ROWS, ROWS=tiling.rows, OUT=tiling.out, AT_ONCE=AT_ONCE, SPLITS=tiling.splits,
        EVEN=width % AT_ONCE == 0,
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _narrow_product(
    x, weight, scales, out, parts, counters, rows, count, width, share, row_stride, weight_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, AT_ONCE: tl.constexpr,
    SPLITS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(1)
    row_tile, out_tile = tile_of(tile, tl.cdiv(rows, ROWS), tl.cdiv(count, OUT), GROUP)
    place = out_tile * OUT + tl.arange(0, OUT)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    begin = split * share
    end = tl.minimum(begin + share, width)
    at = begin + tl.arange(0, AT_ONCE)
    is_place, is_row = (place < count)[:, None], (row < rows)[None, :]
    weight_at = weight + place.to(tl.int64)[:, None] * weight_stride + at[None, :]
    x_at = x + row.to(tl.int64)[None, :] * row_stride + at[:, None]
    DTYPE: tl.constexpr = x.dtype.element_ty
    acc = tl.zeros([OUT, ROWS], tl.float32)
    for _ in range(begin, end, AT_ONCE):
        if EVEN:
            w = tl.load(weight_at, mask=is_place, other=0.0)
            a = tl.load(x_at, mask=is_row, other=0.0)
        else:
            inside = at < width
            w = tl.load(weight_at, mask=is_place & inside[None, :], other=0.0)
            a = tl.load(x_at, mask=is_row & inside[:, None], other=0.0)
        acc = tl.dot(w.to(DTYPE), a, acc, input_precision="ieee")
        weight_at += AT_ONCE
        x_at += AT_ONCE
        at += AT_ONCE
    if SPLITS > 1:
        inner = tl.arange(0, OUT)[:, None] + tl.arange(0, ROWS)[None, :] * OUT
        first = parts + tile.to(tl.int64) * (SPLITS * OUT * ROWS) + inner
        tl.store(first + split * (OUT * ROWS), acc)
        tl.debug_barrier()
        is_last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == SPLITS - 1
        if is_last:
            tl.debug_barrier()
            acc = tl.zeros([OUT, ROWS], tl.float32)
            for other in range(SPLITS):
                acc += tl.load(first + other * (OUT * ROWS), cache_modifier=".cg")
            tl.store(counters + tile, 0)
            _finish(acc, scales, out, place, row, rows, count)
    else:
        _finish(acc, scales, out, place, row, rows, count)


@triton.jit
def _finish(acc, scales, out, place, row, rows, count):
    """Scale the sums [OUT, ROWS] and store them, [R, N]."""
    scaled = acc * tl.load(scales + place, mask=place < count, other=0.0)[:, None]
    target = out + row.to(tl.int64)[None, :] * count + place[:, None]
    tl.store(target, scaled, mask=(place < count)[:, None] & (row < rows)[None, :])
