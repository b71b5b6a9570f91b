"""The processes that answer and learn together, and what they tell each other.

Every process draws the same prompts, answers and scores its share, and hears of the others'
answers; then all learn from all of them, each from its rows. Weights are the same in every process
(gradients are summed), or cut among them as in the other stages that train (`sharded`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from singalaut.train.parallel import World, add_up, join_world

Item = TypeVar("Item")
LONGEST_WAIT = timedelta(days=1)  # for a process whose answers take longer than the others'


@dataclass(frozen=True)
class Team:
    """This process among those of a run."""

    world: World = field(default_factory=World)
    sharded: bool = False
    talk: Any = None
    """The group in which plain bytes go around: not that of tensors, which a thread may use."""

    @property
    def size(self) -> int:
        return self.world.size

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def is_first(self) -> bool:
        return self.world.is_first

    @property
    def cut(self) -> World:
        """The processes among which one copy of the weights is cut: this one, or all."""
        return self.world if self.sharded else World(device=self.world.device)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What this process works on."""
        return items[self.rank :: self.size]

    def merge(
        self,
        mine: Sequence[Item],
        encode: Callable[[Item], Any],
        decode: Callable[[Any], Item],
    ) -> list[Item]:
        """The results of all shares in the order of the whole; they travel as JSON."""
        if self.size == 1:
            return list(mine)
        sent = json.dumps([encode(item) for item in mine]).encode()
        parts = [json.loads(data) for data in self._gather(sent)]
        total = sum(len(part) for part in parts)
        return [decode(parts[n % self.size][n // self.size]) for n in range(total)]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of whole weights; cut ones have been added already."""
        if self.size == 1 or self.sharded:
            return
        add_up([p.grad for p in parameters if p.grad is not None], self.world)

    def largest(self, value: Tensor) -> Tensor:
        """The largest over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return value

    def _gather(self, data: bytes) -> list[bytes]:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        torch.distributed.all_gather(sizes, torch.tensor([len(data)]), group=self.talk)
        lengths = [int(size) for size in sizes]
        mine = torch.zeros(max(lengths), dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in lengths]
        torch.distributed.all_gather(parts, mine, group=self.talk)
        pairs = zip(parts, lengths, strict=True)
        return [part[:length].numpy().tobytes() for part, length in pairs]


ALONE = Team()


def form_team(sharded: bool) -> Team:
    """Meet the other processes that `torchrun` started, if it did."""
    world = join_world()
    if world.size == 1:
        return Team(world)
    talk = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return Team(world, sharded, talk)
