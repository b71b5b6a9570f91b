"""One process's share of the text decoder: heads, the inner width of the MLP, and what they need.

Matrices whose outputs are heads or inner values are cut by rows, those that bring them back to the
hidden width by columns, and the sums of their outputs are added up over all processes. Embeddings
and norms are whole everywhere. What adds up is given from outside. Source: arXiv 1909.08053.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from singalaut.errors import RecipeError
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.linear import Linear

BY_ROWS = ("attention.query", "attention.key", "attention.value", "mlp.gate", "mlp.up")
BY_COLUMNS = ("attention.output", "mlp.down")


@dataclass(frozen=True)
class Shard:
    """Which share of how many."""

    rank: int
    size: int

    def of_config(self, config: Gemma3Config) -> Gemma3Config:
        """The shape of the network that a share is. Raises: RecipeError where it cannot be cut."""
        if self.size == 1:
            return config
        heads, key_heads, inner = config.num_heads, config.num_kv_heads, config.intermediate_size

        def fits(size: int) -> bool:
            key_heads_fit = key_heads % size == 0 or size % key_heads == 0
            return key_heads_fit and heads % size == 0 and inner % size == 0

        if not fits(self.size):
            sizes = ", ".join(str(size) for size in range(1, heads + 1) if fits(size))
            raise RecipeError(
                f"`tensor_parallel` is {self.size}; the model has {heads} query heads, "
                f"{key_heads} key-value heads and an inner width of {inner}",
                hint=f"it can be {sizes}",
            )
        return replace(
            config,
            num_heads=heads // self.size,
            num_kv_heads=max(1, key_heads // self.size),
            intermediate_size=inner // self.size,
        )

    def of_weight(self, name: str, weight: Tensor, config: Gemma3Config) -> Tensor:
        """The part of a parameter of the whole network `config`, as a view.

        Of fewer key-value heads than processes, several have the same one.
        """
        kind = name.removeprefix("layers.").partition(".")[2].removesuffix(".weight")
        if kind in ("attention.key", "attention.value"):
            count = max(1, config.num_kv_heads // self.size)
            first = self.rank * config.num_kv_heads // self.size
            return weight.narrow(0, first * config.head_dim, count * config.head_dim)
        if name.startswith("layers.") and kind in (*BY_ROWS, *BY_COLUMNS):
            side = 0 if kind in BY_ROWS else 1
            each = weight.shape[side] // self.size
            return weight.narrow(side, self.rank * each, each)
        return weight


WHOLE = Shard(0, 1)


class SummedLinear(Linear):
    """A linear layer of which each process has some columns; `total` adds up their outputs."""

    def __init__(self, linear: Linear, total: Callable[[Tensor], Tensor]):
        nn.Module.__init__(self)
        self.weight = linear.weight
        self._total = total

    def forward(self, x: Tensor) -> Tensor:
        return self._total(super().forward(x))


def sum_outputs(model: Gemma3, total: Callable[[Tensor], Tensor]) -> Gemma3:
    """Make a share give what the whole network would, by `total` over all processes."""
    for name, module in list(model.layers.named_modules()):
        if name.partition(".")[2] in BY_COLUMNS:
            parent, _, leaf = name.rpartition(".")
            assert isinstance(module, Linear)
            setattr(model.layers.get_submodule(parent), leaf, SummedLinear(module, total))
    return model
