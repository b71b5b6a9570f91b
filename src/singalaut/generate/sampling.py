"""Logits to tokens for a batch of answers, by rules that do not depend on what else is in it.

Each token of an answer has one random number, a function of the answer's key and the token's
place, and takes the token at that share of the probability mass, in the order of token ids. So a
request with a seed gives the same tokens in any batch and after any resume.

Shapes: B rows, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from singalaut.contracts import SamplingParams
from singalaut.errors import RequestError
from singalaut.generate.answer import Answer, mask_fault

MAX_TOP_LOGPROBS = 64
CANDIDATES = 1024  # from these a top-p share is taken, unless they hold less than it
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK_64 = (1 << 64) - 1


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raise RequestError for values that have no meaning or contradict each other."""
    least = 0 if params.prompt_logprobs else 1
    bias = params.logit_bias
    endless = [(token, value) for token, value in bias.items() if not np.isfinite(value)]
    ids = [*bias, *params.stop_token_ids]
    rules = (
        ("n", params.n >= 1, "at least 1"),
        ("max_tokens", params.max_tokens >= least, f"at least {least}"),
        ("temperature", 0 <= params.temperature < float("inf"), "0 or more"),
        ("top_p", 0 < params.top_p <= 1, "above 0 and at most 1"),
        ("top_k", params.top_k >= 0, "0 or more"),
        ("min_p", 0 <= params.min_p <= 1, "between 0 and 1"),
        ("repetition_penalty", 0 < params.repetition_penalty < float("inf"), "above 0"),
        ("presence_penalty", -2 <= params.presence_penalty <= 2, "between -2 and 2"),
        ("frequency_penalty", -2 <= params.frequency_penalty <= 2, "between -2 and 2"),
        ("min_tokens", 0 <= params.min_tokens <= params.max_tokens, "at most `max_tokens`"),
        (
            "top_logprobs",
            0 <= params.top_logprobs <= MAX_TOP_LOGPROBS,
            f"between 0 and {MAX_TOP_LOGPROBS}",
        ),
        ("stop", all(params.stop), "texts that are not empty"),
    )
    for name, holds, needed in rules:
        if not holds:
            raise RequestError(f"`{name}` is {getattr(params, name)}; it must be {needed}")
    if endless:
        token, value = endless[0]
        raise RequestError(
            f"`logit_bias` is {value} for the token {token} and {len(endless) - 1} others; "
            "it must be finite, such as -100"
        )
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise RequestError(
            f"`logit_bias` and `stop_token_ids` name tokens {min(ids)}…{max(ids)}; "
            f"token ids lie in 0…{vocab_size - 1}"
        )


def draw(key: int, place: int) -> float:
    """A number in [0, 1) for token `place` of the answer with this key (splitmix64)."""
    z = (key + (place + 1) * GOLDEN) & MASK_64
    z = ((z ^ (z >> 30)) * MIX_1) & MASK_64
    z = ((z ^ (z >> 27)) * MIX_2) & MASK_64
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


@dataclass(frozen=True)
class Sampled:
    """One token a row; log-probabilities are those of the model, before anything was done to it.

    `bad` rows had logits that are not numbers; their tokens mean nothing.
    """

    tokens: Int[Tensor, " B"]
    logprobs: Float[Tensor, " B"] | None
    top: tuple[Float[Tensor, "B C"], Int[Tensor, "B C"]] | None
    bad: Bool[Tensor, " B"]


def sample(logits: Float[Tensor, "B V"], answers: Sequence[Answer]) -> Sampled:
    """The next token of each answer, which is counted as under way already.

    `logits` are overwritten.
    """
    params = [answer.request.sampling for answer in answers]
    logits = logits.float()
    wanted = max((p.top_logprobs for p in params), default=0)
    logprobs = top = None
    normaliser = None
    if wanted or any(p.logprobs for p in params):
        normaliser = logits.logsumexp(-1)
    if wanted:
        assert normaliser is not None
        values, ids = logits.topk(min(wanted, logits.shape[1]))
        top = (values - normaliser[:, None], ids)
    raw = logits
    if any(map(_changes_logits, answers)):
        raw = logits.clone()
        for row, answer in enumerate(answers):
            change_logits(logits[row], answer)
    best, greedy = logits.max(-1)
    bad = ~best.isfinite()
    tokens = greedy
    if any(p.temperature > 0 for p in params):
        draws = [draw(answer.seed, answer.place) for answer in answers]
        settings = Settings.of(params, logits.device)
        drawn = choose(logits, settings, torch.tensor(draws, dtype=torch.float64))
        tokens = torch.where(settings.temperature > 0, drawn, greedy)
    if normaliser is not None:
        logprobs = raw.gather(1, tokens[:, None])[:, 0] - normaliser
    return Sampled(tokens, logprobs, top, bad)


