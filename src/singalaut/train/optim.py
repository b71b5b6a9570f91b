"""Which optimiser steps which parameters, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import torch
from torch import nn

from singalaut.errors import RecipeError
from singalaut.train.adamw import BETAS, AdamW, Moments, Precision
from singalaut.train.moments import BLOCK
from singalaut.train.muon import Muon
from singalaut.train.parallel import World
from singalaut.train.tensor_parallel import copies_of, sharing_of, side_of

Rule = Literal["adamw", "muon"]
ALONE = World()


class OptimizerSettings(Protocol):
    """What stages that train say about their optimiser."""

    @property
    def optimizer(self) -> Rule: ...
    @property
    def moments(self) -> Moments: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def open_optimizer(
    config: OptimizerSettings, model: nn.Module, seed: int, world: World
) -> torch.optim.Optimizer:
    """The optimiser that a stage's settings ask for."""
    make = muon if config.optimizer == "muon" else adamw
    given = (config.learning_rate, config.weight_decay, config.precision, seed)
    return make(model, *given, config.moments, world)


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    precision: Precision = "float32",
    seed: int = 0,
    moments: Moments = "full",
    world: World = ALONE,
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; the library's fused one where it can do it."""
    groups = parameter_groups(model, weight_decay, world)
    _check_blocks(groups, moments)
    if precision == "float32" and moments == "full" and world.tensor == 1:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)
    return AdamW(groups, learning_rate, precision=precision, seed=seed, moments=moments)


def muon(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    precision: Precision = "float32",
    seed: int = 0,
    moments: Moments = "full",
    world: World = ALONE,
) -> Muon:
    """Muon over the matrices of the layers, AdamW over all else that is trained."""
    groups = parameter_groups(model, weight_decay, world, rule="muon")
    _check_blocks(groups, moments)
    given: dict[str, Any] = {"precision": precision, "seed": seed, "moments": moments}
    return Muon(groups, learning_rate, world=world, **given)


def parameter_groups(
    model: nn.Module, weight_decay: float, world: World = ALONE, rule: Rule = "adamw"
) -> list[dict[str, Any]]:
    """Trainable parameters by what is done with them; `rule` is that of decayed matrices.

    Norms and embeddings are not decayed: Gemma 3's norms multiply by 1 + weight, so decay would
    pull them to 1, and rare tokens' embeddings would shrink between their appearances.
    """
    config: Any = getattr(model, "config", None)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for is_exempt in (False, True):  # the decayed ones come first
        for name, parameter in model.named_parameters():
            exempt = parameter.ndim < 2 or name.startswith("embedding")
            if not parameter.requires_grad or exempt != is_exempt:
                continue
            settings = {
                "weight_decay": 0.0 if exempt else weight_decay,
                "rule": "adamw" if exempt else rule,
                "copies": copies_of(name, config, world),
                "sharing": sharing_of(name, config, world),
                "side": side_of(name, config, world),
            }
            key = (is_exempt, *settings.values())
            groups.setdefault(key, {"params": [], **settings})["params"].append(parameter)
    return list(groups.values())


def _check_blocks(groups: list[dict[str, Any]], moments: Moments) -> None:
    """Blocks of 8-bit moments must not depend on how many neighbours there are.

    Raises: RecipeError where neighbours' parts of rows do not consist of whole blocks.
    """
    columns = {p.shape[1] for g in groups if g["side"] == 1 for p in g["params"]}
    if moments == "int8" and (uneven := [n for n in columns if n % BLOCK]):
        raise RecipeError(
            f"with `tensor_parallel`, a process has {uneven[0]} columns of a matrix, which is no "
            f"multiple of the {BLOCK} that share a scale",
            where='moments = "int8"',
            hint="lower `tensor_parallel`, or leave `moments` out",
        )


def scheduled_rate(step: int, steps: int, warmup: int, peak: float, final: float) -> float:
    """Linear rise over `warmup` steps, then half a cosine from `peak` down to `final` · `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
