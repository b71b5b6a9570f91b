"""What losses need of rows of logits, each in one Triton kernel.

Cross-entropy leaves its gradient in the place of the logits: a row is read twice and written once,
first for its largest logit and the sum of exponentials, then for softmax − one-hot. Log-probability
and entropy come from one reading of a row, the gradient of the former from another.
Shapes: C rows, V vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192


def losses_and_error(logits: Tensor, targets: Tensor, losses: Tensor, wants_error: bool) -> None:
    """−log softmax(logits)[target] into `losses` [C]; then logits [C, V] := softmax − one-hot."""
    rows, vocabulary = logits.shape
    block = min(BLOCK, triton.next_power_of_2(vocabulary))
    _losses_and_error[(rows,)](
        logits, targets, losses, logits.stride(0), VOCAB=vocabulary, BLOCK=block,
        WANTS_ERROR=wants_error, num_warps=8,
    )  # fmt: skip


@triton.jit
def _losses_and_error(
    logits, targets, losses, stride,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, WANTS_ERROR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    target = tl.load(targets + row)
    chosen = tl.load(base + target).to(tl.float32)
    best = float("-inf")
    total = 0.0
    for start in range(0, VOCAB, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(base + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(best, tl.max(x, 0))
        total = total * tl.exp(best - higher) + tl.sum(tl.exp(x - higher), 0)
        best = higher
    normaliser = best + tl.log(total)
    tl.store(losses + row, normaliser - chosen)
    if WANTS_ERROR:
        for start in range(0, VOCAB, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(base + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)
            error = tl.exp(x - normaliser) - (at == target).to(tl.float32)
            tl.store(base + at, error.to(logits.dtype.element_ty), mask=at < VOCAB)


def row_figures(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    logprobs: Tensor,
    normalisers: Tensor,
    entropies: Tensor,
    plain: Tensor,
) -> None:
    """Of p = softmax(logits / temperature), each [C]: log p(target), the log of the sum of
    exponentials, the entropy, and log p(target) at a temperature of 1.
    """
    rows, vocabulary = logits.shape
    block = min(BLOCK, triton.next_power_of_2(vocabulary))
    _row_figures[(rows,)](
        logits, targets, 1 / temperature, logprobs, normalisers, entropies, plain,
        logits.stride(0), VOCAB=vocabulary, BLOCK=block, num_warps=8,
    )  # fmt: skip


def logprob_gradient(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    normalisers: Tensor,
    factors: Tensor,
    out: Tensor,
) -> None:
    """out [C, V] = factor · ∂ log p(target) / ∂ logits = factor · (one-hot − p) / temperature."""
    rows, vocabulary = logits.shape
    block = min(BLOCK, triton.next_power_of_2(vocabulary))
    _logprob_gradient[rows, triton.cdiv(vocabulary, block)](
        logits, targets, 1 / temperature, normalisers, factors, out,
        logits.stride(0), out.stride(0), VOCAB=vocabulary, BLOCK=block, num_warps=8,
    )  # fmt: skip


@triton.jit
def _row_figures(
    logits, targets, coldness, logprobs, normalisers, entropies, plain, stride,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    chosen = tl.load(base + tl.load(targets + row)).to(tl.float32)
    best = -1e30  # of the logits as they are: below all, yet a number
    total = 0.0
    weighted = 0.0  # by how far below the best, so that small entropies are exact
    plain_total = 0.0
    for start in range(0, VOCAB, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(base + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(best, tl.max(x, 0))
        rise = (best - higher) * coldness
        below = (x - higher) * coldness
        powers = tl.exp(below)
        weighted = (weighted + rise * total) * tl.exp(rise)
        weighted += tl.sum(tl.where(at < VOCAB, powers * below, 0.0), 0)
        total = total * tl.exp(rise) + tl.sum(powers, 0)
        plain_total = plain_total * tl.exp(best - higher) + tl.sum(tl.exp(x - higher), 0)
        best = higher
    normaliser = best * coldness + tl.log(total)
    tl.store(logprobs + row, (chosen - best) * coldness - tl.log(total))
    tl.store(normalisers + row, normaliser)
    tl.store(entropies + row, tl.log(total) - weighted / total)
    tl.store(plain + row, chosen - best - tl.log(plain_total))


@triton.jit
def _logprob_gradient(
    logits, targets, coldness, normalisers, factors, out, stride, out_stride,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)
    p = tl.exp(x * coldness - tl.load(normalisers + row))
    error = (at == tl.load(targets + row)).to(tl.float32) - p
    gradient = error * (tl.load(factors + row) * coldness)
    tl.store(out + row * out_stride + at, gradient.to(out.dtype.element_ty), mask=at < VOCAB)
