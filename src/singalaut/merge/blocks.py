"""One tensor of several models as blocks of rows: what a merge method sees.

A method never holds a whole tensor: it goes over the blocks as often as it must to measure
something, then says how one block is merged. How a tensor is cut depends on its shape alone, so
sums over blocks, and random numbers drawn for a block, are the same however many threads there
are. Where the rows come from is left to others. A tensor of one dimension is one row, one of more
than two dimensions has its first dimension as rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from singalaut.contracts import derive

BLOCK_ELEMENTS = 1 << 19  # a few blocks fit into a core's cache
T = TypeVar("T")


class Buffers(threading.local):
    """Memory that each thread takes once: fresh memory costs more than the arithmetic."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self._flat: dict[str, Tensor] = {}

    def take(self, purpose: str, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
        """What was in it is still there; the next one to take it for this purpose overwrites it."""
        count = rows * columns
        if (flat := self._flat.get(purpose)) is None or flat.numel() < count:
            flat = torch.empty(max(count, BLOCK_ELEMENTS), device=self.device)
            self._flat[purpose] = flat
        return flat[:count].view(rows, columns)


@dataclass
class Rows:
    """The same rows of each model, and of the base, in float32, for whoever gets them to change.

    They are good until the same thread reads the next block.
    """

    models: list[Float[Tensor, "rows columns"]]
    base: Float[Tensor, "rows columns"] | None
    buffers: Buffers

    def task_vectors(self) -> list[Float[Tensor, "rows columns"]]:
        """θ_k − θ_0, made in place of θ_k."""
        assert self.base is not None
        return [model.sub_(self.base) for model in self.models]

    def spare(self, purpose: str) -> Float[Tensor, "rows columns"]:
        """Another tensor of this shape, with anything in it."""
        return self.buffers.take(purpose, *self.models[0].shape)


Combine = Callable[[int, Rows], Tensor]
"""The merged rows of the block with this number."""


class Blocks(Protocol):
    """A tensor of several models, cut into blocks of rows."""

    name: str
    seed: int
    num_models: int
    has_base: bool
    bounds: list[tuple[int, int]]
    columns: int

    def read(self, index: int) -> Rows:
        """A fresh copy of one block."""
        ...


def visit(blocks: Blocks, measure: Callable[[int, Rows], T]) -> list[T]:
    """`measure` of every block, in order."""
    return [measure(index, blocks.read(index)) for index in range(len(blocks.bounds))]


def total(blocks: Blocks, measure: Callable[[int, Rows], Tensor]) -> Tensor:
    """The sum of `measure` over all blocks, in order."""
    found = measure(0, blocks.read(0))
    for index in range(1, len(blocks.bounds)):
        found = found + measure(index, blocks.read(index))
    return found


def num_elements(blocks: Blocks) -> int:
    return blocks.bounds[-1][1] * blocks.columns


def random(blocks: Blocks, index: int, model: int) -> np.random.Generator:
    """The random numbers of one model in one block, whatever the order of work."""
    return np.random.Generator(
        np.random.SFC64(derive(blocks.seed, "merge", blocks.name, model, index))
    )


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor of this shape."""
    if len(shape) < 2:
        return 1, int(np.prod(shape, dtype=int))
    return shape[0], int(np.prod(shape[1:], dtype=int))


def cut(rows: int, columns: int, elements: int = BLOCK_ELEMENTS) -> list[tuple[int, int]]:
    """First row and the one after the last of each block of about `elements` entries."""
    step = max(1, elements // max(1, columns))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


class InMemory:
    """A tensor whose models are all in memory: the simplest `Blocks`."""

    def __init__(
        self,
        models: Sequence[Tensor],
        base: Tensor | None = None,
        *,
        name: str = "tensor",
        seed: int = 0,
        elements: int = BLOCK_ELEMENTS,
    ):
        rows, self.columns = as_matrix(models[0].shape)
        self.name, self.seed, self.num_models = name, seed, len(models)
        self.has_base = base is not None
        self.bounds = cut(rows, self.columns, elements)
        self._models = [model.reshape(rows, -1) for model in models]
        self._base = None if base is None else base.reshape(rows, -1)
        self._buffers = Buffers(models[0].device)

    def read(self, index: int) -> Rows:
        part = slice(*self.bounds[index])
        return Rows(
            [model[part].to(torch.float32, copy=True) for model in self._models],
            None if self._base is None else self._base[part].to(torch.float32, copy=True),
            self._buffers,
        )
