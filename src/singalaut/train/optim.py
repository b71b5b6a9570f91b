"""AdamW over the right parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over the trainable parameters.

    Norms and embeddings are not decayed: Gemma 3's norms multiply by 1 + weight, so decay would
    pull them to 1, and rare tokens' embeddings would shrink between their appearances.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = parameter.ndim < 2 or name.startswith("embedding")
            (exempt if is_exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=learning_rate, betas=(0.9, 0.95)
    )


def scheduled_rate(step: int, steps: int, warmup: int, peak: float, final: float) -> float:
    """Linear rise over `warmup` steps, then half a cosine from `peak` down to `final` · `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
