"""One optimiser step over micro-batches: the inner loop that training stages share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from singalaut.data.batches import Micro
from singalaut.loss.sft import sft_loss
from singalaut.model.attention import Packed
from singalaut.model.gemma3 import Gemma3
from singalaut.train.parallel import World, add_up, gradient_norm, scale_gradients
from singalaut.train.pictures import embed_pictures
from singalaut.train.tensor_parallel import share_gradients

ALONE = World()


@dataclass(frozen=True)
class Meters:
    """What one step measured: mean loss in nats a learned token, gradient norm before clipping."""

    loss: float
    gradient_norm: float
    tokens: int
    learned_tokens: int
    losses: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 2)))
    """[sources, languages, 2]: sum of losses and number of learned tokens."""

    taken: bool = True
    """Whether weights were changed."""

    @property
    def fault(self) -> tuple[float, float]:
        return self.loss, self.gradient_norm


def train_step(
    model: Gemma3,
    optimizer: torch.optim.Optimizer,
    micros: Sequence[Micro],
    learning_rate: float,
    max_gradient_norm: float,
    world: World = ALONE,
    spike: float | None = None,
) -> Meters:
    """Accumulate gradients over all processes' micro-batches, clip, step.

    Each process is given all micro-batches and takes its share. Where loss or gradient are not
    finite, or the gradient's norm is above `spike`, nothing is changed.
    """
    tally = accumulate(model, micros, world)
    norm = join_gradients(optimizer, world)  # before the host waits for losses
    table = tally.table(world)
    learned = int(table[..., 1].sum())
    loss = float(table[..., 0].sum() / max(1, learned))
    length, taken = descend(optimizer, learning_rate, max_gradient_norm, loss, norm, spike)
    tokens = sum(micro.tokens.numel() for micro in micros)
    return Meters(loss, length, tokens, learned, table, taken)


def accumulate(
    model: Gemma3,
    micros: Sequence[Micro],
    world: World,
    weight: float = 1.0,
    averaged_over: int | None = None,
) -> Tally:
    """Add the gradients of `weight` × the mean loss of all processes' micro-batches.

    `averaged_over` says of how many processes gradients are averaged later: of all that have a
    share, where None.
    """
    learned = max(1, sum(int(micro.mask.sum()) for micro in micros))
    parts = world.data_size if averaged_over is None else averaged_over
    tally = Tally(micros)
    own = share(micros, world)
    for micro, images in zip(own, _images_of(model, own), strict=True):
        mean, losses = _loss(model, micro, images, learned / parts / weight)
        mean.backward()
        tally.add(micro, losses)
    return tally


def join_gradients(optimizer: torch.optim.Optimizer, world: World = ALONE) -> Tensor:
    """Level the gradients of all processes out, where that is left to do; the norm of all."""
    if world.size > 1 and world.is_uncut:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        add_up([p.grad for p in parameters if p.grad is not None], world, 1 / world.size)
    share_gradients(optimizer.param_groups, world)
    return gradient_norm(optimizer.param_groups, world)


def descend(
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    max_gradient_norm: float,
    loss: float,
    norm: Tensor,
    spike: float | None = None,
) -> tuple[float, bool]:
    """Step along the gradients that are there, clipped; their norm, and whether it was done.

    Nothing is changed where `loss` or the norm are not finite, or the norm is above `spike`.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    length = norm.item()
    taken = math.isfinite(loss) and math.isfinite(length) and (spike is None or length <= spike)
    if taken:
        if length > max_gradient_norm:
            scale_gradients(parameters, max_gradient_norm / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return length, taken


@torch.no_grad()
def validate(model: Gemma3, micros: Sequence[Micro], world: World = ALONE) -> np.ndarray:
    """Losses by source and language, as in `Meters.losses`, of what is not learned from."""
    tally = Tally(micros)
    own = share(micros, world)
    for micro, images in zip(own, _images_of(model, own), strict=True):
        _, losses = _loss(model, micro, images, 1.0)
        tally.add(micro, losses)
    return tally.table(world)


def share(micros: Sequence[Micro], world: World) -> list[Micro]:
    """The micro-batches of this process; all get equally many, if need be one without a loss."""
    own = list(micros[world.data_rank :: world.data_size])
    if len(own) < math.ceil(len(micros) / world.data_size):
        zero = torch.zeros(1, 1, dtype=torch.int64)
        own.append(Micro(zero, zero.bool(), (1,)))
    return own


class Tally:
    """Losses of micro-batches by source and language; they come to the host once, at the end."""

    def __init__(self, micros: Sequence[Micro]):
        sources = 1 + max((s for micro in micros for s in micro.sources), default=0)
        languages = 1 + max((n for micro in micros for n in micro.languages), default=0)
        self._shape = (sources, languages)
        self._losses: list[Tensor] = []
        self._places: list[np.ndarray] = []

    def add(self, micro: Micro, losses: Tensor) -> None:
        """The losses of the learned tokens of a micro-batch, in order."""
        mask, ends = micro.mask[0].numpy().astype(np.int64), np.cumsum(micro.lengths)
        mask[0] = 0  # nothing stands before it
        places = np.zeros(len(ends), dtype=np.int64)
        if micro.sources:
            places = np.array(micro.sources) * self._shape[1] + np.array(micro.languages)
        counts = np.add.reduceat(mask, ends - np.array(micro.lengths))
        self._places.append(places.repeat(counts))
        self._losses.append(losses.detach())

    def mean(self, world: World) -> float:
        """The mean loss of a learned token, of all processes."""
        total, count = self.table(world).sum((0, 1))
        return float(total / max(1, count))

    def table(self, world: World) -> np.ndarray:
        """[sources, languages, 2]: sums of losses and numbers of tokens, of all processes."""
        losses = torch.cat(self._losses).cpu().numpy()
        places, size = np.concatenate(self._places), math.prod(self._shape)
        sums = np.bincount(places, losses, size), np.bincount(places, minlength=size)
        table = torch.from_numpy(np.stack(sums, -1).reshape(*self._shape, 2)).to(world.device)
        return world.total(table).cpu().numpy()


def _loss(
    model: Gemma3, micro: Micro, images: Tensor | None, normaliser: float
) -> tuple[Tensor, Tensor]:
    device = model.embedding.weight.device
    groups = None if images is None else model.image_groups(micro.tokens)[0]
    plan = Packed(micro.lengths, groups, device)
    tokens = micro.tokens.to(device, non_blocking=True)
    hidden = model(tokens, plan.positions(), plan, images)
    return sft_loss(hidden, model.embedding.weight, tokens, micro.mask, normaliser)


def _images_of(model: Gemma3, micros: Sequence[Micro]) -> list[Tensor | None]:
    """The embeddings of each micro-batch's pictures; each of the step's is computed once."""
    sources = [source for micro in micros for source in micro.pictures]
    if not sources:
        return [None] * len(micros)
    pieces = embed_pictures(model, sources).split([len(micro.pictures) for micro in micros])
    return [piece if len(piece) else None for piece in pieces]
