"""Losses on pairs of a chosen and a rejected answer: APO, and DPO, IPO, SimPO beside it.

All are functions of log-probabilities of whole answers, summed over their tokens, in nats. With
a reference, r = log π(y|x) − log π_ref(y|x). Each returns one loss a pair; the mean over pairs is
the caller's. Shapes: B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairMeters:
    """What to watch: implicit rewards β r, how often and how far the chosen one leads."""

    chosen_rewards: Float[Tensor, " B"]
    rejected_rewards: Float[Tensor, " B"]

    @property
    def margins(self) -> Float[Tensor, " B"]:
        return self.chosen_rewards - self.rejected_rewards

    @property
    def correct(self) -> Bool[Tensor, " B"]:
        return self.margins > 0


def apo_zero(
    chosen_ratio: Float[Tensor, " B"], rejected_ratio: Float[Tensor, " B"], beta: float
) -> Float[Tensor, " B"]:
    """(1 − σ(β r_w)) + σ(β r_l): the chosen answer up, the rejected one down.

    For chosen answers that are better than what the model writes. Source: arXiv 2408.06266.
    """
    return (1 - (beta * chosen_ratio).sigmoid()) + (beta * rejected_ratio).sigmoid()


def apo_down(
    chosen_ratio: Float[Tensor, " B"], rejected_ratio: Float[Tensor, " B"], beta: float
) -> Float[Tensor, " B"]:
    """σ(β r_w) + (1 − σ(β (r_w − r_l))): both answers down, the rejected one further.

    For a model that is better than the chosen answers. Source: arXiv 2408.06266.
    """
    margin = chosen_ratio - rejected_ratio
    return (beta * chosen_ratio).sigmoid() + (1 - (beta * margin).sigmoid())


def dpo(
    chosen_ratio: Float[Tensor, " B"], rejected_ratio: Float[Tensor, " B"], beta: float
) -> Float[Tensor, " B"]:
    """−log σ(β (r_w − r_l)). Source: arXiv 2305.18290."""
    return -logsigmoid(beta * (chosen_ratio - rejected_ratio))


def ipo(
    chosen_ratio: Float[Tensor, " B"],
    rejected_ratio: Float[Tensor, " B"],
    chosen_tokens: Int[Tensor, " B"],
    rejected_tokens: Int[Tensor, " B"],
    beta: float,
) -> Float[Tensor, " B"]:
    """(r_w / |y_w| − r_l / |y_l| − 1 / (2β))², with ratios averaged over tokens.

    Source: arXiv 2310.12036, whose ratios are sums; its authors average, and so do its users.
    """
    margin = _average(chosen_ratio, chosen_tokens) - _average(rejected_ratio, rejected_tokens)
    return (margin - 1 / (2 * beta)).square()


def simpo(
    chosen_logprobs: Float[Tensor, " B"],
    rejected_logprobs: Float[Tensor, " B"],
    chosen_tokens: Int[Tensor, " B"],
    rejected_tokens: Int[Tensor, " B"],
    beta: float,
    gamma: float,
) -> Float[Tensor, " B"]:
    """−log σ(β (log π(y_w) / |y_w| − log π(y_l) / |y_l|) − γ), without a reference.

    Source: arXiv 2405.14734.
    """
    margin = _average(chosen_logprobs, chosen_tokens) - _average(rejected_logprobs, rejected_tokens)
    return -logsigmoid(beta * margin - gamma)


def pair_meters(
    chosen_ratio: Float[Tensor, " B"], rejected_ratio: Float[Tensor, " B"], beta: float
) -> PairMeters:
    """The implicit rewards of a batch, out of the graph."""
    return PairMeters(beta * chosen_ratio.detach(), beta * rejected_ratio.detach())


def _average(sums: Tensor, tokens: Tensor) -> Tensor:
    return sums / tokens.clamp(min=1)
