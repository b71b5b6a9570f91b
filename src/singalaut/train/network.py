"""The network of a training stage: opened with what is to be learned, and written when it is.

Which stage learns what is told by its settings; the steps are the stages' own business.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from singalaut.artifact import Work
from singalaut.contracts import derive
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import (
    copy_companions,
    load_model,
    parameter_shapes,
    save_model,
    save_weights,
    stored_dtype,
)
from singalaut.model.lora import add_adapter, merge_adapter, save_adapter
from singalaut.model.training import checkpoint_layers, compile_layers, restore_layers
from singalaut.train.config import AdapterConfig
from singalaut.train.optim import Precision
from singalaut.train.parallel import World, shard, whole
from singalaut.train.plan import GIB, Keep, check_memory, memory_plan

log = logging.getLogger("singalaut")


class Learning(Protocol):
    """The settings that every stage has which changes weights."""

    @property
    def adapter(self) -> AdapterConfig | None: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def keep(self) -> Keep: ...
    @property
    def compile(self) -> bool: ...


def trainable(config: Learning, model: Path, end_of_turn: int, seed: int, world: World) -> Gemma3:
    """The network with what is to be learned, cut among the processes; a vision part is frozen."""
    dtype = torch.float32 if config.precision == "float32" else torch.bfloat16
    network = load_model(model, dtype, world.device).train()
    eos_ids = network.config.eos_ids
    if end_of_turn not in eos_ids:
        network.config = replace(network.config, eos_ids=(*eos_ids, end_of_turn))
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


def check_device(
    network: Gemma3, config: Learning, model: Path, world: World, row_tokens: int
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
    )
    log.info("memory of a step: about %.1f GiB a device", sum(plan.values()) / GIB)
    check_memory(plan, torch.cuda.get_device_properties(world.device).total_memory, model.name)


def write_model(
    network: Gemma3, config: Learning, model: Path, work: Work, seed: int, world: World
) -> None:
    """The tuned model; several processes put each tensor together, and the first one writes."""
    restore_layers(network)
    target, dtype = work.path / "model", stored_dtype(model)
    if world.size > 1:
        _write_together(network, config, model, work, seed, world)
    elif config.adapter is None:
        save_model(network, target, dtype)
    else:
        _write_adapted(network, model, work, dtype)
    if world.is_first:
        copy_companions(model, target)
    world.wait()


def _write_together(
    network: Gemma3, config: Learning, model: Path, work: Work, seed: int, world: World
) -> None:
    dtype = stored_dtype(model)
    names = dict(network.named_parameters())
    if config.adapter is None:
        tensors = (whole(names[name]) for name in parameter_shapes(network.config))
        if world.is_first:
            save_weights(work.path / "model", network.config, dtype, tensors)
        else:
            for _ in tensors:
                pass
        return
    learned = {name: whole(p).cpu() for name, p in names.items() if p.requires_grad}
    if world.is_first:
        adapter = config.adapter
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
