"""Attention of one token a row over pages, keys split between programs where rows are few.

Each program takes one row, one key head and a share of its pages; query heads that share a key head
are the rows of its matrix products. The last program of a row to finish joins the shares, always in
the same order. With one share the result depends on nothing but the row itself.
Source: arXiv 2311.01282 (split keys), 2205.14135 (running softmax).

Shapes: R rows, H query heads, K key heads, G = H / K, D head width, P pages.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from singalaut.model.paged import PAGE_TOKENS

LEAST_PAGES = 2  # for one program: with fewer, joining costs more than it saves
GROUP_ROWS = 16  # the fewest rows of a matrix product on tensor cores
TARGET_PROGRAMS = 264  # two for each multiprocessor of an H100


def choose_splits(rows: int, key_heads: int, most_keys: int) -> int:
    """How many programs share the keys of a row, as a power of two."""
    wanted = max(1, TARGET_PROGRAMS // (rows * key_heads))
    wanted = min(wanted, triton.cdiv(most_keys, PAGE_TOKENS), 64)
    return 1 << (wanted.bit_length() - 1)


class AttentionScratch:
    """Room for the shares of every row; counters return to zero by themselves."""

    def __init__(self, programs: int, head_dim: int, device: torch.device):
        shares = programs * GROUP_ROWS
        self.out = torch.empty(shares * head_dim, dtype=torch.float32, device=device)
        self.sums = torch.empty(2 * shares, dtype=torch.float32, device=device)
        self.counters = torch.zeros(programs, dtype=torch.int32, device=device)


def attend(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    scratch: AttentionScratch | None,
    positions: Tensor,
    slots: Tensor,
    table: Tensor,
    scale: float,
    window: int | None,
    splits: int,
    *,
    positions_by_slot: bool,
    lasts: Tensor | None = None,
) -> None:
    """out [R, H · D] from queries in `qkv`; each row sees its pages up to its own position.

    `lasts` [R]: up to these, of tokens that see the rest of their image as well.
    """
    key_heads, _, _, width = keys.shape
    rows, out_width = out.shape
    group = out_width // width // key_heads
    assert group <= GROUP_ROWS and group & (group - 1) == 0 and (splits == 1 or scratch is not None)
    room = (scratch.out, scratch.sums, scratch.counters) if scratch else (out, out, slots)
    _attend[rows, key_heads, splits](
        qkv, keys, values, out, *room, positions, positions if lasts is None else lasts, slots,
        table, scale, qkv.stride(0), keys.stride(0), table.stride(0),
        WINDOW=window or 0, KEY_HEADS=key_heads, GROUP=group, ROWS=GROUP_ROWS, D=width,
        BLOCK=PAGE_TOKENS, SPLITS=splits, LEAST=LEAST_PAGES, BY_SLOT=positions_by_slot,
        HAS_LASTS=lasts is not None,
        num_warps=2, num_stages=5,
    )  # fmt: skip


@triton.jit
def span(
    position, last, split,
    WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """First key of a token that sees up to `last`, its pages here, how many programs have any."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position + 1 - WINDOW, 0)
    first_page = first // BLOCK
    count = last // BLOCK + 1 - first_page
    each = tl.maximum(tl.cdiv(count, SPLITS), LEAST)
    begin = first_page + split * each
    end = tl.minimum(begin + each, first_page + count)
    return first, begin, end, tl.cdiv(count, each)


