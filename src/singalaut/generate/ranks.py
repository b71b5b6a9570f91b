"""The processes that hold a model together: starting them, telling them what to do, adding up.

The first process (rank 0) is the one that the user started. It decides everything and writes what
the others are to compute into their pipes; tensors go from device to device (NCCL; gloo between
CPUs). The others end when their pipe does. One that ends before is named, with its last words.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from singalaut.errors import MachineError
from singalaut.generate.child import Child, Record, end_all
from singalaut.model.shard import Shard

if TYPE_CHECKING:
    from singalaut.generate.kernels.peers import PeerSums

log = logging.getLogger("singalaut")
TIMEOUT = timedelta(minutes=10)  # of a process that the others wait for
NEWS_SECONDS = 5.0  # for the end of a process to become known, after others have felt it
# multicast over NVLink has no use for sums of a few kilobytes, and not every host allows it
os.environ.setdefault("NCCL_NVLS_ENABLE", "0")


class Ranks:
    """This process among those that hold a model; alone, nothing here does anything."""

    def __init__(self, rank: int = 0, size: int = 1, *, reads_peers: bool = True):
        """`reads_peers`: small sums go through memory that all devices can read, if they can."""
        self.rank, self.size, self._reads_peers = rank, size, reads_peers
        self._peers: PeerSums | None = None
        self.shard = Shard(rank, size)
        self._group: Any = None
        self._device = torch.device("cpu")
        self._others: list[Other] = []
        self._failure: str | None = None
        self._ways: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def are_whole(self) -> bool:
        """Whether no process is known to be missing."""
        return self._failure is None

    def join(self, folder: Path, device: torch.device) -> None:
        """Meet the other processes at a file in `folder`."""
        from torch.distributed import FileStore, ProcessGroupGloo
        from torch.distributed.distributed_c10d import (
            AllgatherOptions,
            AllreduceOptions,
            BroadcastOptions,
        )

        self._device = device
        store = FileStore(str(folder / "meeting"), self.size)
        if device.type == "cuda":
            from torch.distributed import ProcessGroupNCCL

            options = ProcessGroupNCCL.Options()
            options._timeout = TIMEOUT
            options.global_ranks_in_group = list(range(self.size))
            self._group = ProcessGroupNCCL(store, self.rank, self.size, options)
        else:
            self._group = ProcessGroupGloo(store, self.rank, self.size, TIMEOUT)
        self._ways = AllreduceOptions(), AllgatherOptions(), BroadcastOptions()
        for way in self._ways:
            way.asyncOp = False  # in the stream of the kernels around it
        self._add(torch.zeros(1, device=device))  # connects: later it may be part of a graph
        if device.type == "cuda":
            from singalaut.generate.kernels.peers import open_peers

            self._peers = open_peers(self._gather, self.rank, device, wanted=self._reads_peers)

    # tensors

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; the same bits in each."""
        if self._peers is not None and self._peers.fits(tensor):
            self._peers.sum(tensor)
        elif self.size > 1:
            self._add(tensor)
        return tensor

    def share(self, tensor: Tensor) -> Tensor:
        """What the first process has, in place."""
        if self.size > 1:
            _finish(self._group.broadcast([tensor], self._ways[2]))
        return tensor

    def join_columns(self, part: Tensor, each: int, count: int) -> Tensor:
        """[R, `count`] from [R, `each`] columns a process, of which the last ones may have less."""
        if self.size == 1:
            return part
        rows, missing = len(part), each - part.shape[1]
        if missing:
            part = torch.nn.functional.pad(part, (0, missing), value=float("-inf"))
        parts = part.new_empty(self.size * rows, each)
        _finish(self._group._allgather_base(parts, part.contiguous(), self._ways[1]))
        return parts.view(self.size, rows, each).transpose(0, 1).reshape(rows, -1)[:, :count]

    def least(self, number: int, device: torch.device) -> int:
        """The least of all processes' numbers."""
        numbers = torch.zeros(self.size, dtype=torch.int64, device=device)
        numbers[self.rank] = number
        if self.size > 1:
            self._add(numbers)
        return int(numbers.min())

    def _add(self, tensor: Tensor) -> None:
        _finish(self._group.allreduce([tensor], self._ways[0]))

    def _gather(self, data: bytes) -> list[bytes]:
        """The bytes of all processes, by rank."""
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self._device)
        everyone = mine.new_empty(self.size * len(data))
        _finish(self._group._allgather_base(everyone, mine, self._ways[1]))
        return [bytes(part.tolist()) for part in everyone.cpu().split(len(data))]

    # orders

    def start(self, command: Sequence[str]) -> None:
        """Start the other processes: `command`, then rank, number and the folder to meet in.

        They load their weights while this process does; `meet` waits for them.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="singalaut-")
        for rank in range(1, self.size):
            what = [*command, str(rank), str(self.size), self._folder.name]
            self._others.append(Other(self, rank, what))
        weakref.finalize(self, end_all, [other.child for other in self._others])

    def meet(self, device: torch.device) -> None:
        """Join the processes that were started, once all have their weights."""
        assert self._folder is not None
        for other in self._others:
            while not other.ready.wait(0.1):
                self.check()
        with self.watched():
            self.join(Path(self._folder.name), device)

    def tell(self, what: str, **order: object) -> None:
        """Have the other processes do something; only the first one has anything to say."""
        self.check()
        if self._others:
            with self.watched():
                for other in self._others:
                    other.child.tell({"do": what, **order})

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Work that all processes take part in: what stops one of them ends it for all.

        Raises: MachineError naming the process that ended, and its last words.
        """
        try:
            yield
        except BaseException as error:
            if self._others:
                self._blame(error)
            raise
        self.check()

    def check(self) -> None:
        """Raises: MachineError if a process is missing."""
        if self._failure is not None:
            raise MachineError(self._failure, hint="run the same command again to go on")

    def lost(self, reason: str) -> None:
        """Note that a process has ended, and let none wait for it."""
        if self._failure is None:
            self._failure = reason
            log.error("%s", reason)
        with suppress(Exception):
            if self._peers is not None:
                self._peers.give_up()
        with suppress(Exception):  # gloo notices by itself
            self._group.abort()

    def close(self, reason: str = "the engine is closed") -> None:
        """Let the other processes end."""
        if self.size > 1:
            self._failure = self._failure or reason
        end_all([other.child for other in self._others])
        self._others.clear()

    def _blame(self, error: BaseException) -> None:
        """Find out whether work stopped because another process did, and say so; end all."""
        waited = 0.0
        while isinstance(error, Exception) and self._failure is None and waited < NEWS_SECONDS:
            time.sleep(0.05)  # what has ended is felt before it is known
            waited += 0.05
        reason = f"process 0 of {self.size} failed: {error or type(error).__name__}"
        others_fault = self._failure is not None
        self.close(reason)
        if others_fault and not isinstance(error, MachineError):
            raise MachineError(str(self._failure)) from error


