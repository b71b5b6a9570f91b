"""The AdamW step of weights in bfloat16 as one Triton kernel a tensor: all is read once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def adamw_step(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    master: Tensor | None,
    numbers: tuple[float, ...],
    seed: int,
) -> None:
    """What `optim.plain_step` does, with other random bits."""
    if not weight.numel():
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
