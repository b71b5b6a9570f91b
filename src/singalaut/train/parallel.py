"""The processes of a training job: who they are, how they share a model, and what they agree on.

`torchrun` starts one process a GPU (or several on a CPU, over gloo). Weights, gradients and moments
are cut along their first side, layer by layer (FSDP2: each layer is put together just before it
runs). With `replicas`, they are cut among fewer processes, and groups of these hold the same; with
as many replicas as processes nothing is cut, and gradients are added up after the last pass. With
`tensor_parallel`, as many neighbours compute one pass together (`tensor_parallel.py`); embedding
and head are then cut among all. With one process nothing here does anything, and the code around it
is the same. Source: arXiv 2304.11277.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from singalaut.errors import MachineError
from singalaut.model.gemma3 import Gemma3

TIMEOUT = timedelta(minutes=10)  # of a process that the others wait for
BUCKET = 1 << 26  # numbers that are added up at once


@dataclass(frozen=True)
class World:
    """This process among those of the job: replica, then part, then tensor-parallel neighbour."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    replicas: int = 1
    """Groups of processes that hold the same."""
    tensor: int = 1
    """Neighbours that compute one pass together."""
    layers_mesh: Any = None
    """Among whom layers are cut: one axis, or replicas and parts."""
    whole_mesh: Any = None
    """Among whom all else is cut: the same, with neighbours among the parts."""
    neighbours: Any = None
    """The process group of the tensor-parallel neighbours."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of a step's rows is this process's; neighbours have the same."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """How many shares there are."""
        return self.size // self.tensor

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def parts(self) -> int:
        """Processes among whom a layer's weights are cut, neighbours aside."""
        return self.size // self.replicas // self.tensor

    @property
    def is_uncut(self) -> bool:
        """Whether every process holds all weights."""
        return self.parts == self.tensor == 1

    @property
    def part_group(self) -> Any:
        """The process group of those among whom a layer's weights are cut."""
        mesh = self.layers_mesh
        return mesh.get_group("part") if self.replicas > 1 else mesh.get_group()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all shares of a step's rows, in place."""
        values = self.everywhere(values)
        return values.div_(self.tensor) if self.tensor > 1 else values

    def everywhere(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return here
        return bool(self.everywhere(torch.tensor(float(here), device=self.device)).item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


def join_world(replicas: int = 1, tensor: int = 1) -> World:
    """Meet the other processes that `torchrun` started, if it did.

    Raises: MachineError naming the process if the others cannot be met, or if there are not as
    many as the settings need.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size % (replicas * tensor):
        raise MachineError(
            f"the job has {size} process{'es' if size > 1 else ''}; `replicas = {replicas}` and "
            f"`tensor_parallel = {tensor}` need a multiple of {replicas * tensor}",
            hint=f"start it with `torchrun --nproc-per-node {replicas * tensor} …`, or lower them",
        )
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
    return World(rank, size, device, replicas, tensor, *_meshes(device, size, replicas, tensor))


def _meshes(device: torch.device, size: int, replicas: int, tensor: int) -> tuple[Any, Any, Any]:
    """Who shares layers, who shares all else, and the group of neighbours."""
    from torch.distributed.device_mesh import init_device_mesh

    kind = device.type
    if replicas == tensor == 1:
        mesh = init_device_mesh(kind, (size,), mesh_dim_names=("part",))
        return mesh, mesh, None
    parts = size // replicas // tensor
    names: tuple[str, ...] = ("replica", "part", "neighbour")
    mesh = init_device_mesh(kind, (replicas, parts, tensor), mesh_dim_names=names)
    layers = mesh["replica", "part"] if replicas > 1 else mesh["part"]
    if tensor == 1:
        return layers, layers, None
    if replicas > 1:
        shape, names = (replicas, parts * tensor), ("replica", "part")
        whole = init_device_mesh(kind, shape, mesh_dim_names=names)
    else:
        whole = init_device_mesh(kind, (size,), mesh_dim_names=("part",))
    return layers, whole, mesh["neighbour"].get_group()


def shard(model: Gemma3, world: World) -> Gemma3:
    """Cut the weights among the processes: each layer by itself, then what is around them.

    Gradients are summed in float32 whatever the weights are; those of two processes as they are,
    since one sum is rounded once in either way. Layers of a small model stay together from the
    forward to the backward pass, which saves half of the traffic. A vision part, which is frozen,
    is left whole: not all processes have pictures in a step.
    """
    if world.is_uncut:
        return model
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if world.tensor > 1:
        from singalaut.train.tensor_parallel import split_layers

        split_layers(model, world)
    policy = MixedPrecisionPolicy(reduce_dtype=None if world.size == 2 else torch.float32)
    parts = not is_small(sum(p.numel() * p.element_size() for p in model.parameters()), world)
    for layer in model.layers:
        fully_shard(layer, mesh=world.layers_mesh, mp_policy=policy, reshard_after_forward=parts)
    seeing = set() if model.vision is None else set(model.vision.parameters())
    fully_shard(model, mesh=world.whole_mesh, mp_policy=policy, ignored_params=seeing)
    return model


def put_away(model: nn.Module) -> None:
    """Let go of weights that a pass without gradients has put together.

    Until then the model's parameters are whole tensors, and an optimiser must not get hold of them.
    """
    for module in model.modules():
        reshard: Any = getattr(module, "reshard", None)
        if reshard is not None:
            reshard()


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


def like(matrix: Any, columns: int, dtype: torch.dtype) -> Tensor:
    """Zeros with the rows of a matrix, which lie with the processes that hold those rows."""
    mine = local(matrix)
    zeros = torch.zeros(len(mine), columns, dtype=dtype, device=mine.device)
    if not hasattr(matrix, "device_mesh"):
        return zeros
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        zeros,
        matrix.device_mesh,
        matrix.placements,
        run_check=False,
        shape=torch.Size((len(matrix), columns)),
        stride=(columns, 1),
    )


def whole(tensor: Any) -> Tensor:
    """A tensor put together from its parts; all processes have to ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def add_up(tensors: Sequence[Tensor], world: World, factor: float = 1.0) -> None:
    """Sums over all processes, times `factor`, in place; float32 where roundings would add up."""
    from torch.distributed.distributed_c10d import _coalescing_manager

    is_grouped = world.device.type == "cuda"  # which gloo knows nothing of
    for bucket in _buckets(tensors):
        sent = bucket if world.size == 2 else [tensor.float() for tensor in bucket]
        with _coalescing_manager(device=world.device) if is_grouped else nullcontext():
            for tensor in sent:
                torch.distributed.all_reduce(tensor)
        if factor != 1:
            torch._foreach_mul_(sent, factor)
        if world.size > 2:
            torch._foreach_copy_(bucket, sent)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, of one dtype, and so many at once that copies of them take little memory."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(each.numel() for each in bucket) >= BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@torch.no_grad()
def gradient_norm(groups: Sequence[dict[str, Any]], world: World) -> Tensor:
    """The norm of all gradients, over all processes, in float32; `groups` are an optimiser's.

    A group's `copies` are the processes that hold the same part of its parameters; one if not said.
    """
    squares = []
    for group in groups:
        gradients = [local(p.grad) for p in group["params"] if p.grad is not None]
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients, 2, torch.float32))
            squares.append(norms.square().sum() / group.get("copies", 1))
    return world.everywhere(torch.stack(squares).sum()).sqrt()


@torch.no_grad()
def scale_gradients(parameters: list[nn.Parameter], factor: Tensor) -> None:
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, factor)
