"""One step on pairs: log-probabilities of whole answers, the loss, and what it measured.

Both conversations of a pair lie in one packed row, what they begin with once, so a row's loss needs
no other row. Shapes: B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from singalaut.data.batches import Micro
from singalaut.data.pair_batches import PairRow
from singalaut.loss.apo import PairLogprobs, PairLoss, PairMeters, pair_losses
from singalaut.loss.logprobs import token_logprobs
from singalaut.model.branched import Branched
from singalaut.model.gemma3 import Gemma3
from singalaut.train.parallel import World
from singalaut.train.step import ALONE, accumulate, descend, join_gradients

# numbers measured of each pair
MEASURED = ("loss", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob")


@dataclass(frozen=True)
class PairLosses:
    """Which loss is taken, and how."""

    name: PairLoss
    beta: float
    gamma: float


@dataclass(frozen=True)
class PairStep:
    """What one step measured; `table` is [B, len(MEASURED)], one row a pair."""

    table: np.ndarray
    gradient_norm: float
    tokens: int
    taken: bool
    replay_loss: float | None = None

    @property
    def loss(self) -> float:
        return float(self.table[:, 0].mean())

    @property
    def fault(self) -> tuple[float, float]:
        return self.loss, self.gradient_norm


def answer_logprobs(model: Gemma3, row: PairRow) -> Tensor:
    """[B, 2]: the log-probability of the chosen and the rejected answer of each pair, in nats."""
    device = model.embedding.weight.device
    plan = Branched(row.trees, device)
    hidden = model(row.tokens.to(device), plan.positions(), plan)[0]
    weight = model.embedding.weight  # not before: several processes put it together just now
    logprobs, *_ = token_logprobs(hidden[row.before.to(device)], weight, row.targets.to(device))
    count = len(row.places)
    sums = logprobs.new_zeros(2 * count)
    return sums.index_add(0, row.answer_document.to(device), logprobs).view(count, 2)


def pair_step(
    model: Gemma3,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[PairRow],
    answers: np.ndarray,
    reference: np.ndarray,
    loss: PairLosses,
    learning_rate: float,
    max_gradient_norm: float,
    world: World = ALONE,
    replayed: Sequence[Micro] = (),
    weight: float = 1.0,
) -> PairStep:
    """Descend along the mean loss of the step's pairs; each process takes its share of the rows.

    `answers` has the tokens and `reference` the reference's log-probabilities of both answers of
    each pair, [B, 2]; conversations of `replayed` add `weight` × their mean loss. Where loss or
    gradient are not finite, nothing is changed.
    """
    count = len(answers)

    def learn(losses: Tensor) -> None:
        (losses.sum() * world.data_size / count).backward()  # gradients of processes are averaged

    table = _measure(model, rows, answers, reference, loss, world, learn)
    mean = float(table[:, 0].mean())
    replay_loss = accumulate(model, replayed, world, weight).mean(world) if replayed else None
    joined = join_gradients(optimizer, world)
    norm, taken = descend(optimizer, learning_rate, max_gradient_norm, mean, joined)
    tokens = sum(row.tokens.numel() for row in rows)
    tokens += sum(micro.tokens.numel() for micro in replayed)
    return PairStep(table, norm, tokens, taken, replay_loss)


@torch.no_grad()
def measure_pairs(
    model: Gemma3,
    rows: Sequence[PairRow],
    answers: np.ndarray,
    reference: np.ndarray,
    loss: PairLosses,
    world: World = ALONE,
) -> np.ndarray:
    """The numbers of pairs that are not learned from, as in `PairStep.table`."""
    return _measure(model, rows, answers, reference, loss, world, None)


@torch.no_grad()
def reference_logprobs(
    model: Gemma3, rows: Sequence[PairRow], count: int, world: World = ALONE
) -> np.ndarray:
    """[count, 2]: log-probabilities of both answers of each pair, from all processes."""
    table = torch.zeros(count, 2, device=world.device)
    for row in _share(rows, world):
        table[torch.from_numpy(row.places).to(world.device)] = answer_logprobs(model, row)
    return world.total(table).cpu().numpy()


def _measure(
    model: Gemma3,
    rows: Sequence[PairRow],
    answers: np.ndarray,
    reference: np.ndarray,
    loss: PairLosses,
    world: World,
    learn: Callable[[Tensor], None] | None,
) -> np.ndarray:
    table = torch.zeros(len(answers), len(MEASURED), device=world.device)
    for row in _share(rows, world):
        losses, meters, sums = _row(model, row, answers, reference, loss)
        if learn is not None:
            learn(losses)
        found = (losses, meters.chosen_rewards, meters.rejected_rewards, *sums.unbind(1))
        table[torch.from_numpy(row.places).to(world.device)] = torch.stack(found, 1).detach()
    return world.total(table).cpu().numpy()


def row_losses(
    model: Gemma3, row: PairRow, answers: np.ndarray, reference: np.ndarray, loss: PairLosses
) -> Tensor:
    """[pairs of the row]: the loss of each; the arrays are of all pairs, by `row.places`."""
    return _row(model, row, answers, reference, loss)[0]


def _row(
    model: Gemma3, row: PairRow, answers: np.ndarray, reference: np.ndarray, loss: PairLosses
) -> tuple[Tensor, PairMeters, Tensor]:
    """Losses, meters and log-probabilities of the pairs of a row."""
    sums = answer_logprobs(model, row)
    tokens = torch.from_numpy(answers[row.places]).to(sums.device)
    wanted = torch.from_numpy(reference[row.places]).to(sums)
    logprobs = PairLogprobs(*sums.unbind(1), *wanted.unbind(1), *tokens.unbind(1))
    return *pair_losses(loss.name, logprobs, loss.beta, loss.gamma), sums


def _share(rows: Sequence[PairRow], world: World) -> list[PairRow]:
    """The rows of this process; all get equally many, if need be one without a pair."""
    own = list(rows[world.data_rank :: world.data_size])
    if len(own) < math.ceil(len(rows) / world.data_size):
        nothing = torch.zeros(0, dtype=torch.int64)
        zero = torch.zeros(1, 1, dtype=torch.int64)
        own.append(PairRow(zero, ((1,),), nothing, nothing, nothing, np.zeros(0, dtype=np.int64)))
    return own
