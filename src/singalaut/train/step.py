"""One optimiser step over micro-batches: the inner loop that training stages share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grad_norm_

from singalaut.data.batches import Micro
from singalaut.loss.sft import sft_loss
from singalaut.model.attention import Packed
from singalaut.model.gemma3 import Gemma3


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
    for micro in micros:
        plan = Packed(micro.lengths, device=device)
        tokens, mask = micro.tokens.to(device), micro.mask.to(device)
        hidden = model(tokens, plan.positions(), plan)
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