@dataclass(frozen=True)
class Settings:
    """The settings of each row as tensors on the device of the logits."""

    temperature: Float[Tensor, " B"]
    top_k: Int[Tensor, " B"]
    top_p: Float[Tensor, " B"]
    min_p: Float[Tensor, " B"]
    candidates: int  # how many of the best tokens are looked at first; 0 where nothing is filtered

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> Settings:
        drawing = [p for p in params if p.temperature > 0]
        filtered = [p for p in drawing if p.top_k or p.top_p < 1 or p.min_p]
        counts = [2 * p.top_k or CANDIDATES for p in drawing]  # twice, for ties
        return cls(
            torch.tensor([p.temperature for p in params], device=device),
            torch.tensor([p.top_k for p in params], device=device),
            torch.tensor([p.top_p for p in params], device=device),
            torch.tensor([p.min_p for p in params], device=device),
            max(counts) if filtered else 0,
        )


def choose(
    logits: Float[Tensor, "B V"], settings: Settings, draws: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """The token at the share `draws` of the probability mass that the filters leave.

    Order as in vLLM: temperature, min-p, top-k, top-p. Tokens that tie with the last one kept are
    kept too, so the result does not depend on how equals are sorted.
    """
    scaled = logits / settings.temperature.clamp(min=1e-5)[:, None]
    draws = draws.to(logits.device)
    if not settings.candidates:
        return _at_share(scaled, draws)
    values, ids = scaled.topk(min(settings.candidates, scaled.shape[1]))
    lowest = lowest_kept(values, scaled.logsumexp(-1, keepdim=True), settings)
    if values.shape[1] < scaled.shape[1]:
        drawing = settings.temperature > 0
        if bool((drawing & ~(values[:, -1] < lowest[:, 0])).any()):  # more may be kept
            values, ids = scaled.topk(scaled.shape[1])
            lowest = lowest_kept(values, scaled.logsumexp(-1, keepdim=True), settings)
    ids, order = ids.sort(dim=1)  # of equals, the smaller id first, however they were found
    values = values.gather(1, order)
    values = values.masked_fill(values < lowest, float("-inf"))
    return ids.gather(1, _at_share(values, draws)[:, None])[:, 0]


def change_logits(logits: Float[Tensor, " V"], answer: Answer) -> None:
    """Apply penalties, bias, `min_tokens` and the mask of one answer to its row, in place."""
    params = answer.request.sampling
    written = answer.tokens[answer.num_prompt :]
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(answer.tokens)), device=logits.device)
        values = logits[seen]
        rate = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / rate, values * rate)
    if (params.presence_penalty or params.frequency_penalty) and written:
        ids, counts = np.unique(np.array(written), return_counts=True)
        penalty = params.presence_penalty + params.frequency_penalty * counts
        logits[torch.from_numpy(ids).long().to(logits.device)] -= torch.from_numpy(penalty).to(
            logits
        )
    if params.logit_bias:
        biased = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[biased] += torch.tensor(list(params.logit_bias.values())).to(logits)
    if answer.place < params.min_tokens:
        logits[torch.tensor(sorted(answer.stop_ids), dtype=torch.int64, device=logits.device)] = (
            float("-inf")
        )
    if (allowed := _allowed(answer)) is not None:
        bits = np.unpackbits(np.frombuffer(allowed, np.uint8), bitorder="little")[: len(logits)]
        hidden = np.ones(len(logits), dtype=bool)
        hidden[: len(bits)] = bits == 0
        logits.masked_fill_(torch.from_numpy(hidden).to(logits.device), float("-inf"))


def _allowed(answer: Answer) -> bytes | None:
    """What the mask of an answer allows; nothing where it fails, which ends that answer alone."""
    if answer.mask is None:
        return None
    try:
        return answer.mask.allowed()
    except Exception as error:
        answer.fault = mask_fault(error)
        return bytes(1)


def _changes_logits(answer: Answer) -> bool:
    params = answer.request.sampling
    return bool(
        params.repetition_penalty != 1
        or params.presence_penalty
        or params.frequency_penalty
        or params.logit_bias
        or answer.mask is not None
        or answer.place < params.min_tokens
    )


def lowest_kept(
    values: Float[Tensor, "B C"], normaliser: Float[Tensor, "B 1"], settings: Settings
) -> Float[Tensor, "B 1"]:
    """The smallest of the best scaled logits that passes all filters.

    `values` descend; `normaliser` is the log of the mass of the whole vocabulary. Where the last
    value is kept, there may be more to keep than was given.
    """
    best = values[:, :1]
    least = best + settings.min_p[:, None].log()  # of min-p 0, minus infinity
    k = settings.top_k[:, None].clamp(max=values.shape[1])
    kth = values.gather(1, (k - 1).clamp(min=0))
    least = torch.where(k > 0, torch.maximum(least, kth), least)
    kept = values >= least
    mass = (values - best).exp() * kept
    whole = torch.where(kept[:, -1:], (normaliser - best).exp(), mass.sum(1, keepdim=True))
    inside = kept & (mass.cumsum(1) - mass < settings.top_p[:, None] * whole)
    places = torch.arange(values.shape[1], device=values.device)
    return values.gather(1, (inside * places).amax(1, keepdim=True))


def _at_share(scaled: Float[Tensor, "B C"], draws: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Where the cumulated mass of each row first exceeds its share `draws` of the whole."""
    cumulated = scaled.softmax(-1).double().cumsum(-1)
    total = cumulated[:, -1:]
    place = torch.searchsorted(cumulated, draws[:, None] * total, right=True)[:, 0]
    last = scaled.shape[1] - (cumulated == total).sum(1)  # the last one with any mass
    return torch.minimum(place, last)
