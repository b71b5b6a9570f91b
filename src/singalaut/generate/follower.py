"""A process that computes its share of a model, as the first process says.

It holds weights, pages and a runner, and repeats every step that the first process takes; what is
asked, planned and answered it never learns. Started by `ranks.py`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any

import torch

from singalaut.errors import SingalautError
from singalaut.generate.answer import Answer
from singalaut.generate.core import open_runner
from singalaut.generate.images import ImageEmbeddings
from singalaut.generate.memory import default_budget_bytes
from singalaut.generate.orders import Record, hear_chunk, hear_step
from singalaut.generate.pages import PageTables
from singalaut.generate.ranks import READY, Ranks, device_of
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model
from singalaut.model.paged import PagedCache
from singalaut.model.shard import sum_outputs


class Follower:
    """A share of a model and what the first process has had made of it."""

    def __init__(self, model: Gemma3, ranks: Ranks):
        self.model, self.ranks = sum_outputs(model, ranks.sum), ranks
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self._answers: dict[int, Answer] = {}

    def obey(self, order: Record) -> None:
        what = order.pop("do")
        getattr(self, f"do_{what}")(**order)

    def do_budget(self, step_bytes: int) -> None:
        self.ranks.least(default_budget_bytes(self.device, step_bytes), self.device)

    def do_open(self, pages: Any, window: int, slots: int, tokens: int, **ways: Any) -> None:
        """Make pages and a runner like those of the first process."""
        self.cache = PagedCache(self.model.config, pages, self.dtype, self.device)
        self.tables = PageTables(pages, window, slots, tokens)
        images = ImageEmbeddings(self.model, self.ranks)
        self.runner = open_runner(
            self.model, images, self.cache, self.tables, ranks=self.ranks, **ways
        )

    def do_step(self, **record: Any) -> None:
        self.runner.launch(hear_step(record, self.tables, self._answers))

    def do_refresh(self) -> None:
        self.runner.refresh()

    def do_close(self) -> None:
        self.runner.close()
        self._answers.clear()
        del self.runner, self.cache
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def do_wipe(self, kind: Any, pages: list[int]) -> None:
        self.cache.wipe(kind, pages)

    def do_examine(self, whole: Record) -> None:
        self.runner.first_bad_layer(hear_chunk(whole).answer)


def follow(model: Gemma3, ranks: Ranks, folder: Path, orders: IO[bytes]) -> None:
    """Tell the first process that this one is ready, meet it at `folder`, and do as it says."""
    told: queue.SimpleQueue[Record] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders, told), daemon=True).start()
    print(READY, flush=True)
    try:
        ranks.join(folder, model.embedding.weight.device)
        follower = Follower(model, ranks)
        while True:
            follower.obey(told.get())
    except BaseException:
        traceback.print_exc()  # the first process shows the last line
        sys.stderr.flush()
        os._exit(1)  # the other thread cannot be stopped while it reads


def _listen(orders: IO[bytes], told: queue.SimpleQueue[Record]) -> None:
    """Read orders until the pipe is closed: then nobody waits for this process any more."""
    while len(head := orders.read(4)) == 4:
        told.put(json.loads(orders.read(struct.unpack("<I", head)[0])))
    os._exit(0)  # at once, whatever the other thread may be waiting for


def begin(rank: str, size: str) -> tuple[Ranks, torch.device]:
    """This process as the first one numbered it, on its device."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what a Ctrl-C means
    ranks = Ranks(int(rank), int(size))
    device = device_of(ranks.rank, ranks.size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.size))
    return ranks, device


def main() -> None:
    checkpoint, rank, size, folder = sys.argv[1:]
    ranks, device = begin(rank, size)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        model = load_model(Path(checkpoint), dtype, device, shard=ranks.shard)
    except SingalautError as error:
        sys.exit(str(error).replace("\n", ";"))
    follow(model, ranks, Path(folder), sys.stdin.buffer)


if __name__ == "__main__":
    main()
