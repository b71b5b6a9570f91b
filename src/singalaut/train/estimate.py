"""What a stage will take before it is run: steps, tokens, operations, hours, energy, money.

Times come from operations over what training reached on known devices (`devices.py`), or over what
the caller states. Memory is `plan.py`'s business.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from singalaut.model.config import SIZES, Gemma3Config
from singalaut.train.config import AdapterConfig, ApoConfig, SftConfig
from singalaut.train.devices import (
    DEVICES,
    MEASURED_ON,
    MEASURED_PEAK_FLOPS,
    MEASURED_TOGETHER,
    TRAINING_FLOPS,
    Device,
    device_of,
)
from singalaut.train.parallel import World
from singalaut.train.plan import layer_weights, memory_plan, step_flops

log = logging.getLogger("singalaut")
Lengths = Sequence[int] | np.ndarray
TOGETHER = 0.9  # of the speed of one device, each of several: measured at 1B on two H200
SAMPLED = 4096  # documents whose operations are counted one by one


@dataclass(frozen=True)
class Fleet:
    """The devices that a stage is planned for; `flops` is what one reaches, if that is known.

    `price` is of one device and hour, `watts` what one takes, with its share of the machine.
    """

    device: Device
    count: int = 1
    flops: float | None = None
    watts: float | None = None
    price: float | None = None

    def speed(self, config: Gemma3Config) -> tuple[float, str]:
        """Operations a second of all devices together, and where the figure comes from."""
        if self.flops is not None:
            return self.flops * self.count, "as stated"
        size = nearest_size(config, TRAINING_FLOPS)
        reached, told = (
            TRAINING_FLOPS[size],
            f"measured at {size.upper()} on {' and '.join(MEASURED_ON)}",
        )
        if self.device.name not in MEASURED_ON:
            reached *= self.device.peak_flops / MEASURED_PEAK_FLOPS
            told += ", by the ratio of peaks"
        if size in MEASURED_TOGETHER:
            return reached * self.count, told
        return reached * self.count * (TOGETHER if self.count > 1 else 1), told


@dataclass(frozen=True)
class Estimate:
    """What a stage comes to; `seconds` by phase, `memory` in bytes of one device by part."""

    steps: int
    tokens: float
    flops: float
    seconds: dict[str, float]
    memory: dict[str, int] = field(default_factory=dict)
    speed_from: str = ""
    notes: tuple[str, ...] = ()

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    def energy_kwh(self, fleet: Fleet) -> float:
        """Of all devices at what was stated, or at the most that they take."""
        watts = fleet.device.power_watts if fleet.watts is None else fleet.watts
        return self.hours * fleet.count * watts / 1000

    def cost(self, fleet: Fleet) -> float | None:
        return None if fleet.price is None else self.hours * fleet.count * fleet.price

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())


def sft_estimate(
    config: SftConfig, shape: Gemma3Config, lengths: Lengths, steps: int, fleet: Fleet
) -> Estimate:
    """Of fine-tuning on conversations of these lengths, which stand for all that are used."""
    documents = steps * config.batch_size
    mean_tokens, mean_flops = _means(shape, lengths, config.adapter is not None)
    speed, told = fleet.speed(shape)
    flops = documents * mean_flops
    row = max(config.micro_tokens, int(max(lengths)))
    return Estimate(
        steps,
        documents * mean_tokens,
        flops,
        {"train": flops / speed},
        trainer_memory(config, shape, row, fleet.count),
        told,
    )


def apo_estimate(
    config: ApoConfig,
    shape: Gemma3Config,
    lengths: Lengths,
    pairs: int,
    steps: int,
    fleet: Fleet,
) -> Estimate:
    """Of alignment: both conversations of each pair, and once the reference's pass over them.

    `lengths` are as computed: of two conversations that begin alike, the second has the rest.
    """
    documents = 2 * steps * config.batch_size
    mean_tokens, mean_flops = _means(shape, lengths, config.adapter is not None)
    _, learned_whole = _means(shape, lengths, False)
    once = 0 if config.loss == "simpo" else 2 * min(pairs, steps * config.batch_size)
    speed, told = fleet.speed(shape)
    train, reference = documents * mean_flops, once * learned_whole / 3  # forward is a third
    row = max(config.micro_tokens, 2 * int(max(lengths)))
    return Estimate(
        steps,
        documents * mean_tokens,
        train + reference,
        {"reference": reference / speed, "train": train / speed},
        trainer_memory(config, shape, row, fleet.count),
        told,
    )


def trainer_memory(
    config: SftConfig | ApoConfig, shape: Gemma3Config, row_tokens: int, processes: int
) -> dict[str, int]:
    """Bytes of a device by part, as in `memory_plan`, for the settings of a stage.

    At least as many processes are counted as its replicas and neighbours need.
    """
    return memory_plan(
        shape,
        row_tokens,
        precision=config.precision,
        keep=config.keep,
        learned=None if config.adapter is None else adapter_weights(shape, config.adapter),
        processes=max(processes, config.replicas * config.tensor_parallel),
        rule=config.optimizer,
        moments=config.moments,
        has_average=isinstance(config, SftConfig) and config.ema is not None,
        replicas=config.replicas,
        tensor=config.tensor_parallel,
    )


def adapter_weights(shape: Gemma3Config, adapter: AdapterConfig) -> int:
    """Weights of low-rank adapters: rank · (in + out) of each matrix they are added to."""
    width, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sides = {
        **{"query": width + queries, "key": width + keys, "value": width + keys},
        **{"output": queries + width, "gate": width + inner, "up": width + inner},
        "down": inner + width,
    }
    return shape.num_layers * adapter.rank * sum(sides[name] for name in adapter.targets)


def tell_expected(estimate_on: Callable[[Fleet], Estimate], world: World) -> None:
    """Say in the log what a stage is about to take; hours where its device is known."""
    if not world.is_first:
        return
    fleet = fleet_of(world)
    estimate = estimate_on(fleet or Fleet(DEVICES["NVIDIA H100"]))
    told = f"{estimate.steps:,} steps, about {estimate.tokens:,.0f} tokens, "
    told += f"{estimate.flops:.2g} operations"
    if fleet is not None:
        told += f", {estimate.hours:.2g} h and {estimate.energy_kwh(fleet):.2g} kWh at most on "
        told += f"{fleet.count} {fleet.device.name} ({estimate.speed_from})"
    log.info("expected: %s", told)


def fleet_of(world: World) -> Fleet | None:
    """The devices of a run, where they are known ones."""
    if world.device.type != "cuda":
        return None
    device = device_of(torch.cuda.get_device_name(world.device))
    return None if device is None else Fleet(device, world.size)


def nearest_size(config: Gemma3Config, known: dict[str, float]) -> str:
    """Of the sizes that were measured, the one with the number of weights nearest to this one's."""
    weights = config.num_layers * layer_weights(config) + config.vocab_size * config.hidden_size

    def distance(size: str) -> float:
        return abs(math.log(SIZES[size].num_parameters / weights))

    return min(known, key=distance)


def _means(shape: Gemma3Config, lengths: Lengths, adapter: bool) -> tuple[float, float]:
    """Tokens and operations of a document, on average."""
    found = np.asarray(lengths, dtype=np.int64)
    chosen = found if len(found) <= SAMPLED else found[:: -(-len(found) // SAMPLED)]
    flops = step_flops(shape, chosen.tolist(), adapter) / int(chosen.sum())
    return float(found.mean()), flops * float(found.mean())
