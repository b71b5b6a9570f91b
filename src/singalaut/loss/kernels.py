"""Cross-entropy of rows of logits in one Triton kernel, which leaves the gradient in their place.

A row is read twice and written once: first for its largest logit and the sum of exponentials, then
for softmax − one-hot. Shapes: C rows, V vocabulary.
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
