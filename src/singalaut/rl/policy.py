"""One update of a policy on answers and what they were worth.

Prompts lie in packed rows, each once with its answers behind it; the head is applied to the tokens
of answers alone. The loss functions see them as [B, T]: B answers, T tokens of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from singalaut.data.batches import Micro
from singalaut.data.pack import best_fit
from singalaut.loss.dr_grpo import (
    aggregate,
    aggregate_by_answer,
    cispo_loss,
    kl_estimate,
    policy_loss,
    truncated_importance,
)
from singalaut.loss.logprobs import token_logprobs
from singalaut.model.branched import Branched
from singalaut.model.gemma3 import Gemma3
from singalaut.rl.config import RlConfig
from singalaut.rl.rollouts import Rollout, Rollouts
from singalaut.rl.team import ALONE, Team
from singalaut.train.step import accumulate, descend, join_gradients


@dataclass(frozen=True)
class Known:
    """Log-probabilities of an answer's tokens before the update, and of the reference."""

    old: Tensor
    reference: Tensor | None


@dataclass(frozen=True)
class PolicyMeters:
    """What an update measured, over the tokens that were learned from."""

    loss: float
    gradient_norm: float
    entropy: float
    clipped_low: float
    clipped_high: float
    mismatch: float
    """Mean |log π − log π of the engine| at a temperature of 1, in nats."""
    largest_mismatch: float
    kl: float
    tokens: int
    replay_loss: float | None = None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def families(answers: Sequence[Rollout]) -> list[list[int]]:
    """Neighbouring answers to one prompt, by number: what shares its tokens."""
    found: list[list[int]] = []
    for number, answer in enumerate(answers):
        before = answers[number - 1] if number else None
        if before is None or (before.place, before.prompt) != (answer.place, answer.prompt):
            found.append([])
        found[-1].append(number)
    return found


def row_tokens(answers: Sequence[Rollout]) -> int:
    """Tokens that answers take in a row, a prompt counted once."""
    prompts = sum(len(answers[family[0]].prompt) for family in families(answers))
    return prompts + sum(len(answer.tokens) for answer in answers)


def rows_of(answers: Sequence[Rollout], max_tokens: int) -> list[list[int]]:
    """Answers by number, in rows of at most `max_tokens` tokens or of one longer answer.

    The answers to a prompt stay together, or in parts that are as large as a row.
    """
    parts: list[list[int]] = []
    for family in families(answers):
        room = 0
        for number in family:
            length = len(answers[number].tokens)
            if length > room:
                parts.append([])
                room = max_tokens - len(answers[number].prompt)
            parts[-1].append(number)
            room -= length
    lengths = np.array([row_tokens([answers[number] for number in part]) for part in parts])
    short = np.flatnonzero(lengths <= max_tokens)
    packing = best_fit(lengths[short], max_tokens)
    rows = [short[packing.row(number)].tolist() for number in range(packing.num_rows)]
    rows += [[number] for number in np.flatnonzero(lengths > max_tokens).tolist()]
    return [[number for part in row for number in parts[part]] for row in rows]


def own_rows(
    answers: Sequence[Rollout], max_tokens: int, team: Team
) -> list[tuple[list[int], bool]]:
    """The rows of this process, and whether they count.

    All processes get equally many, if need be one that does not count, and rows are short enough
    for each to have one. The answers to a prompt are parted for that only where there are more
    processes than prompts.
    """
    if team.size > 1:
        each = math.ceil(row_tokens(answers) / team.size)
        known = families(answers)
        if len(known) >= team.size:
            longest = max(row_tokens([answers[number] for number in family]) for family in known)
            each = max(each, longest)
        max_tokens = min(max_tokens, each)
    rows = rows_of(answers, max_tokens)
    rows.sort(key=lambda row: row_tokens([answers[number] for number in row]), reverse=True)
    own = [(row, True) for row in team.share(rows)]
    if len(own) < math.ceil(len(rows) / team.size):
        lengths = [len(a.prompt) + len(a.tokens) for a in answers]
        own.append(([lengths.index(min(lengths))], False))
    return own


