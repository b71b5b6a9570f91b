"""Decoding one sequence: five kernels a layer, bound by the bandwidth of memory alone.

With one row every matrix product is a sum over each row of a weight, so norms, RoPE, residual and
activation are done where their values are read. A program holds the whole vector in registers and
takes whole rows of the weight, the next ones on their way while it sums these; its first rows it
asks for before it waits for the kernel before it (programmatic dependent launch), so memory is
busy between kernels too. Rounding is as in `elementwise.py`.

Shapes: W hidden width, H query heads, K key heads, D head width, I inner width, N rows of a weight.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from singalaut.generate.kernels.attention import (
    GROUP_ROWS,
    AttentionScratch,
    finish,
    span,
)
from singalaut.generate.kernels.bytes import row_sums, split_in_bytes
from singalaut.generate.kernels.elementwise import gelu, normed, normed_halves, rotated
from singalaut.generate.kernels.matmul import Matrix, Quantised, values_of
from singalaut.model.paged import PAGE_TOKENS

RESIDENT_THREADS = (1024, 896, 768, 640, 512)  # of a multiprocessor, at which a kernel may run
TILE = 8192  # weights that a program holds at once


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
    weight: Matrix,
    out: Tensor,
    *,
    gated: bool,
) -> None:
    """new_x = x + norm_post(y); out = weight · norm_following(new_x).

    `gated`: the weight is gate above up, and out = gelu_tanh(gate part) · up part.
    """
    values, kind, tile = _as_read(weight)
    count, width = out.shape[-1], values_of(weight).shape[1]
    programs, rows, warps = _shape(count, width, tile // 2 if gated else tile)
    _norm_matvec[programs,](
        x, y, post, following, eps, new_x, values, _scales_of(weight), out,
        COUNT=count, WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=rows, GATED=gated,
        NATIVE=x.is_cuda, OVERLAP=_overlaps(x), num_warps=warps, **kind, **_launch(x),
    )  # fmt: skip


def matvec(weight: Matrix, vector: Tensor, out: Tensor) -> None:
    """out = weight · vector, float32 sums in the dtype of `out`."""
    values, kind, tile = _as_read(weight)
    count, width = values_of(weight).shape
    programs, rows, warps = _shape(count, width, tile)
    _matvec[programs,](
        values, _scales_of(weight), vector, out, COUNT=count, WIDTH=width,
        BLOCK=triton.next_power_of_2(width), ROWS=rows, NATIVE=vector.is_cuda,
        OVERLAP=_overlaps(vector), num_warps=warps, **kind, **_launch(vector),
    )  # fmt: skip


def _as_read(weight: Matrix) -> tuple[Tensor, dict[str, bool], int]:
    """A weight as kernels read it, what they have to know of it, and weights in a tile.

    Bytes come four to a word, and twice as many at once: as many bytes as others.
    """
    values = values_of(weight)
    in_words = values.dtype == torch.int8 and values.shape[1] % 4 == 0
    kind = {"SCALED": isinstance(weight, Quantised), "IN_WORDS": in_words}
    return (values.view(torch.int32), kind, 2 * TILE) if in_words else (values, kind, TILE)


def _scales_of(weight: Matrix) -> Tensor:
    return weight.scales if isinstance(weight, Quantised) else weight


def _shape(count: int, width: int, tile: int) -> tuple[int, int, int]:
    """Programs, rows of a weight that each takes at once, and warps.

    Every program takes its rows in rounds; the number of programs is one at which the last round
    leaves few of them idle.
    """
    block = triton.next_power_of_2(width)
    warps = 4 if block <= 1024 else 8 if block <= 8192 else 16
    units = multiprocessors()
    rows = max(1, tile // block)
    most = units * RESIDENT_THREADS[0] // (32 * warps)
    rows = min(rows, triton.next_power_of_2(triton.cdiv(count, most)))
    blocks = triton.cdiv(count, rows)
    best, best_share = 1, 0.0
    for threads in RESIDENT_THREADS:
        programs = min(units * threads // (32 * warps), blocks)
        share = blocks / (programs * triton.cdiv(blocks, programs))
        if share > best_share + 0.05:
            best, best_share = programs, share
    return best, rows, warps


@cache
def multiprocessors() -> int:
    """Of the current device; a handful where there is none, for the interpreter."""
    if not torch.cuda.is_available():
        return 4
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


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
        scratch.out, scratch.sums, scratch.counters, scale, keys.stride(0), table.stride(0),
        WINDOW=window or 0, HEADS=heads, KEY_HEADS=key_heads, GROUP=heads // key_heads,
        ROWS=GROUP_ROWS, D=width, BLOCK=PAGE_TOKENS, SPLITS=splits, LEAST=1,
        OVERLAP=_overlaps(qkv), num_warps=4, num_stages=2, **_launch(qkv),
    )  # fmt: skip


def _overlaps(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (9, 0)


def _launch(tensor: Tensor) -> dict[str, bool]:
    return {"launch_pdl": True} if _overlaps(tensor) else {}


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
def _tile(weight, first_row, count, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Some whole rows of a weight; nothing is read beyond its `count` rows."""
    row, at = first_row + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    place = weight + row.to(tl.int64)[:, None] * WIDTH + at[None, :]
    return tl.load(place, mask=(row < count)[:, None] & (at < WIDTH)[None, :], other=0.0)


