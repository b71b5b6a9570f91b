"""Policy losses on groups of answers: Dr. GRPO, and GRPO, DAPO, RLOO, GSPO, CISPO beside it.

The methods differ in three choices, which are three functions here: what an answer is worth
(`advantages`), how a token's probability may move (`policy_loss`), and what the sum is divided by
(`aggregate`). Dr. GRPO: rewards minus the group's mean, clipped, over a constant number of tokens.
Shapes: P prompts, G answers to each, B = P · G answers, T tokens. Log-probabilities are in nats.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SMALL_STD = 1e-4
Baseline = Literal["mean", "standardised", "leave_one_out"]


def advantages(rewards: Float[Tensor, "P G"], baseline: Baseline = "mean") -> Float[Tensor, "P G"]:
    """What each answer is worth beside the others of its group; NaN rewards count as 0 here.

    `mean`: R − mean (Dr. GRPO, arXiv 2503.20783). `standardised`: (R − mean) / (std + 1e-4)
    (GRPO, arXiv 2402.03300). `leave_one_out`: R − mean of the others (RLOO, arXiv 2402.14740).
    An answer that could not be scored is NaN: it does not count in the means, and gets no push.
    """
    scored = rewards.isfinite()
    counts = scored.sum(-1, keepdim=True)
    values = torch.where(scored, rewards, 0.0)
    sums = values.sum(-1, keepdim=True)
    if baseline == "leave_one_out":
        found = values - (sums - values) / (counts - 1).clamp(min=1)
        return torch.where(scored & (counts > 1), found, 0.0)
    centred = torch.where(scored, values - sums / counts.clamp(min=1), 0.0)
    if baseline == "mean":
        return centred
    variance = centred.square().sum(-1, keepdim=True) / (counts - 1).clamp(min=1)
    return centred / (variance.sqrt() + SMALL_STD)


def policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    per_sequence: bool = False,
) -> Float[Tensor, "B T"]:
    """−min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) of each token, with ρ = π / π_old.

    `per_sequence` takes ρ = exp(mean log ratio) of the answer for all its tokens (GSPO,
    arXiv 2507.18071). Zero where masked. Sources: PPO, arXiv 1707.06347; ε_high: DAPO,
    arXiv 2503.14476.
    """
    ratio_BT = _ratio(logprobs, old_logprobs, mask, per_sequence)
    worth_B1 = advantages[:, None]
    gain_BT = torch.minimum(
        ratio_BT * worth_B1, ratio_BT.clamp(1 - clip_low, 1 + clip_high) * worth_B1
    )
    return torch.where(mask, -gain_BT, 0.0)


def cispo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    *,
    max_ratio: float,
) -> Float[Tensor, "B T"]:
    """−min(ρ, max) A log π of each token, the ratio being a weight without gradient.

    So no token stops learning because it was clipped. Zero where masked. Source: arXiv 2506.13585.
    """
    ratio_BT = _ratio(logprobs, old_logprobs, mask, per_sequence=False)
    weight_BT = ratio_BT.clamp(max=max_ratio).detach()
    return torch.where(mask, -weight_BT * advantages[:, None] * logprobs, 0.0)


def kl_estimate(
    logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    kind: Literal["k1", "k2", "k3"] = "k3",
) -> Float[Tensor, "B T"]:
    """Estimates of KL(π ‖ π_ref) token by token, with r = log π_ref − log π.

    k1 = −r; k2 = r² / 2, whose gradient is that of the KL; k3 = e^r − 1 − r, unbiased and never
    negative. Zero where masked. Source: Schulman, Approximating KL divergence, 2020.
    """
    r = torch.where(mask, reference_logprobs - logprobs, 0.0)
    if kind == "k1":
        return -r
    return r.square() / 2 if kind == "k2" else torch.expm1(r) - r


def truncated_importance(
    logprobs: Float[Tensor, "B T"],
    sampler_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    cap: float = 2.0,
) -> Float[Tensor, "B T"]:
    """min(π / π_sampler, cap): weights, out of the graph, of tokens that another engine sampled."""
    return _ratio(logprobs, sampler_logprobs, mask, per_sequence=False).clamp(max=cap).detach()


def aggregate(
    loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], step_tokens: float
) -> Float[Tensor, ""]:
    """Σ over tokens / `step_tokens`, a number of the whole optimiser step, not of this batch.

    Dr. GRPO: answers of the step × length limit; DAPO and CISPO: masked tokens of the step. Either
    way splitting a step into batches changes nothing.
    """
    return torch.where(mask, loss, 0.0).sum() / step_tokens


def aggregate_by_answer(
    loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], step_answers: int
) -> Float[Tensor, ""]:
    """Σ over answers of the mean over their tokens / `step_answers`: GRPO, which favours length."""
    means = torch.where(mask, loss, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
    return means.sum() / step_answers


def _ratio(
    logprobs: Tensor, other: Tensor, mask: Tensor, per_sequence: bool
) -> Float[Tensor, "B T"]:
    """exp(log π − log π_other), 1 where masked, whatever is stored there."""
    difference = torch.where(mask, logprobs - other, 0.0)
    if per_sequence:
        lengths = mask.sum(-1, keepdim=True).clamp(min=1)
        difference = (difference.sum(-1, keepdim=True) / lengths).expand_as(difference)
    return difference.exp()
