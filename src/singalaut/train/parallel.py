"""The processes of a training job: who they are, how they share a model, and what they agree on.

`torchrun` starts one process a GPU (or several on a CPU, over gloo). Weights, gradients and moments
are cut along their first side, layer by layer (FSDP2: each layer is put together just before it
runs). With one process nothing here does anything, and the code around it is the same.
Source: arXiv 2304.11277.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from singalaut.errors import MachineError
from singalaut.model.gemma3 import Gemma3

TIMEOUT = timedelta(minutes=10)  # of a process that the others wait for


@dataclass(frozen=True)
class World:
    """This process among those of the job."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return here
        return bool(self.total(torch.tensor(float(here), device=self.device)).item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


def join_world() -> World:
    """Meet the other processes that `torchrun` started, if it did.

    Raises: MachineError naming the process if the others cannot be met.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        return World(device=device)
    if not torch.distributed.is_initialized():
        try:
            torch.distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                timeout=TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )
        except (RuntimeError, ValueError) as error:
            raise MachineError(
                f"process {rank} of {size} could not meet the others: {error}",
                hint="start all with `torchrun`, and look at the log of the first that ended",
            ) from error
    return World(rank, size, device)


def shard(model: Gemma3, world: World) -> Gemma3:
    """Cut the weights among the processes: each layer by itself, then what is around them.

    Gradients are summed in float32 whatever the weights are. Layers of a small model stay together
    from the forward to the backward pass, which saves half of the traffic.
    """
    if world.size == 1:
        return model
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    parts = not is_small(sum(p.numel() * p.element_size() for p in model.parameters()), world)
    for layer in model.layers:
        fully_shard(layer, mp_policy=policy, reshard_after_forward=parts)
    fully_shard(model, mp_policy=policy)
    return model


def put_away(model: Any) -> None:
    """Let go of weights that a pass without gradients has put together.

    Until then the model's parameters are whole tensors, and an optimiser must not get hold of them.
    """
    if hasattr(model, "reshard"):
        model.reshard()


def is_small(weight_bytes: int, world: World) -> bool:
    """Whether weights may stay whole on each device for a step."""
    if world.device.type != "cuda":
        return False
    return weight_bytes <= 0.1 * torch.cuda.get_device_properties(world.device).total_memory


def local(tensor: Any) -> Tensor:
    """This process's part of a tensor that several hold.

    Not by `to_local`, which takes 20 µs for what gradients need: an optimiser asks for thousands.
    """
    return getattr(tensor, "_local_tensor", tensor)


def whole(tensor: Any) -> Tensor:
    """A tensor put together from its parts; all processes have to ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def gradient_norm(parameters: list[nn.Parameter], world: World) -> Tensor:
    """The norm of all gradients, over all processes, in float32."""
    squares = [
        torch.linalg.vector_norm(local(p.grad), dtype=torch.float32).square()
        for p in parameters
        if p.grad is not None
    ]
    return world.total(torch.stack(squares).sum()).sqrt()


@torch.no_grad()
def scale_gradients(parameters: list[nn.Parameter], factor: Tensor) -> None:
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, factor)