@triton.jit
def _as_factor(x, BLOCK: tl.constexpr, IN_WORDS: tl.constexpr):
    """The row as `_sums` takes it: as it is, or split in bytes."""
    if IN_WORDS:
        return split_in_bytes(x, BLOCK)
    else:
        return x


@triton.jit
def _sums(w, x, IN_WORDS: tl.constexpr, NATIVE: tl.constexpr):
    """Sums over the rows of a tile times the row."""
    if IN_WORDS:
        return row_sums(w, x[0], x[1], x[2], NATIVE)
    else:
        return tl.sum(w.to(tl.float32) * x[None, :], 1)


@triton.jit
def _scaled(sums, scales, row, count, SCALED: tl.constexpr):
    """Sums over rows of an eight-bit weight, by the scale of each row."""
    if SCALED:
        sums *= tl.load(scales + row, mask=row < count, other=0.0)
    return sums


@triton.jit
def _norm_matvec(
    x, y, post, following, eps, new_x, weight, scales, out,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    GATED: tl.constexpr, SCALED: tl.constexpr, IN_WORDS: tl.constexpr, NATIVE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    READ: tl.constexpr = WIDTH // 4 if IN_WORDS else WIDTH
    READ_BLOCK: tl.constexpr = BLOCK // 4 if IN_WORDS else BLOCK
    program, step = tl.program_id(0), tl.num_programs(0) * ROWS
    first_row = program * ROWS
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    DTYPE: tl.constexpr = out.dtype.element_ty
    w = _tile(weight, first_row, COUNT, ROWS, READ, READ_BLOCK)
    u = w
    if GATED:
        u = _tile(weight + COUNT * READ, first_row, COUNT, ROWS, READ, READ_BLOCK)
    post_weight = tl.load(post + at, mask=inside, other=0.0).to(tl.float32)
    following_weight = tl.load(following + at, mask=inside, other=0.0).to(tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    added = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    new = tl.load(x + at, mask=inside, other=0.0) + normed(added, post_weight, eps, WIDTH)
    if program == 0:
        tl.store(new_x + at, new, mask=inside)
    h = normed(new, following_weight, eps, WIDTH).to(DTYPE).to(tl.float32)
    h = _as_factor(h, BLOCK, IN_WORDS)
    for start in range(first_row, COUNT, step):
        next_w = _tile(weight, start + step, COUNT, ROWS, READ, READ_BLOCK)
        next_u = next_w
        if GATED:
            next_u = _tile(weight + COUNT * READ, start + step, COUNT, ROWS, READ, READ_BLOCK)
        row = start + tl.arange(0, ROWS)
        sums = _scaled(_sums(w, h, IN_WORDS, NATIVE), scales, row, COUNT, SCALED)
        if GATED:
            ups = _sums(u, h, IN_WORDS, NATIVE)
            ups = _scaled(ups, scales + COUNT, row, COUNT, SCALED).to(DTYPE).to(tl.float32)
            sums = gelu(sums.to(DTYPE).to(tl.float32)).to(DTYPE).to(tl.float32) * ups
        tl.store(out + row, sums, mask=row < COUNT)
        w, u = next_w, next_u


@triton.jit
def _matvec(
    weight, scales, vector, out,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    SCALED: tl.constexpr, IN_WORDS: tl.constexpr, NATIVE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    READ: tl.constexpr = WIDTH // 4 if IN_WORDS else WIDTH
    READ_BLOCK: tl.constexpr = BLOCK // 4 if IN_WORDS else BLOCK
    step = tl.num_programs(0) * ROWS
    first_row = tl.program_id(0) * ROWS
    at = tl.arange(0, BLOCK)
    w = _tile(weight, first_row, COUNT, ROWS, READ, READ_BLOCK)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(vector + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    x = _as_factor(x, BLOCK, IN_WORDS)
    for start in range(first_row, COUNT, step):
        next_w = _tile(weight, start + step, COUNT, ROWS, READ, READ_BLOCK)
        row = start + tl.arange(0, ROWS)
        sums = _sums(w, x, IN_WORDS, NATIVE)
        sums = _scaled(sums, scales, row, COUNT, SCALED)
        tl.store(out + row, sums, mask=row < COUNT)
        w = next_w


@triton.jit
def _load_page(keys, values, base, D: tl.constexpr, BLOCK: tl.constexpr):
    """Keys of a page, transposed, in halves, and its values."""
    half, at, place = tl.arange(0, D // 2), tl.arange(0, D), tl.arange(0, BLOCK)
    key_place = keys + base + place[None, :] * D + half[:, None]
    value_place = values + base + place[:, None] * D + at[None, :]
    return tl.load(key_place), tl.load(key_place + D // 2), tl.load(value_place)


@triton.jit
def _see_page(
    qa, qb, ka, kb, v, key_position, first, position, scale, best, total, acc
):  # fmt: skip
    """The running softmax after one more page of earlier keys."""
    is_seen = (key_position >= first) & (key_position < position)
    scores = tl.dot(qa, ka, input_precision="ieee")
    scores = tl.dot(qb, kb, scores, input_precision="ieee") * scale
    scores = tl.where(is_seen[None, :], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    # a page may hold no key but the new one, and then nothing is known yet
    anchor = tl.where(new_best == float("-inf"), 0.0, new_best)
    shrink = tl.exp(best - anchor)
    weights = tl.exp(scores - anchor[:, None])
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_best, total, acc


@triton.jit
def _attend_row(
    qkv, query_norm, key_norm, eps, cos, sin, positions, slots, table, keys, values, out,
    part_out, part_sums, counters, scale, head_stride, table_stride,
    WINDOW: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    LEAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0), tl.program_id(1)
    HALF: tl.constexpr = D // 2
    DTYPE: tl.constexpr = qkv.dtype.element_ty
    half, at, group = tl.arange(0, HALF), tl.arange(0, D), tl.arange(0, ROWS)
    place = tl.arange(0, BLOCK)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    # positions, pages and earlier keys are from the step before: they need not be waited for
    slot = tl.load(slots).to(tl.int64)
    position = tl.load(positions + slot)
    first, begin, end, active = span(position, position, split, WINDOW, SPLITS, BLOCK, LEAST)
    if split < active:
        pages = table + slot * table_stride
        offset = head.to(tl.int64) * head_stride
        base = offset + tl.load(pages + begin).to(tl.int64) * (BLOCK * D)
        old_ka, old_kb, old_v = _load_page(keys, values, base, D, BLOCK)
        c = tl.load(cos + position.to(tl.int64) * HALF + half).to(tl.float32)
        s = tl.load(sin + position.to(tl.int64) * HALF + half).to(tl.float32)
        q_weight_a = tl.load(query_norm + half).to(tl.float32)
        q_weight_b = tl.load(query_norm + HALF + half).to(tl.float32)
        k_weight_a = tl.load(key_norm + half).to(tl.float32)
        k_weight_b = tl.load(key_norm + HALF + half).to(tl.float32)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        is_query = (group < GROUP)[:, None]
        query_at = qkv + (head * GROUP + group[:, None]) * D + half[None, :]
        qa = tl.load(query_at, mask=is_query, other=0.0).to(tl.float32)
        qb = tl.load(query_at + HALF, mask=is_query, other=0.0).to(tl.float32)
        key_at = qkv + (HEADS + head) * D + half
        ka, kb = tl.load(key_at).to(tl.float32), tl.load(key_at + HALF).to(tl.float32)
        value = tl.load(qkv + (HEADS + KEY_HEADS + head) * D + at)
        rate = tl.rsqrt((tl.sum(qa * qa, 1) + tl.sum(qb * qb, 1)) / D + eps)[:, None]
        qa = (qa * rate * (1.0 + q_weight_a)[None, :]).to(DTYPE).to(tl.float32)
        qb = (qb * rate * (1.0 + q_weight_b)[None, :]).to(DTYPE).to(tl.float32)
        qa, qb = rotated(qa, qb, c[None, :], s[None, :], DTYPE)
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, D], tl.float32)
        if split == active - 1:  # the new key is seen here, and stored for the next step
            ka, kb = normed_halves(ka, kb, k_weight_a, k_weight_b, eps, D, DTYPE)
            new_a, new_b = rotated(ka, kb, c, s, DTYPE)
            page = tl.load(pages + position // BLOCK).to(tl.int64)
            target = offset + (page * BLOCK + position % BLOCK) * D
            tl.store(keys + target + half, new_a)
            tl.store(keys + target + HALF + half, new_b)
            tl.store(values + target + at, value)
            best = tl.sum(qa.to(tl.float32) * new_a.to(tl.float32)[None, :], 1)
            best += tl.sum(qb.to(tl.float32) * new_b.to(tl.float32)[None, :], 1)
            best *= scale
            total += 1.0
            acc += value.to(tl.float32)[None, :]
        best, total, acc = _see_page(
            qa, qb, old_ka, old_kb, old_v, begin * BLOCK + place, first, position, scale,
            best, total, acc,
        )  # fmt: skip
        for number in range(begin + 1, end):
            base = offset + tl.load(pages + number).to(tl.int64) * (BLOCK * D)
            old_ka, old_kb, old_v = _load_page(keys, values, base, D, BLOCK)
            best, total, acc = _see_page(
                qa, qb, old_ka, old_kb, old_v, number * BLOCK + place, first, position, scale,
                best, total, acc,
            )  # fmt: skip
        finish(
            acc, best, total, out + head * GROUP * D, part_out, part_sums, counters + head,
            head * SPLITS + split, split, active, GROUP, ROWS, D, SPLITS,
        )  # fmt: skip
