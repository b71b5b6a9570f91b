"""The AdamW step as one Triton kernel a tensor: all is read once, and written once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from singalaut.train.moments import BLOCK as CODED
from singalaut.train.moments import Coded

BLOCK = 1024
UNITS = 8  # blocks of 8-bit moments in one program


def adamw_step(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor | Coded,
    square: Tensor | Coded,
    master: Tensor | None,
    numbers: tuple[float, ...],
    seed: int,
) -> None:
    """What `adamw.plain_step` does, with other random bits."""
    if not weight.numel():
        return
    if isinstance(mean, Coded):
        assert isinstance(square, Coded)
        rows, columns = weight.shape
        blocks = mean.scales.shape[1]
        _coded_adamw[(triton.cdiv(rows * blocks, UNITS),)](
            weight, gradient, *mean, *square, weight if master is None else master,
            columns, blocks, rows * blocks, *numbers, seed,
            HAS_MASTER=master is not None, BLOCK=CODED, UNITS=UNITS, num_warps=4,
        )  # fmt: skip
        return
    _adamw[(triton.cdiv(weight.numel(), BLOCK),)](
        weight, gradient, mean, square, weight if master is None else master, weight.numel(),
        *numbers, seed, HAS_MASTER=master is not None, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


@triton.jit
def _rounded(x, bits, dtype: tl.constexpr):
    """A float32 number to a bfloat16 neighbour; `bits` has 16 random bits."""
    moved = (x.to(tl.int32, bitcast=True) + (bits & 0xFFFF).to(tl.int32)) & -65536
    is_finite = tl.abs(x) < float("inf")  # false for NaN too
    return tl.where(is_finite, moved.to(tl.float32, bitcast=True), x).to(dtype)


@triton.jit(do_not_specialize=["seed"])
def _adamw(
    weight, gradient, mean, square, master, count,
    rate, decay, root_correction, first, second, eps, seed,
    HAS_MASTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    g = tl.load(gradient + at, mask=there, other=0.0).to(tl.float32)
    m = tl.load(mean + at, mask=there, other=0.0).to(tl.float32)
    v = tl.load(square + at, mask=there, other=0.0).to(tl.float32)
    w = tl.load(master + at, mask=there, other=0.0).to(tl.float32)
    m += (1 - first) * (g - m)
    v = second * v + (1 - second) * g * g
    w = w * (1 - decay) - rate * m / (tl.sqrt(v) / root_correction + eps)
    dtype: tl.constexpr = weight.dtype.element_ty
    if HAS_MASTER:
        tl.store(master + at, w, mask=there)
        tl.store(weight + at, w.to(dtype), mask=there)
        tl.store(mean + at, m, mask=there)
        tl.store(square + at, v, mask=there)
    else:
        a, b, c, _ = tl.randint4x(seed, at.to(tl.int32), n_rounds=7)
        tl.store(weight + at, _rounded(w, a, dtype), mask=there)
        tl.store(mean + at, _rounded(m, b, dtype), mask=there)
        tl.store(square + at, _rounded(v, c, dtype), mask=there)


@triton.jit(do_not_specialize=["seed"])
def _coded_adamw(
    weight, gradient, mean, mean_scale, square, square_scale, master, columns, blocks, count,
    rate, decay, root_correction, first, second, eps, seed,
    HAS_MASTER: tl.constexpr, BLOCK: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Each program takes `UNITS` blocks, each of which lies in one row."""
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    column = (unit % blocks)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    at = (unit // blocks).to(tl.int64)[:, None] * columns + column
    is_unit = unit < count
    there = is_unit[:, None] & (column < columns)
    g = tl.load(gradient + at, mask=there, other=0.0).to(tl.float32)
    w = tl.load(master + at, mask=there, other=0.0).to(tl.float32)
    m = tl.load(mean + at, mask=there, other=0).to(tl.float32) / 127.0
    v = tl.load(square + at, mask=there, other=0).to(tl.float32) / 255.0
    m = m * m * m * tl.load(mean_scale + unit, mask=is_unit, other=0.0)[:, None]
    v = v * v
    v = v * v * tl.load(square_scale + unit, mask=is_unit, other=0.0)[:, None]
    m += (1 - first) * (g - m)
    v = second * v + (1 - second) * g * g
    w = w * (1 - decay) - rate * m / (tl.sqrt(v) / root_correction + eps)
    a, b, c, _ = tl.randint4x(seed, at.to(tl.int32), n_rounds=7)
    dtype: tl.constexpr = weight.dtype.element_ty
    if HAS_MASTER:
        tl.store(master + at, w, mask=there)
        tl.store(weight + at, w.to(dtype), mask=there)
    else:
        tl.store(weight + at, _rounded(w, a, dtype), mask=there)
    size = tl.abs(m)
    largest = tl.max(size, 1)
    share = size / tl.maximum(largest, 1.17549435e-38)[:, None]
    guess = tl.exp2(tl.log2(tl.maximum(share, 1e-30)) * (1.0 / 3.0)) * 127.0
    low = tl.minimum(tl.floor(guess), 126.0)
    least, most = low * low * low, (low + 1) * (low + 1) * (low + 1)
    code = low + (_uniform(b) < (share * 2048383.0 - least) / (most - least)).to(tl.float32)
    code = tl.where(m < 0, -code, code)
    tl.store(mean + at, code.to(tl.int8), mask=there)
    tl.store(mean_scale + unit, largest, mask=is_unit)
    largest = tl.max(v, 1)
    share = v / tl.maximum(largest, 1.17549435e-38)[:, None]
    low = tl.minimum(tl.floor(tl.sqrt(tl.sqrt(share)) * 255.0), 254.0)
    least, most = low * low, (low + 1) * (low + 1)
    least, most = least * least, most * most
    code = low + (_uniform(c) < (share * 4228250625.0 - least) / (most - least)).to(tl.float32)
    code = tl.where(share > 0, tl.maximum(code, 1.0), code)
    tl.store(square + at, code.to(tl.uint8), mask=there)
    tl.store(square_scale + unit, largest, mask=is_unit)


@triton.jit
def _uniform(bits):
    """Random bits to a number in [0, 1)."""
    return (bits & 0xFFFFFF).to(tl.float32) * (1.0 / 16777216.0)
