"""What a step of training costs, as it was: time, tokens, operations, memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable

import torch

from singalaut.model.config import Gemma3Config
from singalaut.train.devices import device_of
from singalaut.train.parallel import World
from singalaut.train.plan import GIB, step_flops

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of what the system calls one


def step_figures(
    config: Gemma3Config, lengths: Iterable[int], seconds: float, world: World, adapter: bool
) -> dict[str, float]:
    """Seconds, tokens and operations a second, MFU and peak memory of a step of all processes.

    `lengths` are those of the documents of all processes. MFU is operations over the peak of dense
    bfloat16 products that the devices' maker states; it is left out where that is not known.
    """
    lengths = list(lengths)
    rate = step_flops(config, lengths, adapter) / seconds
    found: dict[str, float] = {
        "seconds": round(seconds, 4),
        "tokens_per_second": round(sum(lengths) / seconds),
        "flops_per_second": float(f"{rate:.4g}"),
    }
    if world.device.type == "cuda":
        device = device_of(torch.cuda.get_device_name(world.device))
        if device is not None:
            found["mfu"] = round(rate / world.size / device.peak_flops, 4)
    return {**found, "memory_gib": memory_gib(world)}


def memory_gib(world: World) -> float:
    """The most that tensors took on this process's GPU since the last time; on a CPU, the most
    that the process has taken so far."""
    if world.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(world.device)
        torch.cuda.reset_peak_memory_stats(world.device)
    else:
        peak = RSS_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / GIB, 3)
