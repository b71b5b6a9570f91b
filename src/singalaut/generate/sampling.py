"""Logits to tokens, by rules that do not depend on what else is in the batch.

Each draw uses one number derived from the request's seed, the answer's index and the token's
position, so a request with a seed gives the same tokens in any batch and after any resume.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from singalaut.contracts import SamplingParams, derive
from singalaut.errors import RequestError


def check_params(params: SamplingParams) -> None:
    """Raise RequestError for values that have no meaning."""
    rules = (
        ("n", params.n >= 1, "at least 1"),
        ("max_tokens", params.max_tokens >= 1, "at least 1"),
        ("temperature", params.temperature >= 0, "0 or more"),
        ("top_p", 0 < params.top_p <= 1, "above 0 and at most 1"),
        ("top_k", params.top_k >= 0, "0 or more"),
        ("min_p", 0 <= params.min_p <= 1, "between 0 and 1"),
    )
    for name, holds, needed in rules:
        if not holds:
            raise RequestError(f"`{name}` is {getattr(params, name)}; it must be {needed}")


def choose(
    logits: Float[Tensor, " V"], params: SamplingParams, seed: int, index: int, position: int
) -> int:
    """The next token of one sequence.

    Order as in vLLM: temperature, min-p, top-k, top-p. Ties keep the smaller token id.
    """
    if params.temperature == 0:
        return int(logits.argmax())
    scaled = logits.float() / params.temperature
    ids: Tensor | None = None
    if params.top_k or params.top_p < 1 or params.min_p:
        k = min(params.top_k or len(scaled), len(scaled))
        scaled, ids = scaled.topk(k)
        scaled = scaled[_kept(scaled, params)]
    cumulative = scaled.softmax(-1).double().cumsum(-1)
    draw = derive(seed, "token", index, position) / 2**63 * float(cumulative[-1])
    place = min(int(torch.searchsorted(cumulative, draw, right=True)), len(cumulative) - 1)
    return place if ids is None else int(ids[place])


def log_probability(logits: Float[Tensor, " V"], token: int) -> float:
    """log softmax(logits)[token] in nats, before temperature and filters, as vLLM reports it."""
    logits = logits.float()
    return float(logits[token] - logits.logsumexp(-1))


def _kept(descending: Float[Tensor, " K"], params: SamplingParams) -> slice:
    """How many of the best tokens pass min-p and top-p; at least one."""
    probabilities = descending.softmax(-1)
    count = len(descending)
    if params.min_p:
        count = int((probabilities >= params.min_p * probabilities[0]).sum())
    if params.top_p < 1:
        before = probabilities[:count] / probabilities[:count].sum()
        before = before.cumsum(-1) - before
        count = int((before < params.top_p).sum())
    return slice(0, max(1, count))
