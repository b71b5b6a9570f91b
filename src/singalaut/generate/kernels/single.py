"""Decoding one sequence: five kernels a layer, bound by the bandwidth of memory alone.

With one row every matrix product is a sum over rows of a weight, so norms, RoPE, residual and
activation are done where their values are read. Each kernel asks for its weights before it waits
for the kernel before it, so memory is never idle between kernels (programmatic dependent launch).
Rounding is as in `elementwise.py`.

Shapes: W hidden width, H query heads, K key heads, D head width, I inner width, N rows of a weight.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from singalaut.generate.kernels.attention import (
    GROUP_ROWS,
    LEAST_PAGES,
    AttentionScratch,
    finish,
    read_pages,
    span,
)
from singalaut.generate.kernels.elementwise import gelu, normed, normed_halves, rotated
from singalaut.model.config import Gemma3Config
from singalaut.model.paged import PAGE_TOKENS

CAN_OVERLAP = hasattr(tl.extra, "cuda") and hasattr(tl.extra.cuda, "gdc_wait")
BLOCK_ROWS, BLOCK_COLUMNS, UNROLL = 16, 256, 4
LINE_BYTES = 128
MOST_PROGRAMS = 528  # of kernels that compute a norm first, which is work for each program


def add_norms_row(
    x: Tensor,
    y: Tensor,
    post: Tensor,
    following: Tensor,
    eps: float,
    new_x: Tensor,
    h: Tensor,
) -> None:
    """new_x = x + norm_post(y), h = norm_following(new_x), of one row."""
    width = x.shape[-1]
    _add_norms_row[1,](
        x, y, post, following, eps, new_x, h, WIDTH=width, BLOCK=triton.next_power_of_2(width),
        OVERLAP=_overlaps(x), num_warps=8, **_launch(x),
    )  # fmt: skip


def norm_matvec(
    x: Tensor,
    y: Tensor,
    post: Tensor,
    following: Tensor,
    eps: float,
    new_x: Tensor,
    weight: Tensor,
    out: Tensor,
    scratch: Tensor,
    *,
    gated: bool,
) -> None:
    """new_x = x + norm_post(y); out = weight · norm_following(new_x).

    `gated`: the weight is gate above up, and out = gelu_tanh(gate part) · up part. `scratch` has W
    places for each program.
    """
    width = weight.shape[1]
    count = out.shape[-1]
    block_rows = _gated_rows(count) if gated else _block_rows(count)
    _norm_matvec[programs_of_norm_matvec(count, gated=gated),](
        x, y, post, following, eps, new_x, weight, out, scratch,
        COUNT=count, WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=block_rows,
        COLUMNS=BLOCK_COLUMNS, UNROLL=UNROLL, LINES_PADDED=_lines(block_rows, width),
        GATED=gated, OVERLAP=_overlaps(x), num_warps=4, **_launch(x),
    )  # fmt: skip


def matvec(weight: Tensor, vector: Tensor, out: Tensor) -> None:
    """out = weight · vector, float32 sums in the dtype of `out`."""
    rows, width = weight.shape
    block_rows = _block_rows(rows)
    _matvec[triton.cdiv(rows, block_rows),](
        weight, vector, out, COUNT=rows, WIDTH=width, ROWS=block_rows, COLUMNS=BLOCK_COLUMNS,
        UNROLL=UNROLL, LINES_PADDED=_lines(block_rows, width), OVERLAP=_overlaps(vector),
        num_warps=4, **_launch(vector),
    )  # fmt: skip


def attend_row(
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
    out: Tensor,
    scratch: AttentionScratch,
    scale: float,
    window: int | None,
    splits: int,
) -> None:
    """Norm, RoPE, the writing of key and value, and attention, of one row."""
    key_heads, _, _, width = keys.shape
    heads = out.shape[-1] // width
    _attend_row[key_heads, splits](
        qkv, query_norm, key_norm, eps, cos, sin, positions, slots, table, keys, values, out,
        scratch.queries, scratch.out, scratch.sums, scratch.counters, scale, keys.stride(0),
        table.stride(0),
        WINDOW=window or 0, HEADS=heads, KEY_HEADS=key_heads, GROUP=heads // key_heads,
        ROWS=GROUP_ROWS, D=width, BLOCK=PAGE_TOKENS, SPLITS=splits, LEAST=LEAST_PAGES,
        OVERLAP=_overlaps(qkv),
        num_warps=4, num_stages=2, **_launch(qkv),
    )  # fmt: skip


def most_programs(config: Gemma3Config) -> int:
    """Programs of the largest `norm_matvec` of a network, each of which needs its own copy."""
    heads = config.num_heads + 2 * config.num_kv_heads
    qkv = programs_of_norm_matvec(heads * config.head_dim, gated=False)
    return max(qkv, programs_of_norm_matvec(config.intermediate_size, gated=True))


def programs_of_norm_matvec(count: int, *, gated: bool) -> int:
    blocks = triton.cdiv(count, _gated_rows(count) if gated else _block_rows(count))
    return min(blocks, MOST_PROGRAMS)


def _block_rows(count: int) -> int:
    """Rows of a weight a program: fewer where there are too few to fill the device."""
    if count >= 16_384:
        return BLOCK_ROWS
    return 8 if count >= 4096 else 4


def _gated_rows(count: int) -> int:
    return 4 if count < 4096 else 8


def _lines(rows: int, width: int) -> int:
    return triton.next_power_of_2(rows * width * 2 // LINE_BYTES)


def _overlaps(tensor: Tensor) -> bool:
    return CAN_OVERLAP and tensor.is_cuda


def _launch(tensor: Tensor) -> dict[str, bool]:
    return {"launch_pdl": True} if _overlaps(tensor) else {}


@triton.jit
def _prefetch(weight, first, LINES: tl.constexpr, PADDED: tl.constexpr):
    """Ask for `LINES` cache lines of 128 bytes from the element `first` on."""
    line = tl.minimum(tl.arange(0, PADDED), LINES - 1)
    at = (weight + first).to(tl.int64) + line.to(tl.int64) * 128
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _dot_rows(
    weight, first_row, vector, count,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """weight[first_row …] · vector in float32, [ROWS]; rows from `count` on are zero."""
    row = first_row + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    base = weight + row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    exists = (row < count)[:, None]
    for start in range(0, WIDTH, COLUMNS * UNROLL):
        for part in tl.static_range(UNROLL):
            at = start + part * COLUMNS
            inside = at + column < WIDTH
            w = tl.load(base + at, mask=exists & inside[None, :], other=0.0)
            x = tl.load(vector + at + column, mask=inside, other=0.0)
            acc += w.to(tl.float32) * x.to(tl.float32)[None, :]
    return tl.sum(acc, 1)


@triton.jit
def _add_norms_row(
    x, y, post, following, eps, new_x, h,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    post_weight = tl.load(post + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(following + at, mask=inside, other=0.0).to(tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    added = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    old = tl.load(x + at, mask=inside, other=0.0)
    new = old + normed(added, post_weight, eps, WIDTH)
    tl.store(new_x + at, new, mask=inside)
    tl.store(h + at, normed(new, weight, eps, WIDTH), mask=inside)


@triton.jit
def _norm_matvec(
    x, y, post, following, eps, new_x, weight, out, scratch,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, UNROLL: tl.constexpr, LINES_PADDED: tl.constexpr,
    GATED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    first_row = program * ROWS
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    DTYPE: tl.constexpr = weight.dtype.element_ty
    if OVERLAP:
        LINES: tl.constexpr = (ROWS * WIDTH * 2) // 128
        start = tl.minimum(first_row, COUNT - ROWS).to(tl.int64) * WIDTH
        _prefetch(weight, start, LINES, LINES_PADDED)
        if GATED:
            _prefetch(weight, start + COUNT * WIDTH, LINES, LINES_PADDED)
        tl.extra.cuda.gdc_launch_dependents()
    post_weight = tl.load(post + at, mask=inside, other=0.0).to(tl.float32)
    following_weight = tl.load(following + at, mask=inside, other=0.0).to(tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    added = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    old = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    new = old + normed(added, post_weight, eps, WIDTH)
    if program == 0:
        tl.store(new_x + at, new, mask=inside)
    h = normed(new, following_weight, eps, WIDTH).to(DTYPE)
    # the program's own copy, so that its threads can read each other's part
    mine = scratch + program.to(tl.int64) * WIDTH
    tl.store(mine + at, h, mask=inside)
    tl.debug_barrier()
    for block in range(program, tl.cdiv(COUNT, ROWS), tl.num_programs(0)):
        first_row = block * ROWS
        row = first_row + tl.arange(0, ROWS)
        sums = _dot_rows(weight, first_row, mine, COUNT, WIDTH, ROWS, COLUMNS, UNROLL)
        if GATED:
            ups = _dot_rows(
                weight + COUNT * WIDTH, first_row, mine, COUNT, WIDTH, ROWS, COLUMNS, UNROLL
            )
            gate = gelu(sums.to(DTYPE).to(tl.float32)).to(DTYPE).to(tl.float32)
            sums = gate * ups.to(DTYPE).to(tl.float32)
        tl.store(out + row, sums, mask=row < COUNT)


@triton.jit
def _matvec(
    weight, vector, out,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr, LINES_PADDED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(0) * ROWS
    if OVERLAP:
        LINES: tl.constexpr = (ROWS * WIDTH * 2) // 128
        start = tl.minimum(first_row, COUNT - ROWS).to(tl.int64) * WIDTH
        _prefetch(weight, start, LINES, LINES_PADDED)
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    sums = _dot_rows(weight, first_row, vector, COUNT, WIDTH, ROWS, COLUMNS, UNROLL)
    row = first_row + tl.arange(0, ROWS)
    tl.store(out + row, sums, mask=row < COUNT)


@triton.jit
def _attend_row(
    qkv, query_norm, key_norm, eps, cos, sin, positions, slots, table, keys, values, out, queries,
    part_out, part_sums, counters, scale, head_stride, table_stride,
    WINDOW: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    LEAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0), tl.program_id(1)
    HALF: tl.constexpr = D // 2
    DTYPE: tl.constexpr = qkv.dtype.element_ty
    half, at = tl.arange(0, HALF), tl.arange(0, D)
    q_weight_a = tl.load(query_norm + half).to(tl.float32)
    q_weight_b = tl.load(query_norm + HALF + half).to(tl.float32)
    k_weight_a = tl.load(key_norm + half).to(tl.float32)
    k_weight_b = tl.load(key_norm + HALF + half).to(tl.float32)
    slot = tl.load(slots).to(tl.int64)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    position = tl.load(positions + slot)
    first, begin, end, active = span(position, split, WINDOW, SPLITS, BLOCK, LEAST)
    if split < active:
        c = tl.load(cos + position.to(tl.int64) * HALF + half).to(tl.float32)
        s = tl.load(sin + position.to(tl.int64) * HALF + half).to(tl.float32)
        group = tl.arange(0, ROWS)
        is_query = (group < GROUP)[:, None]
        query_at = qkv + (head * GROUP + group[:, None]) * D + half[None, :]
        qa = tl.load(query_at, mask=is_query, other=0.0).to(tl.float32)
        qb = tl.load(query_at + HALF, mask=is_query, other=0.0).to(tl.float32)
        rate = tl.rsqrt((tl.sum(qa * qa, 1) + tl.sum(qb * qb, 1)) / D + eps)[:, None]
        qa = (qa * rate * (1.0 + q_weight_a)[None, :]).to(DTYPE).to(tl.float32)
        qb = (qb * rate * (1.0 + q_weight_b)[None, :]).to(DTYPE).to(tl.float32)
        qa, qb = rotated(qa, qb, c[None, :], s[None, :], DTYPE)
        # the program's own copy, so that its threads can read each other's part
        mine = queries + (head * SPLITS + split) * ROWS * D
        tl.store(mine + group[:, None] * D + half[None, :], qa)
        tl.store(mine + group[:, None] * D + HALF + half[None, :], qb)
        pages = table + slot * table_stride
        offset = head.to(tl.int64) * head_stride
        if split == active - 1:  # the new key and value lie in the last page
            key_at = qkv + (HEADS + head) * D + half
            ka, kb = tl.load(key_at).to(tl.float32), tl.load(key_at + HALF).to(tl.float32)
            ka, kb = normed_halves(ka, kb, k_weight_a, k_weight_b, eps, D, DTYPE)
            ka, kb = rotated(ka, kb, c, s, DTYPE)
            page = tl.load(pages + position // BLOCK).to(tl.int64)
            target = offset + (page * BLOCK + position % BLOCK) * D
            tl.store(keys + target + half, ka)
            tl.store(keys + target + HALF + half, kb)
            value = tl.load(qkv + (HEADS + KEY_HEADS + head) * D + at)
            tl.store(values + target + at, value)
        tl.debug_barrier()
        q = tl.load(mine + group[:, None] * D + at[None, :])
        acc, best, total = read_pages(
            q, keys, values, pages, offset, first, position, begin, end, scale, ROWS, D, BLOCK
        )
        out_at = out + (head * GROUP + group[:, None]) * D + at[None, :]
        finish(
            acc, best, total, out_at, part_out, part_sums, counters + head,
            head * SPLITS + split, split, active, GROUP, ROWS, D, SPLITS,
        )  # fmt: skip
