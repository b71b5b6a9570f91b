"""Layers whose matrices are cut among neighbours, which compute one pass together.

Queries, keys and values are cut by heads, the MLP by its inner columns: what follows them is cut
the other way, so that each neighbour has a part of a sum, and one sum over all ends each half of a
layer. Where there is one key head, all have it. The residual stream and the norms on it are
computed by each; embedding and head are not cut (FSDP divides them among all processes).

Source: arXiv 1909.08053. Plain tensors and two collectives rather than DTensor, so that compiled
layers and kernels see what they see in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from singalaut.errors import RecipeError
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.train.parallel import World, local, whole

Sharing = Literal["cut", "summed", "same"]
BY_ROWS = ("query", "key", "value", "gate", "up")  # the others' rows are not there
BY_COLUMNS = ("output", "down")
INNER_NORMS = ("query_norm", "key_norm")


def check_split(config: Gemma3Config, tensor: int) -> None:
    """Refuse a model that cannot be cut so. Raises: RecipeError with what would do."""
    heads, keys, inner = config.num_heads, config.num_kv_heads, config.intermediate_size
    if heads % tensor or inner % tensor or (keys > 1 and keys % tensor):
        fits = [
            n for n in range(1, heads + 1)
            if not (heads % n or inner % n or (keys > 1 and keys % n))
        ]  # fmt: skip
        raise RecipeError(
            f"`tensor_parallel = {tensor}` does not divide {heads} heads, {keys} key heads and "
            f"{inner} inner columns",
            where="tensor_parallel",
            hint="this model can be cut in " + ", ".join(map(str, fits)),
        )


def side_of(name: str, config: Gemma3Config, world: World) -> int | None:
    """Along which side a parameter is cut among neighbours; None if all have the whole of it."""
    projection = _projection(name)
    if world.tensor == 1 or projection is None:
        return None
    if projection in ("key", "value") and config.num_kv_heads == 1:
        return None
    leaf = name.rpartition(".")[2]  # `weight`, or `a` or `b` of an adapter
    if projection in BY_COLUMNS:
        return None if leaf == "b" else 1
    return None if leaf == "a" else 0


def sharing_of(name: str, config: Gemma3Config, world: World) -> Sharing:
    """What neighbours have of a parameter's gradient: parts, terms of a sum, or all the same."""
    if world.tensor == 1 or not name.startswith("layers."):
        return "cut"  # by FSDP among all, which sums what has to be summed
    if side_of(name, config, world) is not None:
        return "cut"
    inner = _projection(name) is not None or name.split(".")[-2] in INNER_NORMS
    return "summed" if inner else "same"


def copies_of(name: str, config: Gemma3Config, world: World) -> int:
    """How many processes hold the same part of a parameter."""
    neighbours = 1 if sharing_of(name, config, world) == "cut" else world.tensor
    return world.replicas * neighbours


def split_layers(model: Gemma3, world: World) -> None:
    """Keep this neighbour's part of every layer's matrices, and let the layers sum theirs up."""
    check_split(model.config, world.tensor)
    for name, parameter in list(model.layers.named_parameters(prefix="layers")):
        side = side_of(name, model.config, world)
        if side is None:
            continue
        part = parameter.data.chunk(world.tensor, side)[world.tensor_rank].clone()
        module, _, leaf = name.rpartition(".")
        cut = nn.Parameter(part, requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(module), leaf, cut)
    for layer in model.layers:
        halves: list[Any] = [layer.attention, layer.mlp]
        for half in halves:
            half.register_forward_pre_hook(_Entrance(world.neighbours))
            half.register_forward_hook(_Exit(world.neighbours))


@torch.no_grad()
def share_gradients(groups: Sequence[dict[str, Any]], world: World) -> None:
    """Make the gradients of what all neighbours hold the same: add up terms, level out rounding."""
    if world.tensor == 1:
        return
    for sharing in ("summed", "same"):
        chosen = [group for group in groups if group["sharing"] == sharing]
        gradients = [local(p.grad) for g in chosen for p in g["params"] if p.grad is not None]
        if not gradients:
            continue
        flat = torch.cat([gradient.flatten().float() for gradient in gradients])
        torch.distributed.all_reduce(flat, group=world.neighbours)
        if sharing == "same":
            flat /= world.tensor
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(summed.view_as(gradient))


def joined(part: Tensor, side: int | None, world: World) -> Tensor:
    """A matrix from the parts of all neighbours, who have to ask for it together."""
    if side is None:
        return part
    parts = [torch.empty_like(part) for _ in range(world.tensor)]
    torch.distributed.all_gather(parts, part.contiguous(), group=world.neighbours)
    return torch.cat(parts, side)


def whole_parameter(name: str, parameter: Tensor, config: Gemma3Config, world: World) -> Tensor:
    """A parameter put together from all processes, who have to ask for it together."""
    return joined(whole(parameter), side_of(name, config, world), world)


def _projection(name: str) -> str | None:
    """`query` for `layers.0.attention.query.weight` and for an adapter's `….query.base.weight`."""
    parts = name.split(".")
    if parts[0] != "layers":
        return None
    return next((part for part in parts[3:4] if part in (*BY_ROWS, *BY_COLUMNS)), None)


class _Entrance:
    """Before half a layer: nothing forward, the sum of all neighbours' gradients backward."""

    def __init__(self, group: Any):
        self.group = group

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_SumBackward.apply(given[0], self.group), *given[1:])


class _Exit:
    """After half a layer: the sum of all neighbours' results forward, nothing backward."""

    def __init__(self, group: Any):
        self.group = group

    def __call__(self, module: nn.Module, given: tuple[Any, ...], result: Tensor) -> Tensor:
        return _SumForward.apply(result, self.group)


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _summed(grads[0], ctx.group), None


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _summed(x: Tensor, group: Any) -> Tensor:
    from torch.distributed._functional_collectives import all_reduce, wait_tensor

    return wait_tensor(all_reduce(x.contiguous(), "sum", group))
