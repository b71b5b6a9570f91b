"""Log-probabilities of chosen tokens without ever holding all logits.

A Gemma 3 vocabulary has 262 k entries, so the logits of 4,096 positions take 4 GB in float32.
Rows are taken in chunks: each chunk's logits are made, used and dropped. Shapes: N positions,
W hidden width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ROWS = 128  # on a CPU, where the logits should stay in its cache
CHUNK_BYTES = 2 << 30  # of logits on other devices: fewer and larger matrix products


class _NegativeLogLikelihood(torch.autograd.Function):
    """Σ_n −log softmax(h_n Wᵀ)[target_n] and its terms, with both gradients made forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NW: Float[Tensor, "N W"],
        weight_VW: Float[Tensor, "V W"],
        targets_N: Int[Tensor, " N"],
        chunk_rows: int,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden_NW) if wants_hidden else None
        weight_grad = None
        losses_N = hidden_NW.new_empty(len(hidden_NW), dtype=torch.float32)
        for chunk in _chunks(len(hidden_NW), chunk_rows):
            hidden = hidden_NW[chunk]
            logits_CV = hidden @ weight_VW.T
            error_CV = _losses_and_error(
                logits_CV, targets_N[chunk], losses_N[chunk], wants_hidden or wants_weight
            )
            if hidden_grad is not None:
                torch.mm(error_CV, weight_VW, out=hidden_grad[chunk])
            if wants_weight and weight_grad is None:
                weight_grad = error_CV.T @ hidden
            elif weight_grad is not None:
                weight_grad.addmm_(error_CV.T, hidden)
        if wants_weight and weight_grad is None:
            weight_grad = torch.zeros_like(weight_VW)
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.mark_non_differentiable(losses_N)
        return losses_N.sum(), losses_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # each gradient is used once, so it may be scaled where it lies
        scaled = [None if g is None else g.mul_(grads[0].to(g.dtype)) for g in ctx.saved_tensors]
        return scaled[0], scaled[1], None, None


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(h_n Wᵀ / T)[target_n], float32; logits are made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NW: Float[Tensor, "N W"],
        weight_VW: Float[Tensor, "V W"],
        targets_N: Int[Tensor, " N"],
        temperature: float,
        chunk_rows: int,
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
        logprobs_N = hidden_NW.new_empty(len(hidden_NW), dtype=torch.float32)
        normalisers_N = torch.empty_like(logprobs_N)
        entropies_N = torch.empty_like(logprobs_N)
        plain_N = torch.empty_like(logprobs_N)
        figures = logprobs_N, normalisers_N, entropies_N, plain_N
        for chunk in _chunks(len(hidden_NW), chunk_rows):
            logits_CV = _wide_logits(hidden_NW[chunk], weight_VW)
            _row_figures(logits_CV, targets_N[chunk], temperature, [f[chunk] for f in figures])
        ctx.save_for_backward(hidden_NW, weight_VW, targets_N, normalisers_N)
        ctx.temperature, ctx.chunk_rows = temperature, chunk_rows
        ctx.mark_non_differentiable(entropies_N, plain_N)
        return logprobs_N, entropies_N, plain_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_NW, weight_VW, targets_N, normalisers_N = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden_NW) if wants_hidden else None
        weight_grad = torch.zeros_like(weight_VW) if wants_weight else None
        factors_N = grads[0].contiguous()  # which one number may stand for
        for chunk in _chunks(len(hidden_NW), ctx.chunk_rows):
            hidden = hidden_NW[chunk]
            error_CV = _logprob_gradient(
                _wide_logits(hidden, weight_VW),
                targets_N[chunk],
                ctx.temperature,
                normalisers_N[chunk],
                factors_N[chunk],
                hidden.dtype,
            )
            if hidden_grad is not None:
                torch.mm(error_CV, weight_VW, out=hidden_grad[chunk])
            if weight_grad is not None:
                weight_grad.addmm_(error_CV.T, hidden)
        return hidden_grad, weight_grad, None, None, None