def _finish(work: Any) -> None:
    if work is not None:  # else it is in the stream
        work.wait()


class Other:
    """Another process, as the first one sees it."""

    def __init__(self, ranks: Ranks, rank: int, command: list[str]):
        self.rank, self.ready = rank, threading.Event()
        self._ranks = weakref.ref(ranks)
        self.child = Child(command, self._hear, self._lose)

    def _hear(self, _message: Record) -> None:
        """It has only one thing to say: that its weights are there."""
        self.ready.set()

    def _lose(self, how: str) -> None:
        if (ranks := self._ranks()) is not None:
            ranks.lost(f"process {self.rank} of {ranks.size} {how}")


ALONE = Ranks()


def start_ranks(size: int, folder: Path) -> Ranks:
    """This process as the first of those that load a share of the checkpoint in `folder`."""
    if size == 1:
        return ALONE
    ranks = Ranks(0, size)
    ranks.start([sys.executable, "-m", "singalaut.generate.follower", str(folder)])
    return ranks


def device_of(rank: int, size: int) -> torch.device:
    """The device of a process. Raises: MachineError where there are too few."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if size == 1:
        return torch.device("cuda")
    if (count := torch.cuda.device_count()) < size:
        raise MachineError(
            f"`tensor_parallel` is {size}; this machine shows {count} GPU{'s' * (count > 1)}",
            hint="lower `tensor_parallel`, or look at CUDA_VISIBLE_DEVICES",
        )
    return torch.device("cuda", rank)