@triton.jit
def read_pages(
    q, keys, values, pages, offset, first, last, begin, end, scale,
    ROWS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weighted sum of values over some pages, greatest score and mass of each query.

    Places of a page that were never written hold finite numbers, whose weight is zero.
    """
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    place, at = tl.arange(0, BLOCK), tl.arange(0, D)
    key_place = place[None, :] * D + at[:, None]
    value_place = place[:, None] * D + at[None, :]
    for number in range(begin, end):
        base = offset + tl.load(pages + number).to(tl.int64) * (BLOCK * D)
        k = tl.load(keys + base + key_place)
        v = tl.load(values + base + value_place)
        key_position = number * BLOCK + place
        is_seen = (key_position >= first) & (key_position <= last)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        shrink = tl.exp(best - new_best)
        weights = tl.exp(scores - new_best[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        best = new_best
    return acc, best, total


@triton.jit
def finish(
    acc, best, total, out_row, part_out, part_sums, counter, share, split, active,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Write a program's share down; the last program of a row joins them all."""
    group, at = tl.arange(0, ROWS), tl.arange(0, D)
    is_query = group < GROUP
    sums_at = part_sums + share * 2 * GROUP + group
    part_at = part_out + (share * GROUP + group[:, None]) * D + at[None, :]
    tl.store(part_at, acc, mask=is_query[:, None])
    tl.store(sums_at, best, mask=is_query)
    tl.store(sums_at + GROUP, total, mask=is_query)
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel") == active - 1:
        tl.debug_barrier()
        TOGETHER: tl.constexpr = 8 if SPLITS > 8 else SPLITS
        _join(out_row, part_out, part_sums, share - split, active, GROUP, D, SPLITS, TOGETHER)
        tl.store(counter, 0)


@triton.jit
def _attend(
    qkv, keys, values, out, part_out, part_sums, counters, positions, lasts, slots, table, scale,
    row_stride, head_stride, table_stride,
    WINDOW: tl.constexpr, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr,
    BY_SLOT: tl.constexpr, HAS_LASTS: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + row).to(tl.int64)
    place = row
    if BY_SLOT:
        place = slot
    position = tl.load(positions + place)
    last = position
    if HAS_LASTS:
        last = tl.load(lasts + row)
    first, begin, end, active = span(position, last, split, WINDOW, SPLITS, BLOCK, LEAST)
    if split < active:
        group, at = tl.arange(0, ROWS), tl.arange(0, D)
        is_query = (group < GROUP)[:, None]
        head_at = (head * GROUP + group[:, None]) * D + at[None, :]
        q = tl.load(qkv + row * row_stride + head_at, mask=is_query, other=0.0)
        acc, best, total = read_pages(
            q, keys, values, table + slot * table_stride, head.to(tl.int64) * head_stride,
            first, last, begin, end, scale, ROWS, D, BLOCK,
        )  # fmt: skip
        out_row = out + row * (KEY_HEADS * GROUP * D)
        if SPLITS == 1:
            tl.store(out_row + head_at, acc / total[:, None], mask=is_query)
        else:
            number = row * KEY_HEADS + head
            finish(
                acc, best, total, out_row + head * GROUP * D, part_out, part_sums,
                counters + number, number * SPLITS + split, split, active, GROUP, ROWS, D, SPLITS,
            )  # fmt: skip


@triton.jit
def _join(
    out_row, part_out, part_sums, first_share, active,
    GROUP: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """The weighted mean of the shares of one row, in their order; G queries of D at `out_row`."""
    group, at = tl.arange(0, GROUP), tl.arange(0, D)
    number = tl.arange(0, SPLITS)
    exists = (number < active)[:, None]
    sums_at = part_sums + (first_share + number[:, None]) * 2 * GROUP + group[None, :]
    bests = tl.load(sums_at, mask=exists, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(sums_at + GROUP, mask=exists, other=0.0, cache_modifier=".cg")
    best = tl.max(bests, 0)
    total = tl.sum(totals * tl.exp(bests - best[None, :]), 0)
    acc = tl.zeros([GROUP, D], tl.float32)
    for start in range(0, active, TOGETHER):
        some = start + tl.arange(0, TOGETHER)
        is_there = (some < active)[:, None]
        share = first_share + some[:, None]
        share_at = part_sums + share * 2 * GROUP + group[None, :]
        share_best = tl.load(share_at, mask=is_there, other=float("-inf"), cache_modifier=".cg")
        part_at = part_out + (share * GROUP + group[None, :])[:, :, None] * D + at[None, None, :]
        part = tl.load(part_at, mask=is_there[:, :, None], other=0.0, cache_modifier=".cg")
        acc += tl.sum(part * tl.exp(share_best - best[None, :])[:, :, None], 0)
    tl.store(out_row + group[:, None] * D + at[None, :], acc / total[:, None])
