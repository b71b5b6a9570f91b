"""The network of a training stage: loaded and cut among processes before, written whole after."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import torch

from singalaut.artifact import Work
from singalaut.contracts import derive
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import (
    load_model,
    parameter_shapes,
    save_model,
    save_weights,
    stored_dtype,
)
from singalaut.model.lora import add_adapter, merge_adapter, save_adapter
from singalaut.model.training import checkpoint_layers, compile_layers, restore_layers
from singalaut.train.adamw import Moments, Precision
from singalaut.train.config import AdapterConfig
from singalaut.train.optim import Rule
from singalaut.train.parallel import World, shard
from singalaut.train.plan import GIB, check_memory, memory_plan
from singalaut.train.tensor_parallel import whole_parameter

log = logging.getLogger("singalaut")


class TrainingSettings(Protocol):
    """What stages that train say about their network."""

    @property
    def precision(self) -> Precision: ...
    @property
    def adapter(self) -> AdapterConfig | None: ...
    @property
    def keep(self) -> Literal["all", "products", "attention", "inputs"]: ...
    @property
    def compile(self) -> bool: ...


class PlannedSettings(TrainingSettings, Protocol):
    """What else decides how much memory a step takes."""

    @property
    def optimizer(self) -> Rule: ...
    @property
    def moments(self) -> Moments: ...


def trainable(
    config: TrainingSettings, model: Path, end_of_turn: int, seed: int, world: World
) -> Gemma3:
    """The network with what is to be learned, cut among the processes; a vision part is frozen."""
    dtype = torch.float32 if config.precision == "float32" else torch.bfloat16
    if dtype == torch.bfloat16 and world.device.type == "cpu" and not _multiplies_bfloat16():
        log.warning('this processor is slow with bfloat16: `precision = "float32"` takes less time')
    network = load_model(model, dtype, world.device).train()
    stop_at(network, end_of_turn)
    if config.adapter is not None:
        adapter = config.adapter
        init = derive(seed, "adapter")
        add_adapter(network, adapter.rank, adapter.alpha, adapter.targets, init)
    else:
        network.requires_grad_(True)
        if network.vision is not None:
            network.vision.requires_grad_(False)  # as Google trained: the decoder alone
    if config.keep != "all":
        checkpoint_layers(network, config.keep)
    if config.compile:
        compile_layers(network)
    return shard(network, world)


def stop_at(network: Gemma3, end_of_turn: int) -> None:
    """Let answers of the network end there, too."""
    eos_ids = network.config.eos_ids
    if end_of_turn not in eos_ids:
        network.config = replace(network.config, eos_ids=(*eos_ids, end_of_turn))


def _multiplies_bfloat16() -> bool:
    """Whether the processor has fast products of bfloat16, as far as PyTorch's library can tell."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return known is None or bool(known())


def check_device(
    network: Gemma3,
    config: PlannedSettings,
    model: Path,
    world: World,
    row_tokens: int,
    has_average: bool = False,
) -> None:
    """Say what a step will take of the device's memory, and refuse what it has not got."""
    if world.device.type != "cuda":
        return
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    plan = memory_plan(
        network.config,
        row_tokens,
        precision=config.precision,
        keep=config.keep,
        learned=None if config.adapter is None else learned,
        processes=world.size,
        rule=config.optimizer,
        moments=config.moments,
        has_average=has_average,
        replicas=world.replicas,
        tensor=world.tensor,
    )
    log.info("memory of a step: about %.1f GiB a device", sum(plan.values()) / GIB)
    room = torch.cuda.get_device_properties(world.device).total_memory
    names = ("precision", "keep", "moments", "adapter")
    check_memory(plan, room, model.name, {name: getattr(config, name) for name in names})


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """Set when the process is asked to end, so that it can do so with a checkpoint."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def write_model(
    network: Gemma3,
    adapter: AdapterConfig | None,
    model: Path,
    work: Work,
    seed: int,
    world: World,
) -> None:
    """The tuned model; several processes put each tensor together, and the first one writes."""
    restore_layers(network)
    target, dtype = work.path / "model", stored_dtype(model)
    if world.size > 1:
        _write_together(network, adapter, model, work, seed, world)
    elif adapter is None:
        save_model(network, target, dtype)
    else:
        _write_adapted(network, model, work, dtype)


def _write_together(
    network: Gemma3,
    adapter: AdapterConfig | None,
    model: Path,
    work: Work,
    seed: int,
    world: World,
) -> None:
    dtype = stored_dtype(model)
    names = dict(network.named_parameters())
    if adapter is None:
        tensors = (
            whole_parameter(name, names[name], network.config, world)
            for name in parameter_shapes(network.config)
        )
        if world.is_first:
            save_weights(work.path / "model", network.config, dtype, tensors)
        else:
            for _ in tensors:
                pass
        return
    learned = {
        name: whole_parameter(name, parameter, network.config, world).cpu()
        for name, parameter in names.items()
        if parameter.requires_grad
    }
    if world.is_first:
        plain = load_model(model, dtype, "cpu")
        plain.config = network.config
        add_adapter(plain, adapter.rank, adapter.alpha, adapter.targets, derive(seed, "adapter"))
        for name, weight in learned.items():
            plain.get_parameter(name).data = weight
        _write_adapted(plain, model, work, dtype)


def _write_adapted(network: Gemma3, model: Path, work: Work, dtype: torch.dtype) -> None:
    folder = model.parent if model.name == "model" else model
    save_adapter(network, work.path / "adapter", base_name=folder.name)
    merge_adapter(network)
    save_model(network, work.path / "model", dtype)
