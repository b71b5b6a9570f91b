"""Logits to tokens on the device: one pass over the vocabulary, then one number decides.

The rules are those of `generate/sampling.py`: the token at a share of the probability mass, in the
order of token ids. `scan` makes, for each row and each piece of the vocabulary, the greatest logit
and two masses, at temperature 1 and at the row's own; `pick` finds the piece, and the token in it.
Rows with a top-k are picked by `pick_filtered` among the best tokens. Both also move the answer's
state on by one token, so that the next step can begin before the host has seen it.

Shapes: R rows, V vocabulary, S slots, N pieces, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 4096
CANDIDATES = 128
LARGEST_TOP_K = CANDIDATES // 2
BAD_TOKEN = -1
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2 = tl.constexpr(0x94D049BB133111EB)


@dataclass(frozen=True)
class SlotState:
    """What the device knows of each slot, [S]; the last slot belongs to nobody.

    `position` is the place of `token` in the sequence, `prompt` the length of the prompt, `key` the
    answer's random key.
    """

    token: Tensor
    position: Tensor
    prompt: Tensor
    key: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    @classmethod
    def empty(cls, slots: int, device: torch.device | str) -> SlotState:
        ints = (torch.zeros(slots, dtype=torch.int32, device=device) for _ in range(4))
        floats = (torch.zeros(slots, dtype=torch.float32, device=device) for _ in range(3))
        token, position, prompt, top_k = ints
        temperature, top_p, min_p = floats
        key = torch.zeros(slots, dtype=torch.int64, device=device)
        return cls(token, position, prompt, key, temperature, top_k, top_p, min_p)


@dataclass(frozen=True)
class Picked:
    """Room for the results of R rows, and for what lies between the two passes.

    `results` has tokens and log-probabilities above each other, so that one copy fetches both.
    """

    results: Tensor
    tokens: Tensor
    logprobs: Tensor
    pieces: Tensor  # [R, 4, N]: greatest logit, its token, mass, mass at the temperature

    @classmethod
    def empty(cls, rows: int, vocab_size: int, device: torch.device | str) -> Picked:
        results = torch.empty(2, rows, dtype=torch.int32, device=device)
        count = triton.cdiv(vocab_size, PIECE)
        pieces = torch.empty(rows, 4, count, dtype=torch.float32, device=device)
        return cls(results, results[0], results[1].view(torch.float32), pieces)


def sample(
    logits: Tensor,
    slots: Tensor,
    state: SlotState,
    picked: Picked,
    hidden_id: int,
    *,
    filtered: bool,
) -> None:
    """The next token of each row and its log-probability; moves the slots on by one token.

    `logits` are [R, V] of the tokens that can be sampled, but for `hidden_id`. Rows with values
    that are no numbers get the token `BAD_TOKEN`. `filtered` says that some rows have a top-k, of
    at most `LARGEST_TOP_K`; no row may have another filter without one.
    """
    rows, vocab = logits.shape
    pieces = picked.pieces.shape[2]
    padded = triton.next_power_of_2(pieces)
    _scan[rows, pieces](
        logits, slots, state.temperature, picked.pieces, logits.stride(0), hidden_id,
        VOCAB=vocab, PIECES=pieces, PIECE=PIECE, num_warps=8,
    )  # fmt: skip
    _pick[rows,](
        logits, slots, state.token, state.position, state.prompt, state.key, state.temperature,
        state.top_k, picked.pieces, picked.tokens, picked.logprobs, logits.stride(0), hidden_id,
        state.token.shape[0] - 1,
        VOCAB=vocab, PIECES=pieces, PADDED=padded, PIECE=PIECE, FILTERED=filtered, num_warps=8,
    )  # fmt: skip
    if filtered:
        values, ids = logits.topk(min(CANDIDATES, vocab))
        _pick_filtered[rows,](
            values, ids, slots, state.token, state.position, state.prompt, state.key,
            state.temperature, state.top_k, state.top_p, state.min_p,
            picked.pieces, picked.tokens, picked.logprobs, state.token.shape[0] - 1, hidden_id,
            COUNT=values.shape[1], BLOCK=CANDIDATES, PIECES=pieces, PADDED=padded, num_warps=8,
        )  # fmt: skip


@triton.jit
def _draw(key, place):
    """A number in [0, 1) for one token of one answer (splitmix64)."""
    z = key.to(tl.uint64) + (place + 1).to(tl.uint64) * GOLDEN
    z = (z ^ (z >> 30)) * MIX_1
    z = (z ^ (z >> 27)) * MIX_2
    z = z ^ (z >> 31)
    return (z >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _scan(
    logits, slots, temperature, pieces, stride, hidden_id,
    VOCAB: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = piece * PIECE + tl.arange(0, PIECE)
    inside = (at < VOCAB) & (at != hidden_id)
    x = tl.load(logits + row * stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    heat = tl.load(temperature + tl.load(slots + row))
    heat = tl.where(heat > 0, heat, 1.0)
    best = tl.max(x, 0)
    token = tl.min(tl.where(x == best, at, 2147483647), 0)
    shifted = tl.where(best == float("-inf"), float("-inf"), x - best)
    target = pieces + row * 4 * PIECES + piece
    tl.store(target, best)
    tl.store(target + PIECES, token.to(tl.float32, bitcast=True))
    tl.store(target + 2 * PIECES, tl.sum(tl.exp(shifted), 0))
    tl.store(target + 3 * PIECES, tl.sum(tl.exp(shifted / heat), 0))


@triton.jit
def _advance(slot, nobody, tokens, positions, results, row, token):
    """Write a token down, and make it the one that the slot goes on from."""
    tl.store(results + row, token)
    if slot != nobody:
        tl.store(tokens + slot, tl.maximum(token, 0))
        tl.store(positions + slot, tl.load(positions + slot) + 1)


@triton.jit
def _pick(
    logits, slots, tokens, positions, prompts, keys, temperature, top_k,
    pieces, results, logprobs, stride, hidden_id, nobody,
    VOCAB: tl.constexpr, PIECES: tl.constexpr, PADDED: tl.constexpr, PIECE: tl.constexpr,
    FILTERED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    heat = tl.load(temperature + slot)
    number = tl.arange(0, PADDED)
    exists = number < PIECES
    source = pieces + row * 4 * PIECES + number
    best = tl.load(source, mask=exists, other=float("-inf"))
    best_token = tl.load(source + PIECES, mask=exists, other=0.0).to(tl.int32, bitcast=True)
    mass = tl.load(source + 2 * PIECES, mask=exists, other=0.0)
    hot_mass = tl.load(source + 3 * PIECES, mask=exists, other=0.0)
    top = tl.max(best, 0)
    total = tl.sum(mass * tl.exp(best - top), 0)
    is_bad = (total != total) | (top == float("-inf")) | (top == float("inf"))
    token = tl.min(tl.where(best == top, best_token, 2147483647), 0)
    if heat > 0:
        hot = hot_mass.to(tl.float64) * tl.exp((best - top) / heat).to(tl.float64)
        hot = tl.where(exists, hot, 0.0)
        summed = tl.cumsum(hot, 0)
        whole = tl.sum(hot, 0)
        place = tl.load(positions + slot) + 1 - tl.load(prompts + slot)
        target = _draw(tl.load(keys + slot), place) * whole
        last = tl.max(tl.where(hot > 0, number, 0), 0)
        piece = tl.minimum(tl.sum((summed <= target).to(tl.int32), 0), last)
        before = tl.sum(tl.where(number < piece, hot, 0.0), 0)
        at = piece * PIECE + tl.arange(0, PIECE)
        inside = (at < VOCAB) & (at != hidden_id)
        x = tl.load(logits + row * stride + at, mask=inside, other=float("-inf")).to(tl.float32)
        p = tl.exp((x - top) / heat)
        inner = tl.cumsum(p, 0)
        index = tl.sum((inner <= (target - before).to(tl.float32)).to(tl.int32), 0)
        places = tl.arange(0, PIECE)
        index = tl.minimum(index, tl.max(tl.where(p > 0, places, 0), 0))
        token = piece * PIECE + index
    token = tl.where(is_bad, -1, token)
    chosen = tl.load(logits + row * stride + tl.maximum(token, 0)).to(tl.float32)
    tl.store(logprobs + row, chosen - top - tl.log(total))
    is_ours = True
    if FILTERED:
        is_ours = (heat == 0) | (tl.load(top_k + slot) == 0) | is_bad
    if is_ours:
        _advance(slot, nobody, tokens, positions, results, row, token)


@triton.jit
def _pick_filtered(
    values, ids, slots, tokens, positions, prompts, keys, temperature, top_k, top_p, min_p,
    pieces, results, logprobs, nobody, hidden_id,
    COUNT: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    heat, k = tl.load(temperature + slot), tl.load(top_k + slot)
    number = tl.arange(0, PADDED)
    exists = number < PIECES
    source = pieces + row * 4 * PIECES + number
    best = tl.load(source, mask=exists, other=float("-inf"))
    mass = tl.load(source + 2 * PIECES, mask=exists, other=0.0)
    top = tl.max(best, 0)
    total = tl.sum(mass * tl.exp(best - top), 0)
    is_bad = (total != total) | (top == float("-inf")) | (top == float("inf"))
    if (heat > 0) & (k > 0) & (is_bad == 0):
        at = tl.arange(0, BLOCK)
        inside = at < COUNT
        raw = tl.load(values + row * COUNT + at, mask=inside, other=float("-inf")).to(tl.float32)
        token_ids = tl.load(ids + row * COUNT + at, mask=inside, other=2147483647).to(tl.int32)
        raw = tl.where(token_ids == hidden_id, float("-inf"), raw)
        x = raw / heat
        kth = tl.max(tl.where(at >= tl.minimum(k, COUNT) - 1, x, float("-inf")), 0)
        least = tl.maximum(kth, top / heat + tl.log(tl.load(min_p + slot)))
        p = tl.where(x >= least, tl.exp(x - top / heat), 0.0)
        before = tl.cumsum(p, 0) - p
        share = before < tl.load(top_p + slot) * tl.sum(p, 0)
        lowest = tl.min(tl.where(share & (p > 0), x, float("inf")), 0)
        p = tl.where(x >= lowest, p, 0.0).to(tl.float64)
        # the mass up to each candidate in the order of ids
        not_after = token_ids[None, :] <= token_ids[:, None]
        summed = tl.sum(tl.where(not_after, p[None, :], 0.0), 1)
        place = tl.load(positions + slot) + 1 - tl.load(prompts + slot)
        target = _draw(tl.load(keys + slot), place) * tl.sum(p, 0)
        token = tl.min(tl.where((summed > target) & (p > 0), token_ids, 2147483647), 0)
        highest = tl.max(tl.where(p > 0, token_ids, 0), 0)
        token = tl.minimum(token, highest)
        chosen = tl.max(tl.where(token_ids == token, raw, float("-inf")), 0)
        tl.store(logprobs + row, chosen - top - tl.log(total))
        _advance(slot, nobody, tokens, positions, results, row, token)
