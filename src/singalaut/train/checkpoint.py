"""The state of a training run on disk: each process writes its part, any number can read it.

A checkpoint is a folder `step-00000120/` with one safetensors file a process: its piece of every
trainable weight, of the optimiser's numbers for it and of the average of weights, and in the header
where these pieces lie in the whole. What several processes hold is written by the first of them.
Data order and random numbers are functions of the seed and the step, so no more is needed to go on
exactly. On a GPU files are written by a thread while training goes on, from a copy on the host. The
folder gets its name when all are there, so that a killed process leaves none half-written, and a
full disk leaves the earlier ones. Why not `torch.distributed.checkpoint`: its index is a pickle,
and nothing here is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from singalaut.artifact import write_json
from singalaut.errors import MachineError, SingalautError, from_os_error
from singalaut.model.tensors import TensorSpec, write_tensors
from singalaut.train.average import Average
from singalaut.train.parallel import World, local
from singalaut.train.pieces import Parts, about_model, known_checkpoints
from singalaut.train.tensor_parallel import sharing_of, side_of


class Held(NamedTuple):
    """A tensor as this process holds it: its name on disk, and where its piece begins."""

    name: str
    tensor: Tensor
    place: tuple[int, ...]
    is_mine: bool
    """Whether this is the first of the processes that hold this piece."""


class Checkpoints:
    """Writes checkpoints of a run beside the training, and reads the last one."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        world: World,
        keep: int = 1,
        average: Average | None = None,
        base: Path | None = None,
    ):
        self.folder, self.keep, self._world = folder, keep, world
        self._model, self._optimizer, self._average = model, optimizer, average
        self._about = about_model(model, base)
        self._threads = ThreadPoolExecutor(1)
        self._pending: tuple[Future[None], int] | None = None

    def save(self, step: int) -> None:
        """Take a copy of the state after `step` steps, and begin to write it."""
        self.finish()
        held = [each for each in self._held() if each.is_mine]
        tensors = [local(each.tensor).detach().cpu() for each in held]
        specs = [
            TensorSpec(each.name, tuple(tensor.shape), tensor.dtype)
            for each, tensor in zip(held, tensors, strict=True)
        ]
        places = json.dumps({each.name: each.place for each in held})
        file = f"part-{self._world.rank}-of-{self._world.size}.safetensors"
        partial = self._partial(step)
        future = self._threads.submit(_write, partial / file, specs, tensors, {"places": places})
        self._pending = (future, step)
        if self._world.device.type == "cpu":
            self.finish()  # what is written is the state itself

    def finish(self) -> None:
        """Wait until what was begun is on disk, of all processes.

        Raises: MachineError in all of them if one could not write; earlier checkpoints are kept.
        """
        if self._pending is None:
            return
        future, step = self._pending
        self._pending = None
        fault = future.exception()
        if not self._world.any(fault is not None):
            fault = self._complete(step)
            if not self._world.any(fault is not None):
                return
        if self._world.is_first:
            shutil.rmtree(self._partial(step), ignore_errors=True)
        raise self._not_written(step, fault)

    @torch.no_grad()
    def load(self) -> int:
        """Bring the last state back; returns the number of steps done, 0 without a checkpoint.

        Raises: DataError if parts are missing or do not fit the model.
        """
        last = self.path()
        if last is None:
            return 0
        parts = Parts(last)
        with torch.random.fork_rng(devices=[]):
            _create_state(self._optimizer)
        for name, tensor, place, _ in self._held():
            parts.read_into(local(tensor), name, place)
        return parts.about["step"]

    def path(self) -> Path | None:
        """The last whole checkpoint."""
        return next(iter(known_checkpoints(self.folder)[-1:]), None)

    def _complete(self, step: int) -> Exception | None:
        """Give the folder its name, once all parts are there; what went wrong."""
        if not self._world.is_first:
            return None
        partial, final = self._partial(step), self.folder / f"step-{step:08d}"
        try:
            about = {"step": step, "parts": self._world.size, **self._about}
            write_json(partial / "step.json", about)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in known_checkpoints(self.folder)[: -self.keep]:
                shutil.rmtree(old)
        except OSError as error:
            return from_os_error(error)
        return None

    def _not_written(self, step: int, fault: BaseException | None) -> BaseException:
        last = self.path()
        kept = "there is no earlier one" if last is None else f"{last.name} is whole"
        if fault is None:
            what, hint = "another process of the job could not write its part", "look at its log"
        elif isinstance(fault, SingalautError):
            what, hint = fault.what, fault.hint or ""
        else:
            return fault
        return MachineError(
            f"the checkpoint after step {step} could not be written: {what}; {kept}",
            where=self.folder,
            hint=f"{hint}; then run the same command to go on".removeprefix("; "),
        )

    def _partial(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.partial"

    def _held(self) -> Iterator[Held]:
        for name, parameter in self._model.named_parameters():
            if not parameter.requires_grad:
                continue
            yield self._held_as("weight", name, parameter.detach())
            state = self._optimizer.state[parameter]
            for key in sorted(state):
                yield self._held_as(key, name, state[key])
            if self._average is not None:
                yield self._held_as("average", name, self._average.kept[name])

    def _held_as(self, key: str, name: str, tensor: Tensor) -> Held:
        world = self._world
        if not tensor.ndim:
            return Held(f"{key}.{name}", tensor, (), world.is_first)
        config: Any = self._model.config if world.tensor > 1 else None
        place = _first_of(tensor)
        side = side_of(name, config, world)
        if side is not None:
            place[side] += tensor.shape[side] * world.tensor_rank
        is_mine = world.rank < world.size // world.replicas
        if sharing_of(name, config, world) != "cut":
            is_mine = is_mine and world.tensor_rank == 0
        return Held(f"{key}.{name}", tensor, tuple(place), is_mine)


def _write(
    file: Path, specs: list[TensorSpec], tensors: list[Tensor], about: dict[str, str]
) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error) from error
    write_tensors(file, specs, tensors, about)


def _first_of(tensor: Any) -> list[int]:
    """Where the piece that this process holds begins in the whole tensor."""
    if not hasattr(tensor, "device_mesh"):
        return [0] * tensor.ndim
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return list(offset)


def _create_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser make its numbers, by a step that changes nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
