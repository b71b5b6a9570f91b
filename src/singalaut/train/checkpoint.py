"""The state of a training run on disk: each process writes its part, any number can read it.

A checkpoint is a folder `step-000120/` with one safetensors file a process: the rows it holds of
every trainable weight and of the optimiser's numbers for it, and in the header where these rows
lie in the whole. Data order and random numbers are functions of the seed and the step, so no more
is needed to go on exactly. On a GPU files are written by a thread while training goes on, from a
copy on the host. The folder gets its name when all are there, so that a killed process leaves
none half-written. Why not `torch.distributed.checkpoint`: its index is a pickle, and nothing here
is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from singalaut.artifact import write_json
from singalaut.errors import DataError
from singalaut.model.tensors import TensorReader, TensorSpec, write_tensors
from singalaut.train.parallel import World, local


class Checkpoints:
    """Writes checkpoints of a run beside the training, and reads the last one."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        world: World,
        keep: int = 1,
    ):
        self.folder, self.keep, self._world = folder, keep, world
        self._model, self._optimizer = model, optimizer
        self._threads = ThreadPoolExecutor(1)
        self._pending: tuple[Future[None], int] | None = None

    def save(self, step: int) -> None:
        """Take a copy of the state after `step` steps, and begin to write it."""
        self.finish()
        found = self._tensors()
        tensors = {name: _on_host(tensor) for name, tensor in found}
        rows = {name: _first_row(tensor) for name, tensor in found}
        target = self._partial(step)
        target.mkdir(parents=True, exist_ok=True)
        file = target / f"part-{self._world.rank}-of-{self._world.size}.safetensors"
        specs = [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
        about = {"rows": json.dumps(rows)}
        future = self._threads.submit(write_tensors, file, specs, tensors.values(), about)
        self._pending = (future, step)
        if self._world.device.type == "cpu":
            self.finish()  # what is written is the state itself

    def finish(self) -> None:
        """Wait until what was begun is on disk, of all processes."""
        if self._pending is None:
            return
        future, step = self._pending
        self._pending = None
        future.result()
        self._world.wait()
        if self._world.is_first:
            partial, final = self._partial(step), self.folder / f"step-{step:08d}"
            write_json(partial / "step.json", {"step": step, "parts": self._world.size})
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in self._known()[: -self.keep]:
                shutil.rmtree(old)

    @torch.no_grad()
    def load(self) -> int:
        """Bring the last state back; returns the number of steps done, 0 without a checkpoint.

        Raises: DataError if parts are missing or do not fit the model.
        """
        known = self._known()
        if not known:
            return 0
        about = json.loads((known[-1] / "step.json").read_bytes())
        files = [
            known[-1] / f"part-{rank}-of-{about['parts']}.safetensors"
            for rank in range(about["parts"])
        ]
        if lost := [file.name for file in files if not file.exists()]:
            raise DataError(
                f"{len(lost)} of {len(files)} parts of the checkpoint are missing ({lost[0]})",
                where=known[-1],
                hint="remove this folder to go on from an earlier checkpoint, or from the start",
            )
        parts = [Part(file) for file in files]
        with torch.random.fork_rng(devices=[]):
            _create_state(self._optimizer)
        for name, tensor in self._tensors():
            _read_rows(parts, name, tensor)
        return about["step"]

    def path(self) -> Path | None:
        """The last whole checkpoint."""
        return next(iter(self._known()[-1:]), None)

    def _known(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*") if p.suffix != ".partial")

    def _partial(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.partial"

    def _tensors(self) -> list[tuple[str, Tensor]]:
        found: list[tuple[str, Tensor]] = []
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                found.append((f"weight.{name}", parameter.detach()))
                state = self._optimizer.state[parameter]
                found += [(f"{key}.{name}", state[key]) for key in sorted(state)]
        return found


class Part:
    """The file of one process of the job that wrote a checkpoint."""

    def __init__(self, file: Path):
        self.reader = TensorReader([file])
        with safe_open(file, "pt") as handle:
            self.rows: dict[str, int] = json.loads(handle.metadata()["rows"])


def _read_rows(parts: list[Part], name: str, target: Tensor) -> None:
    """Copy what this process holds of a tensor from the parts that have it."""
    mine = local(target)
    if not target.ndim:
        mine.copy_(parts[0].reader.read(name))
        return
    begin = _first_row(target)
    end = begin + len(mine)
    found = 0
    for part in parts:
        if name not in part.reader:
            continue
        first, shape = part.rows[name], part.reader.shape(name)
        if shape[1:] != tuple(mine.shape[1:]):
            break
        low, high = max(begin, first), min(end, first + shape[0])
        if low < high:
            piece = part.reader.read(name, slice(low - first, high - first))
            mine[low - begin : high - begin].copy_(piece)
            found += high - low
    if found != len(mine):
        raise DataError(
            f"the checkpoint has {found} of {len(mine)} rows of `{name}`",
            hint="it was made with other settings: remove it to begin anew",
        )


def _first_row(tensor: Any) -> int:
    """Where the rows that this process holds lie in the whole tensor."""
    if not hasattr(tensor, "device_mesh"):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return offset[0]


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


def _on_host(tensor: Tensor) -> Tensor:
    return local(tensor).detach().cpu()