def answer_logprobs(
    model: Gemma3, answers: Sequence[Rollout], temperature: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Log-probabilities and entropies of the tokens of each answer, in one pass.

    The third are log-probabilities at a temperature of 1, without a gradient.
    """
    device = model.embedding.weight.device
    tokens: list[int] = []
    trees, before = [], []  # what each token of an answer is told from
    for family in families(answers):
        prompt = answers[family[0]].prompt
        tokens += prompt
        last = len(tokens) - 1
        for number in family:
            start = len(tokens)
            tokens += answers[number].tokens
            before += [last, *range(start, len(tokens) - 1)]
        trees.append((len(prompt), *(len(answers[number].tokens) for number in family)))
    plan = Branched(tuple(trees), device)
    flat = torch.tensor(tokens, device=device)
    hidden = model(flat[None], plan.positions(), plan)[0]
    targets = torch.tensor([token for answer in answers for token in answer.tokens], device=device)
    logprobs, entropies, plain = token_logprobs(
        hidden.index_select(0, torch.tensor(before, device=device)),
        model.embedding.weight,
        targets,
        temperature,
    )
    counts = [len(a.tokens) for a in answers]
    return list(logprobs.split(counts)), list(entropies.split(counts)), list(plain.split(counts))


def policy_step(
    model: Gemma3,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    config: RlConfig,
    learning_rate: float,
    known: Mapping[int, Known] | None = None,
    team: Team = ALONE,
    replayed: Sequence[Micro] = (),
) -> PolicyMeters:
    """Accumulate the gradients of all answers of a step over all processes, clip, update.

    `known` has what was computed before a first update; without it, the probabilities of now are
    the old ones. `replayed` is what `config.replay` adds. Where loss or gradient are not finite,
    nothing is changed.
    """
    answers = rollouts.answers
    learned = [is_learned(answer, config) for answer in answers]
    step_tokens = max(1, sum(len(a.tokens) for a, yes in zip(answers, learned, strict=True) if yes))
    sums = np.zeros(7)
    largest = 0.0
    for row, counts in own_rows(answers, config.micro_tokens, team):
        chosen = [answers[number] for number in row]
        logprobs, entropies, plain = answer_logprobs(model, chosen, config.temperature)
        now = pad_sequence(logprobs, batch_first=True)
        exists = pad_sequence([torch.ones_like(part) for part in logprobs], batch_first=True) > 0
        taught = torch.tensor([counts and learned[n] for n in row], device=now.device)
        mask = exists & taught[:, None]
        sampled = pad_sequence(
            [torch.tensor(a.logprobs, device=now.device) for a in chosen], batch_first=True
        ).float()
        old = now.detach()
        if known is not None:
            old = pad_sequence([known[number].old for number in row], batch_first=True)
        worth = torch.tensor([a.advantage for a in chosen], device=now.device, dtype=torch.float32)
        loss = _token_loss(now, old, worth, mask, config)
        if config.temperature == 1:  # at which the engine tells its own
            loss = loss * truncated_importance(old, sampled, mask, config.importance_cap)
        distance = torch.zeros_like(now)
        if config.kl and known is not None:
            references = [known[number].reference for number in row]
            theirs = pad_sequence([r for r in references if r is not None], batch_first=True)
            distance = kl_estimate(now, theirs, mask, config.kl_kind)
            loss = loss + config.kl * distance
        total = _aggregate(loss, mask, config, len(answers), step_tokens)
        # gradients of weights that are cut are averaged, others summed
        (total * team.cut.size).backward()
        sums[6] += total.item()
        with torch.no_grad():
            ratio = torch.where(mask, (now - old).exp(), 1.0)
            apart = (pad_sequence(plain, batch_first=True) - sampled).abs()
            apart = torch.where(mask, apart, 0.0)
            entropy = torch.where(mask, pad_sequence(entropies, batch_first=True), 0.0)
            low = (ratio < 1 - config.clip_low) & mask
            high = (ratio > 1 + config.clip_high) & mask
            parts = (entropy, low, high, apart, torch.where(mask, distance, 0.0), mask)
            figures = torch.stack([part.sum(dtype=torch.float64) for part in parts])
            sums[:6] += figures.cpu().numpy()
            largest = max(largest, apart.max().item())
    device = team.world.device
    *totals, learned_tokens, loss_sum = team.world.total(torch.from_numpy(sums).to(device)).tolist()
    largest = team.largest(torch.tensor(largest, device=device)).item()
    replay_loss = None
    if replayed and config.replay is not None:
        tally = accumulate(model, replayed, team.world, config.replay.weight, team.cut.size)
        replay_loss = tally.mean(team.world)
    team.sum_gradients([p for group in optimizer.param_groups for p in group["params"]])
    joined = join_gradients(optimizer, team.cut)
    norm, _ = descend(optimizer, learning_rate, config.max_gradient_norm, loss_sum, joined)
    means = [total / max(1, learned_tokens) for total in totals]
    return PolicyMeters(
        loss_sum,
        norm,
        means[0],
        means[1],
        means[2],
        means[3],
        largest,
        means[4],
        int(learned_tokens),
        replay_loss,
    )


def is_learned(answer: Rollout, config: RlConfig) -> bool:
    """Whether there is something to learn from an answer."""
    if answer.is_truncated and config.truncated == "mask":
        return False
    return answer.score.value is not None and answer.advantage != 0


def _token_loss(now: Tensor, old: Tensor, worth: Tensor, mask: Tensor, config: RlConfig) -> Tensor:
    if config.method == "cispo":
        return cispo_loss(now, old, worth, mask, max_ratio=1 + config.clip_high)
    return policy_loss(
        now,
        old,
        worth,
        mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        per_sequence=config.method == "gspo",
    )


def _aggregate(
    loss: Tensor, mask: Tensor, config: RlConfig, answers: int, step_tokens: int
) -> Tensor:
    """The share of this row in the loss of the step."""
    match config.method:
        case "dr_grpo":
            return aggregate(loss, mask, answers * config.max_tokens)
        case "rloo":
            return aggregate(loss, mask, answers)
        case "dapo" | "cispo":
            return aggregate(loss, mask, step_tokens)
        case _:
            return aggregate_by_answer(loss, mask, answers)
