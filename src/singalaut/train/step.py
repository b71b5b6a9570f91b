"""One optimiser step over micro-batches: the inner loop that training stages share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from singalaut.data.batches import Micro
from singalaut.loss.sft import sft_loss
from singalaut.model.attention import Packed
from singalaut.model.gemma3 import Gemma3
from singalaut.train.pictures import embed_pictures


@dataclass(frozen=True)
class Meters:
    """What one step measured: mean loss in nats a learned token, gradient norm before clipping."""

    loss: float
    gradient_norm: float
    tokens: int
    learned_tokens: int


def train_step(
    model: Gemma3,
    optimizer: torch.optim.Optimizer,
    micros: list[Micro],
    learning_rate: float,
    max_gradient_norm: float,
) -> Meters:
    """Accumulate gradients over the micro-batches, clip, step."""
    device = model.embedding.weight.device
    learned = sum(int(micro.mask.sum()) for micro in micros)
    total = 0.0
    for micro, images in zip(micros, _images_of(model, micros), strict=True):
        groups = None if images is None else model.image_groups(micro.tokens)[0]
        plan = Packed(micro.lengths, groups, device)
        tokens, mask = micro.tokens.to(device), micro.mask.to(device)
        hidden = model(tokens, plan.positions(), plan, images)
        loss = sft_loss(hidden, model.embedding.weight, tokens, mask, learned)
        loss.backward()
        total += loss.item()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = clip_grad_norm_(parameters, max_gradient_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Meters(total, norm.item(), sum(m.tokens.numel() for m in micros), learned)


def _images_of(model: Gemma3, micros: list[Micro]) -> list[Tensor | None]:
    """The embeddings of each micro-batch's pictures; each of the step's is computed once."""
    sources = [source for micro in micros for source in micro.pictures]
    if not sources:
        return [None] * len(micros)
    pieces = embed_pictures(model, sources).split([len(micro.pictures) for micro in micros])
    return [piece if len(piece) else None for piece in pieces]
