"""Gradients of several sets of samples at the checkpoints of a warm-up; a killed run goes on.

What a step of the warm-up learns from, and whose gradients are taken, is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from singalaut.artifact import Work
from singalaut.contracts import derive
from singalaut.errors import DataError
from singalaut.model.gemma3 import Gemma3
from singalaut.progress import progress
from singalaut.select.config import GradientSettings
from singalaut.select.features import Features, GradientsOf, adam_steps, measure
from singalaut.select.project import Sketch
from singalaut.train.checkpoint import Checkpoints
from singalaut.train.optim import adamw
from singalaut.train.parallel import World

WarmStep = Callable[[int, torch.optim.Optimizer, float], tuple[float, float]]


class SampleSet(NamedTuple):
    """Samples whose gradients are taken: the tokens of each, and what takes them."""

    tokens: np.ndarray
    gradients_of: GradientsOf


def measure_sets(
    config: GradientSettings,
    network: Gemma3,
    warm_step: WarmStep,
    sets: Sequence[SampleSet],
    work: Work,
    seed: int,
    world: World,
) -> list[list[Features]]:
    """Features of every set at each checkpoint; of the first, the pool, the steps Adam would take.

    `warm_step(step, optimizer, rate)` learns, and gives the loss and the gradient's norm.
    """
    optimizer = adamw(network, config.learning_rate, 0.0)
    checkpoints = Checkpoints(work.scratch, network, optimizer, world)
    done = checkpoints.load()
    sketch = Sketch(config.dimensions, derive(seed, "projection"), world.device)
    found: list[list[Features]] = [[] for _ in sets]
    total = config.checkpoints * sum(len(each.tokens) for each in sets)
    with progress("gradients", total, "gradient") as bar:
        for number, end in enumerate(config.measured_after()):
            if done < end:
                work.rewind(done)
                for step in range(done, end):
                    loss, norm = warm_step(step, optimizer, config.rate(step))
                    work.log(step=step, loss=loss, gradient_norm=norm)
                checkpoints.save(end)
                checkpoints.finish()
                done = end
            if not any("step" in state for state in optimizer.state.values()):
                raise DataError(
                    "no step of the warm-up changed the adapter: loss or gradient is not finite",
                    hint="is the model damaged? `singalaut generate` shows what it gives",
                )
            for index, (each, features) in enumerate(zip(sets, found, strict=True)):
                place = work.scratch / "features" / f"{number}-{index}"
                steps = adam_steps(network, optimizer) if index == 0 else None
                features.append(measure(each.tokens, each.gradients_of, sketch, steps, place, bar))
    return found
