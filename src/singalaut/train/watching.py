"""Watching of a stage that trains, with an engine over the very weights for answers between steps.

One process lends its network; several put the weights together in the first one, where that has
room for them. The engine itself is made by whoever is given as `sampler_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from singalaut.artifact import Work
from singalaut.contracts import Message, Sampler, derive
from singalaut.errors import MachineError
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model
from singalaut.model.lora import add_adapter
from singalaut.train.config import AdapterConfig
from singalaut.train.parallel import World, is_small
from singalaut.train.plan import GIB
from singalaut.train.tensor_parallel import whole_parameter
from singalaut.watch.config import WatchConfig
from singalaut.watch.watch import Watch

SamplerOf = Callable[[Gemma3], Sampler]
Opened = Callable[[], AbstractContextManager[Sampler | None]]


class WatchedSettings(Protocol):
    """What stages say about how they are watched."""

    @property
    def kind(self) -> str: ...
    @property
    def adapter(self) -> AdapterConfig | None: ...
    @property
    def watch(self) -> WatchConfig: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Asked:
    """What a model is asked while it trains, and what makes an engine over its network.

    `sleeps`: the engine is there for these questions alone, and has no memory between them.
    """

    questions: Sequence[Sequence[Message]]
    sampler_of: SamplerOf
    sleeps: bool = True


def watch_stage(
    config: WatchedSettings,
    network: Gemma3,
    model: Path,
    asked: Asked | None,
    work: Work,
    seed: int,
    world: World,
    *,
    steps: int,
    start: int,
) -> Watch:
    """The watching of a stage, before its first step.

    Raises: MachineError for a tracker that is not there, or answers that cannot be had.
    """
    opened = None
    if asked is not None and asked.questions:
        opened = open_samplers(network, model, config.adapter, asked, seed, world)
    device = str(world.device)
    if world.device.type == "cuda":
        device = torch.cuda.get_device_name(world.device)
    return Watch(
        config.watch,
        work,
        kind=config.kind,
        steps=steps,
        start=start,
        settings=config.model_dump(mode="json"),
        questions=() if asked is None else asked.questions,
        open_sampler=opened,
        facts={"device": device, "processes": world.size},
        is_first=world.is_first,
    )


def open_samplers(
    network: Gemma3,
    model: Path,
    adapter: AdapterConfig | None,
    asked: Asked,
    seed: int,
    world: World,
) -> Opened:
    """What gives a Sampler over the weights of now; None in processes other than the first.

    All processes have to open it. Raises: MachineError where the weights cannot be put together.
    """
    if world.size == 1 or not asked.sleeps:
        return _lent(network, asked)
    held = sum(p.numel() * p.element_size() for p in network.parameters())
    weight_bytes = held * world.tensor  # neighbours have matrices in parts
    if world.device.type == "cuda" and not (world.is_uncut or is_small(weight_bytes, world)):
        raise MachineError(
            f"answers while training need all weights in one process, and {weight_bytes / GIB:.1f} "
            f"GiB are cut among {world.size} because a device has no room for them beside its work",
            where="watch.samples",
            hint="take `samples` away and let an `evaluate` stage ask the model afterwards",
        )
    return lambda: _gathered(network, model, adapter, asked.sampler_of, seed, world)


def _lent(network: Gemma3, asked: Asked) -> Opened:
    """One engine, which may sleep while the network is trained."""
    made: list[Sampler] = []

    @contextmanager
    def awake() -> Iterator[Sampler]:
        network.eval()
        if not made:
            made.append(asked.sampler_of(network))
        elif asked.sleeps:
            made[0].wake()
            made[0].weights_changed()
        try:
            yield made[0]
        finally:
            if asked.sleeps:
                made[0].sleep()
            network.train()

    return awake


@contextmanager
def _gathered(
    network: Gemma3,
    model: Path,
    adapter: AdapterConfig | None,
    sampler_of: SamplerOf,
    seed: int,
    world: World,
) -> Iterator[Sampler | None]:
    """An engine over a copy in the first process, while the others wait."""
    copy = None
    if world.is_first:
        copy = load_model(model, network.embedding.weight.dtype, world.device)
        copy.config = network.config
        if adapter is not None:
            start = derive(seed, "adapter")
            add_adapter(copy, adapter.rank, adapter.alpha, adapter.targets, start)
        copy.requires_grad_(False).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # all have to take part
            weight = whole_parameter(name, parameter.detach(), network.config, world)
            if copy is not None:
                copy.get_parameter(name).data = weight
    try:
        yield None if copy is None else sampler_of(copy)
    finally:
        world.wait()  # also where answering fails: the others are here already
