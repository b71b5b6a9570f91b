"""What lies between the matrix products of a layer, fused so that each value is read once.

Rounding is that of the network in `model/gemma3.py`: the residual stream `x` in float32, norms in
float32 and their result in the dtype of the weights, products and sums of RoPE rounded one by one.

Shapes: R rows (tokens), W hidden width, H query heads, K key heads, D head width, I inner width.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from singalaut.model.paged import PAGE_TOKENS

PAGE = tl.constexpr(PAGE_TOKENS)


def embed(
    tokens: Tensor,
    slots: Tensor | None,
    table: Tensor,
    scale: float,
    norm: Tensor,
    eps: float,
    x: Tensor,
    h: Tensor,
) -> None:
    """x = table[token] · scale and h = norm(x); tokens are those of `slots` where given."""
    rows, width = x.shape
    _embed[rows,](
        tokens, slots, table, scale, norm, eps, x, h,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), BY_SLOT=slots is not None,
        num_warps=_warps(width),
    )  # fmt: skip


def add_norms(x: Tensor, y: Tensor, post: Tensor, following: Tensor, eps: float, h: Tensor) -> None:
    """x += norm_post(y) in place, and h = norm_following(x)."""
    rows, width = x.shape
    _add_norms[rows,](
        x, y, post, following, eps, h,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=_warps(width),
    )  # fmt: skip


def finish_qkv(
    qkv: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    table: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    *,
    positions_by_slot: bool,
) -> None:
    """Norm and RoPE of queries and keys in place; keys and values also go to their pages.

    `qkv` is [R, (H + 2 K) · D], `cos` and `sin` [positions, D / 2], `table` pages by slot, `keys`
    and `values` the store of one layer, [K, P, 32, D].
    """
    key_heads, _, _, width = keys.shape
    _finish_qkv[qkv.shape[0], heads + 2 * key_heads](
        qkv, query_norm, key_norm, eps, cos, sin, positions, slots, table, table.stride(0),
        keys, values, keys.stride(0), qkv.stride(0),
        HEADS=heads, KEY_HEADS=key_heads, HALF=width // 2, BY_SLOT=positions_by_slot,
        num_warps=1,
    )  # fmt: skip


def gelu_mul(gate_up: Tensor, out: Tensor) -> None:
    """out = gelu_tanh(gate) · up, of the halves of [R, 2 I]."""
    rows, inner = out.shape
    block = min(1024, triton.next_power_of_2(inner))
    _gelu_mul[rows, triton.cdiv(inner, block)](gate_up, out, INNER=inner, BLOCK=block, num_warps=4)


def set_pages(changes: Tensor, tables: tuple[Tensor, Tensor]) -> None:
    """Write rows (kind, slot, index, page) into the tables of both kinds."""
    count = changes.shape[0]
    _set_pages[triton.cdiv(count, 128),](
        changes, count, *tables, tables[0].stride(0), BLOCK=128, num_warps=4
    )


def _warps(width: int) -> int:
    return 4 if width <= 2048 else 8


@triton.jit
def normed(x, weight, eps, WIDTH: tl.constexpr):
    """x · rsqrt(mean(x²) + eps) · (1 + weight) in float32; masked places are zero."""
    rate = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    return x * rate * (1.0 + weight)


@triton.jit
def _embed(
    tokens, slots, table, scale, norm, eps, x, h,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BY_SLOT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    place = row
    if BY_SLOT:
        place = tl.load(slots + row)
    token = tl.load(tokens + place).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    values = tl.load(table + token * WIDTH + at, mask=inside, other=0.0)
    embedded = (values.to(tl.float32) * scale).to(table.dtype.element_ty)
    tl.store(x + row * WIDTH + at, embedded, mask=inside)
    weight = tl.load(norm + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(h + row * WIDTH + at, normed(embedded.to(tl.float32), weight, eps, WIDTH), mask=inside)


@triton.jit
def _add_norms(x, y, post, following, eps, h, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    old = tl.load(x + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(y + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(post + at, mask=inside, other=0.0).to(tl.float32)
    new = old + normed(added, weight, eps, WIDTH)
    tl.store(x + row * WIDTH + at, new, mask=inside)
    weight = tl.load(following + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(h + row * WIDTH + at, normed(new, weight, eps, WIDTH), mask=inside)


@triton.jit
def rotated(a, b, cos, sin, DTYPE: tl.constexpr):
    """Both halves of a head after RoPE, each product and sum rounded to `DTYPE`."""
    a_cos, b_cos = (a * cos).to(DTYPE).to(tl.float32), (b * cos).to(DTYPE).to(tl.float32)
    a_sin, b_sin = (a * sin).to(DTYPE).to(tl.float32), (b * sin).to(DTYPE).to(tl.float32)
    return (a_cos - b_sin).to(DTYPE), (b_cos + a_sin).to(DTYPE)


@triton.jit
def normed_halves(a, b, weight_a, weight_b, eps, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """The norm of a head that comes in two halves, rounded to `DTYPE`, in float32."""
    rate = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / WIDTH + eps)
    a = (a * rate * (1.0 + weight_a)).to(DTYPE).to(tl.float32)
    b = (b * rate * (1.0 + weight_b)).to(DTYPE).to(tl.float32)
    return a, b


@triton.jit
def _finish_qkv(
    qkv, query_norm, key_norm, eps, cos, sin, positions, slots, table, table_stride,
    keys, values, head_stride, row_stride,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr, BY_SLOT: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    place = row
    if BY_SLOT:
        place = slot
    position = tl.load(positions + place).to(tl.int64)
    at = tl.arange(0, HALF)
    source = qkv + row * row_stride + head * 2 * HALF + at
    DTYPE: tl.constexpr = qkv.dtype.element_ty
    a, b = tl.load(source), tl.load(source + HALF)
    if head < HEADS + KEY_HEADS:
        norm = query_norm
        if head >= HEADS:
            norm = key_norm
        weight_a = tl.load(norm + at).to(tl.float32)
        weight_b = tl.load(norm + HALF + at).to(tl.float32)
        a_n, b_n = normed_halves(
            a.to(tl.float32), b.to(tl.float32), weight_a, weight_b, eps, 2 * HALF, DTYPE
        )
        c = tl.load(cos + position * HALF + at).to(tl.float32)
        s = tl.load(sin + position * HALF + at).to(tl.float32)
        a, b = rotated(a_n, b_n, c, s, DTYPE)
        tl.store(source, a)
        tl.store(source + HALF, b)
    if head >= HEADS:
        page = tl.load(table + slot * table_stride + position // PAGE).to(tl.int64)
        store, key_head = keys, head - HEADS
        if head >= HEADS + KEY_HEADS:
            store, key_head = values, head - HEADS - KEY_HEADS
        target = store + key_head.to(tl.int64) * head_stride
        target += (page * PAGE + position % PAGE) * 2 * HALF + at
        tl.store(target, a)
        tl.store(target + HALF, b)


@triton.jit
def gelu(x):
    """gelu with the tanh approximation, in float32; tanh(z) = 2 · sigmoid(2 z) - 1."""
    z = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * z)


@triton.jit
def _gelu_mul(gate_up, out, INNER: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < INNER
    DTYPE: tl.constexpr = out.dtype.element_ty
    gate = tl.load(gate_up + row * 2 * INNER + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * INNER + INNER + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * INNER + at, gelu(gate).to(DTYPE).to(tl.float32) * up, mask=inside)


@triton.jit
def _set_pages(changes, count, globals_, windows, stride, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    kind = tl.load(changes + at * 4, mask=inside, other=0)
    slot = tl.load(changes + at * 4 + 1, mask=inside, other=0).to(tl.int64)
    index = tl.load(changes + at * 4 + 2, mask=inside, other=0)
    page = tl.load(changes + at * 4 + 3, mask=inside, other=0)
    tl.store(globals_ + slot * stride + index, page, mask=inside & (kind == 0))
    tl.store(windows + slot * stride + index, page, mask=inside & (kind == 1))


Kernel = Any  # what `triton.jit` makes has no types
