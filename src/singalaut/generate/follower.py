"""A process that computes its share of a model, as the first process says.

It holds weights, pages and a runner, and repeats every step that the first process takes; what is
asked, planned and answered it never learns. Started by `ranks.py`.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch

from singalaut.errors import SingalautError
from singalaut.generate.answer import Answer
from singalaut.generate.child import Parent, Record
from singalaut.generate.core import open_runner
from singalaut.generate.images import ImageEmbeddings
from singalaut.generate.memory import default_budget_bytes
from singalaut.generate.orders import hear_chunk, hear_step
from singalaut.generate.pages import PageTables
from singalaut.generate.ranks import Ranks, device_of
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


def follow(model: Gemma3, ranks: Ranks, folder: str, parent: Parent) -> NoReturn:
    """Tell the first process that this one is ready, meet it at `folder`, and do as it says."""
    parent.tell({"ready": True})
    try:
        ranks.join(Path(folder), model.embedding.weight.device)
        follower = Follower(model, ranks)
        while (order := parent.next()) is not None:
            follower.obey(order)
    except BaseException:
        traceback.print_exc()  # the first process shows the last line
    sys.stderr.flush()
    os._exit(1)  # what listens to the first process cannot be stopped


def begin(rank: str, size: str) -> tuple[Parent, Ranks, torch.device]:
    """This process as the first one numbered it, on its device."""
    parent = Parent()
    ranks = Ranks(int(rank), int(size))
    device = device_of(ranks.rank, ranks.size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.size))
    return parent, ranks, device


def main() -> None:
    checkpoint, rank, size, folder = sys.argv[1:]
    parent, ranks, device = begin(rank, size)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        model = load_model(Path(checkpoint), dtype, device, shard=ranks.shard)
    except SingalautError as error:
        print(str(error).replace("\n", ";"), flush=True)
        os._exit(1)
    follow(model, ranks, folder, parent)


if __name__ == "__main__":
    main()
