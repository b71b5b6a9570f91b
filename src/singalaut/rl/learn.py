"""What a step learns from its answers: one update of the policy, or several."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model
from singalaut.rl.config import RlConfig
from singalaut.rl.policy import (
    Known,
    PolicyMeters,
    answer_logprobs,
    is_learned,
    own_rows,
    policy_step,
)
from singalaut.rl.rollouts import Rollouts
from singalaut.rl.team import ALONE, Team
from singalaut.train.parallel import put_away, shard
from singalaut.train.replay import Replay

log = logging.getLogger("singalaut")


def learn(
    config: RlConfig,
    network: Gemma3,
    reference: Gemma3 | None,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    step: int,
    team: Team = ALONE,
    replay: Replay | None = None,
) -> PolicyMeters | None:
    """The updates of a step; None where there was nothing to learn."""
    if not any(is_learned(answer, config) for answer in rollouts.answers):
        return None
    known = None
    if config.updates > 1 or config.kl:
        known = _known(config, network, reference, rollouts, team)
    rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    replayed = [] if replay is None else replay.micros(step, config.micro_tokens)
    meters = None
    for _ in range(config.updates):
        meters = policy_step(network, optimizer, rollouts, config, rate, known, team, replayed)
        if not meters.is_finite:
            log.warning("step %d left out: loss %s", step, meters.loss)
    return meters


def reference_of(config: RlConfig, model: Path, team: Team) -> Gemma3 | None:
    """The starting model, where the distance to it counts."""
    if not config.kl:
        return None
    dtype = torch.float32 if config.precision == "float32" else torch.bfloat16
    reference = load_model(model, dtype, team.world.device).requires_grad_(False)
    return shard(reference, team.cut)


@torch.no_grad()
def _known(
    config: RlConfig,
    network: Gemma3,
    reference: Gemma3 | None,
    rollouts: Rollouts,
    team: Team,
) -> Mapping[int, Known]:
    """Log-probabilities of this process's answers before the update, and those of the reference."""
    found: dict[int, Known] = {}
    for row, _ in own_rows(rollouts.answers, config.micro_tokens, team):
        chosen = [rollouts.answers[number] for number in row]
        old, *_ = answer_logprobs(network, chosen, config.temperature)
        theirs: Sequence[torch.Tensor | None] = [None] * len(row)
        if reference is not None:
            theirs, *_ = answer_logprobs(reference, chosen, config.temperature)
        for number, mine, other in zip(row, old, theirs, strict=True):
            found[number] = Known(mine, other)
    put_away(network)
    return found
