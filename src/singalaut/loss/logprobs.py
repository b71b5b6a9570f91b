"""Log-probabilities of chosen tokens without ever holding all logits.

A Gemma 3 vocabulary has 262 k entries, so the logits of 4,096 positions take 4 GB in float32.
Rows are taken in chunks: each chunk's logits are made, used and dropped, and its gradient is
formed on the spot. Shapes: N positions, W hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ROWS = 128


class _ChunkedNegativeLogLikelihood(torch.autograd.Function):
    """Σ_n −log softmax(h_n Wᵀ)[target_n], with both gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NW: Float[Tensor, "N W"],
        weight_VW: Float[Tensor, "V W"],
        targets_N: Int[Tensor, " N"],
        chunk_rows: int,
    ) -> Float[Tensor, ""]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden_NW) if wants_hidden else None
        weight_grad = torch.zeros_like(weight_VW) if wants_weight else None
        total = hidden_NW.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden_NW), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            hidden, targets = hidden_NW[chunk], targets_N[chunk, None]
            logits_CV = (hidden @ weight_VW.T).float()
            normaliser_C1 = logits_CV.logsumexp(-1, keepdim=True)
            total += (normaliser_C1 - logits_CV.gather(-1, targets)).sum()
            if hidden_grad is None and weight_grad is None:
                continue
            error_CV = logits_CV.sub_(normaliser_C1).exp_()
            error_CV.scatter_add_(-1, targets, -torch.ones_like(normaliser_C1))
            error_CV = error_CV.to(hidden.dtype)
            if hidden_grad is not None:
                torch.mm(error_CV, weight_VW, out=hidden_grad[chunk])
            if weight_grad is not None:
                weight_grad.addmm_(error_CV.T, hidden)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        scaled = [None if g is None else g * grads[0].to(g.dtype) for g in ctx.saved_tensors]
        return scaled[0], scaled[1], None, None


def negative_log_likelihood(
    hidden: Float[Tensor, "N W"],
    weight: Float[Tensor, "V W"],
    targets: Int[Tensor, " N"],
    chunk_rows: int = CHUNK_ROWS,
) -> Float[Tensor, ""]:
    """Σ_n −log p(target_n) in nats, float32, where p = softmax(hidden · weightᵀ).

    Memory beside the gradients: `chunk_rows` rows of logits. The sum does not depend on
    `chunk_rows` beyond rounding.
    """
    return _ChunkedNegativeLogLikelihood.apply(hidden, weight, targets, chunk_rows)