def negative_log_likelihood(
    hidden: Float[Tensor, "N W"],
    weight: Float[Tensor, "V W"],
    targets: Int[Tensor, " N"],
    chunk_rows: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
    """Σ_n −log p(target_n) in nats, p = softmax(hidden · weightᵀ), and its terms; float32.

    Only the sum has a gradient; it may be asked for once. Memory beside the gradients:
    `chunk_rows` rows of logits. The sum does not depend on `chunk_rows` beyond rounding.
    """
    rows = chunk_rows or _default_rows(hidden, weight, hidden.element_size())
    total, losses = _NegativeLogLikelihood.apply(hidden, weight, targets.contiguous(), rows)
    return total, losses


def token_logprobs(
    hidden: Float[Tensor, "N W"],
    weight: Float[Tensor, "V W"],
    targets: Int[Tensor, " N"],
    temperature: float = 1.0,
    chunk_rows: int | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """log p(target_n) and the entropy of p, in nats, p = softmax(hidden · weightᵀ / temperature).

    The third is log p(target_n) at a temperature of 1. Only the first has a gradient. Logits are
    float32, and are made once more in the backward pass: `chunk_rows` rows of them are all the
    memory it takes.
    """
    rows = chunk_rows or _default_rows(hidden, weight, 8)
    targets = targets.contiguous()
    logprobs, entropies, plain = _TokenLogprobs.apply(hidden, weight, targets, temperature, rows)
    return logprobs, entropies, plain


def _losses_and_error(
    logits_CV: Tensor, targets_C: Tensor, losses_C: Tensor, wants_error: bool
) -> Tensor:
    """Writes −log p(target) into `losses_C`; returns softmax − one-hot, in the logits' memory."""
    if logits_CV.is_cuda:
        from singalaut.loss.kernels import losses_and_error

        losses_and_error(logits_CV, targets_C, losses_C, wants_error)
        return logits_CV
    wide_CV = logits_CV.float()
    normaliser_C1 = wide_CV.logsumexp(-1, keepdim=True)
    losses_C.copy_((normaliser_C1 - wide_CV.gather(-1, targets_C[:, None]))[:, 0])
    if not wants_error:
        return logits_CV
    error_CV = wide_CV.sub_(normaliser_C1).exp_()
    error_CV.scatter_add_(-1, targets_C[:, None], -torch.ones_like(normaliser_C1))
    return error_CV.to(logits_CV.dtype)


def _row_figures(
    logits_CV: Tensor, targets_C: Tensor, temperature: float, figures: list[Tensor]
) -> None:
    """Fills log-probabilities, normalisers, entropies and log-probabilities at 1; logits go."""
    if logits_CV.is_cuda:
        from singalaut.loss.kernels import row_figures

        row_figures(logits_CV, targets_C, temperature, *figures)
        return
    logprobs_C, normalisers_C, entropies_C, plain_C = figures
    chosen_C1 = logits_CV.gather(-1, targets_C[:, None])
    if temperature != 1:
        plain_C.copy_(chosen_C1[:, 0] - logits_CV.logsumexp(-1))
        logits_CV.div_(temperature)
        chosen_C1 = chosen_C1 / temperature
    normaliser_C1 = logits_CV.logsumexp(-1, keepdim=True)
    logprobs_C.copy_((chosen_C1 - normaliser_C1)[:, 0])
    normalisers_C.copy_(normaliser_C1[:, 0])
    logits_CV.sub_(normaliser_C1)
    entropies_C.copy_(-(logits_CV.exp() * logits_CV).sum(-1))
    if temperature == 1:
        plain_C.copy_(logprobs_C)


def _logprob_gradient(
    logits_CV: Tensor,
    targets_C: Tensor,
    temperature: float,
    normalisers_C: Tensor,
    factors_C: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """factor · (one-hot − p) / temperature, [C, V]; the logits go."""
    if logits_CV.is_cuda:
        from singalaut.loss.kernels import logprob_gradient

        out_CV = torch.empty_like(logits_CV, dtype=dtype)
        logprob_gradient(logits_CV, targets_C, temperature, normalisers_C, factors_C, out_CV)
        return out_CV
    if temperature != 1:
        logits_CV.div_(temperature)
    error_CV = logits_CV.sub_(normalisers_C[:, None]).exp_().neg_()
    error_CV.scatter_add_(-1, targets_C[:, None], torch.ones_like(normalisers_C[:, None]))
    return error_CV.mul_(factors_C[:, None] / temperature).to(dtype)


def _wide_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    if hidden.is_cuda and hidden.dtype != torch.float32:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return (hidden @ weight.T).float()


def _default_rows(hidden: Tensor, weight: Tensor, bytes_each: int) -> int:
    if hidden.device.type == "cpu":
        return CHUNK_ROWS
    return max(CHUNK_ROWS, CHUNK_BYTES // (len(weight) * bytes_each) // CHUNK_ROWS * CHUNK_ROWS)


def _chunks(rows: int, chunk_rows: int) -> list[slice]:
    return [slice(start, start + chunk_rows) for start in range(0, rows, chunk_rows)]
