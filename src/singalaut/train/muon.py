"""Muon: the momentum of every hidden matrix is made orthogonal before it becomes a step.

m = μ m + (1 − μ) g;  u = (1 − μ) g + μ m
W = (1 − rate · decay) W − rate · 0.2 √max(rows, columns) O(u)

O(u) has the singular vectors of u, and singular values near 1. The factor makes the root mean
square of a step that of AdamW's, so that both take the same learning rate and decay. Embeddings,
norms and other vectors are AdamW's.

Source: kellerjordan.github.io/posts/muon for the iteration and its coefficients, arXiv 2502.16982
for the factor.
Where matrices are cut among processes, each puts together, and makes orthogonal, one of as many
matrices as there are processes, so that the work is divided as the weights are.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from singalaut.train.adamw import AdamW, Moments, Precision, moment, read, write, write_weight
from singalaut.train.parallel import World, local
from singalaut.train.tensor_parallel import joined

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
MOMENTUM = 0.95
RMS = 0.2  # of AdamW's steps, as measured in arXiv 2502.16982
EPS = 1e-7


class Pending(NamedTuple):
    """A matrix whose step is to be made orthogonal: what this process has of it."""

    parameter: nn.Parameter
    update: Tensor
    state: dict[str, Tensor]
    group: dict[str, Any]
    generator: torch.Generator


class Muon(AdamW):
    """Muon for groups whose `rule` is `muon`, AdamW for the others."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        *,
        precision: Precision,
        seed: int,
        moments: Moments = "full",
        world: World,
        products: torch.dtype | None = None,
    ):
        super().__init__(groups, learning_rate, precision=precision, seed=seed, moments=moments)
        self._world = world
        fast = torch.bfloat16 if world.device.type == "cuda" else torch.float32
        self._products = products or fast

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        super().step()
        waiting: dict[tuple[Any, ...], list[Pending]] = {}
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if group.get("rule") != "muon" or parameter.grad is None:
                    continue
                alike = waiting.setdefault((*parameter.shape, group["side"]), [])
                alike.append(self._pending(parameter, group, number))
                if len(alike) == self._world.parts:
                    self._apply(alike)
                    alike.clear()
        for alike in waiting.values():
            if alike:
                self._apply(alike)

    def _pending(self, parameter: nn.Parameter, group: dict[str, Any], number: int) -> Pending:
        """Take the gradient into the momentum; what is to be made orthogonal (Nesterov's form)."""
        state = self.state_of(parameter, {"momentum": torch.int8})
        seed = self.seed_of(int(state["step"].item()), number)
        gradient = local(parameter.grad).float()
        generator = torch.Generator(gradient.device).manual_seed(seed)
        kept = moment(state, "momentum")
        mean = read(kept).lerp_(gradient, 1 - MOMENTUM)
        write(kept, mean, generator)
        update = torch.lerp(gradient, mean, MOMENTUM).to(self._products)
        return Pending(parameter, update, state, group, generator)

    def _apply(self, alike: list[Pending]) -> None:
        """Step matrices of one shape, at most as many as there are processes."""
        first, world = alike[0], self._world
        side = first.group["side"]
        rows, columns = first.parameter.shape
        for pending, step in zip(alike, self._orthogonal(alike), strict=True):
            rate, decay = pending.group["lr"], pending.group["weight_decay"]
            shape = [rows, columns]
            if side is not None:
                shape[side] *= world.tensor
            scale = RMS * math.sqrt(max(shape))
            weight = local(pending.parameter)
            exact = self.exact(weight, pending.state)
            moved = (weight.float() if exact is None else exact).mul(1 - rate * decay)
            moved.add_(step.float(), alpha=-rate * scale)
            write_weight(weight, exact, moved, pending.generator)

    def _orthogonal(self, alike: list[Pending]) -> list[Tensor]:
        """This process's rows of O(update) of each matrix."""
        world, side = self._world, alike[0].group["side"]
        updates = [pending.update for pending in alike]
        if world.is_uncut:
            return [orthogonal(updates[0], self._products)]
        rows, columns = alike[0].parameter.shape
        mine = gathered(updates, rows, world)
        if mine is not None:
            mine = orthogonal(joined(mine, side, world), self._products)
            if side is not None:
                mine = mine.chunk(world.tensor, side)[world.tensor_rank]
        return handed_back(mine, updates, rows, columns, world)


def orthogonal(matrix: Tensor, products: torch.dtype) -> Tensor:
    """U S Vᵀ with all of S near 1, for a matrix U Σ Vᵀ; matrix products are made in `products`.

    Five rounds of X = a X + (b A + c A²) X with A = X Xᵀ, a polynomial of odd powers that takes
    singular values in (0, 1] near 1: to about 0.7 to 1.2, which is as good as 1 for a step.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(products)
    x = x / x.norm().clamp(min=EPS)
    for _ in range(ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def gathered(parts: list[Tensor], rows: int, world: World) -> Tensor | None:
    """The matrix that is this process's to work on, from all its parts.

    `parts` are this process's rows of matrices of one shape; the n-th is worked on by the n-th
    process. None where there are fewer matrices.
    """
    columns, place = parts[0].shape[1], _place(world)
    sizes = _rows_of(rows, world)
    sent = [sizes[place] * columns] * len(parts) + [0] * (world.parts - len(parts))
    has_one = place < len(parts)
    received = [size * columns if has_one else 0 for size in sizes]
    flat = torch.cat([part.flatten() for part in parts])
    result = flat.new_empty(sum(received))
    torch.distributed.all_to_all_single(result, flat, received, sent, group=world.part_group)
    return result.view(rows, columns) if has_one else None


def handed_back(
    matrix: Tensor | None, parts: list[Tensor], rows: int, columns: int, world: World
) -> list[Tensor]:
    """The opposite of `gathered`: this process's rows of every process's matrix."""
    sizes, place = _rows_of(rows, world), _place(world)
    sent = [size * columns if matrix is not None else 0 for size in sizes]
    received = [sizes[place] * columns] * len(parts) + [0] * (world.parts - len(parts))
    flat = parts[0].new_empty(0) if matrix is None else matrix.contiguous().flatten()
    result = flat.new_empty(sum(received))
    torch.distributed.all_to_all_single(result, flat, received, sent, group=world.part_group)
    own = result.split(received)[: len(parts)]
    return [part.view(sizes[place], columns) for part in own]


def _rows_of(rows: int, world: World) -> list[int]:
    """How many rows of a matrix each process holds, as FSDP cuts them."""
    most = -(-rows // world.parts)
    return [max(0, min(rows, (n + 1) * most) - n * most) for n in range(world.parts)]


def _place(world: World) -> int:
    return torch.distributed.get_rank(world.part_group)
