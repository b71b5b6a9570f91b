"""The merge methods by name: what each needs, which parameters it knows, how it is computed.

A method is a function of the blocks of one tensor and of its parameters. It may go over the blocks
to measure something, and returns how one block is merged. The names of methods and parameters, and
the defaults, are mergekit's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from singalaut.merge import angles, consensus, sparse
from singalaut.merge.blocks import Blocks, Combine, InMemory, Rows
from singalaut.merge.linear import shares, weighted_sum


@dataclass(frozen=True)
class Chosen:
    """The parameters of one tensor: of each model, by name, and of all together."""

    models: Sequence[Mapping[str, float]]
    shared: Mapping[str, Any]

    def of_models(self, name: str) -> list[float]:
        return [model[name] for model in self.models]


@dataclass(frozen=True)
class Method:
    """How a method is computed and what it can be told; values are the defaults."""

    prepare: Callable[[Blocks, Chosen], Combine]
    base: Literal["needed", "possible", "unused"]
    models: tuple[int, int | None]
    """Fewest and most models, without the base."""
    of_models: Mapping[str, float] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)


def _linear(blocks: Blocks, chosen: Chosen) -> Combine:
    weights = shares(chosen.of_models("weight"), chosen.shared["normalize"])
    return lambda index, rows: weighted_sum(rows.models, weights)


def _passthrough(blocks: Blocks, chosen: Chosen) -> Combine:
    return lambda index, rows: weighted_sum(rows.models, chosen.of_models("scale"))


def _slerp(blocks: Blocks, chosen: Chosen) -> Combine:
    gram = angles.products_of_blocks(blocks, task_vectors=False)
    weights = angles.slerp_weights(gram, chosen.shared["t"]).tolist()
    return lambda index, rows: weighted_sum(rows.models, weights)


def _nuslerp(blocks: Blocks, chosen: Chosen) -> Combine:
    shared, given = chosen.shared, chosen.of_models("weight")
    found: Tensor | None = None
    if shared["nuslerp_flatten"]:
        gram = angles.products_of_blocks(blocks, task_vectors=blocks.has_base)
        found = angles.nuslerp_weights(gram, given).float()
    elif shared["nuslerp_row_wise"] and blocks.bounds[-1][1] > 1:
        columns = angles.column_products_of_blocks(blocks, task_vectors=blocks.has_base)
        found = angles.nuslerp_weights(columns, given).float()

    def combine(index: int, rows: Rows) -> Tensor:
        tensors = rows.models if rows.base is None else rows.task_vectors()
        if found is None:
            by_row = angles.nuslerp_weights(angles.row_products(tensors), given).float()
            first, second = by_row[..., :1], by_row[..., 1:]
        else:
            first, second = found[..., 0], found[..., 1]
        total = tensors[0].mul_(first).add_(tensors[1].mul_(second))
        return total if rows.base is None else rows.base.add_(total)

    return combine


def _karcher(blocks: Blocks, chosen: Chosen) -> Combine:
    gram = angles.products_of_blocks(blocks, task_vectors=False)
    given = shares(chosen.of_models("weight"), normalize=True)
    found = angles.karcher_weights(gram, given, chosen.shared["max_iter"], chosen.shared["tol"])
    return lambda index, rows: weighted_sum(rows.models, found.tolist())


def _model_stock(blocks: Blocks, chosen: Chosen) -> Combine:
    share: Tensor | None = None
    if not chosen.shared["filter_wise"]:
        gram = angles.products_of_blocks(blocks, task_vectors=True)
        share = angles.model_stock_share(gram)

    def combine(index: int, rows: Rows) -> Tensor:
        assert rows.base is not None
        deltas = rows.task_vectors()
        t = angles.model_stock_share(angles.row_products(deltas)) if share is None else share
        mean = weighted_sum(deltas, [1 / len(deltas)] * len(deltas))
        return rows.base.add_(mean.mul_(t.float().to(mean.device).reshape(-1, 1)))

    return combine


def _sce(blocks: Blocks, chosen: Chosen) -> Combine:
    return consensus.sce(blocks, chosen.shared["select_topk"], chosen.shared["uniform_below"])


def _task_vectors(
    thinning: Callable[[Blocks, Chosen], sparse.Thin], elect: bool
) -> Callable[[Blocks, Chosen], Combine]:
    def prepare(blocks: Blocks, chosen: Chosen) -> Combine:
        thin = thinning(blocks, chosen)
        if chosen.shared["rescale"]:
            thin = sparse.rescaled(blocks, thin)
        return consensus.add_task_vectors(
            thin,
            chosen.of_models("weight"),
            elect=elect,
            normalize=chosen.shared["normalize"],
            factor=chosen.shared["lambda"],
        )

    return prepare


def _keep_all(blocks: Blocks, chosen: Chosen) -> sparse.Thin:
    return sparse.keep_all


def _keep_largest(blocks: Blocks, chosen: Chosen) -> sparse.Thin:
    return sparse.keep_largest(blocks, chosen.of_models("density"))


def _keep_at_random(blocks: Blocks, chosen: Chosen) -> sparse.Thin:
    return sparse.keep_at_random(blocks, chosen.of_models("density"))


def _keep_by_rank(blocks: Blocks, chosen: Chosen) -> sparse.Thin:
    return sparse.keep_by_rank(blocks, chosen.of_models("density"), chosen.of_models("epsilon"))


def _keep_middle(blocks: Blocks, chosen: Chosen) -> sparse.Thin:
    return sparse.keep_middle(blocks, chosen.of_models("density"), chosen.of_models("gamma"))


def _arithmetic(
    thinning: Callable[[Blocks, Chosen], sparse.Thin],
    *,
    elect: bool,
    normalize: bool,
    rescale: bool | None,
    **of_models: float,
) -> Method:
    """A method that adds task vectors; `rescale` None where there is nothing to scale."""
    shared = {"lambda": 1.0, "normalize": normalize, "rescale": bool(rescale)}
    return Method(
        _task_vectors(thinning, elect), "needed", (1, None), {"weight": 1.0, **of_models}, shared
    )


METHODS: Mapping[str, Method] = {
    "linear": Method(_linear, "unused", (1, None), {"weight": 1.0}, {"normalize": True}),
    "passthrough": Method(_passthrough, "unused", (1, 1), {"scale": 1.0}),
    "slerp": Method(_slerp, "unused", (2, 2), shared={"t": None}),
    "nuslerp": Method(
        _nuslerp,
        "possible",
        (2, 2),
        {"weight": 1.0},
        {"nuslerp_flatten": True, "nuslerp_row_wise": False},
    ),
    "karcher": Method(
        _karcher, "unused", (1, None), {"weight": 1.0}, {"max_iter": 10, "tol": 1e-5}
    ),
    "model_stock": Method(_model_stock, "needed", (2, None), shared={"filter_wise": False}),
    "sce": Method(_sce, "needed", (1, None), shared={"select_topk": 1.0, "uniform_below": 1e-6}),
    "task_arithmetic": _arithmetic(_keep_all, elect=False, normalize=False, rescale=None),
    "ties": _arithmetic(_keep_largest, elect=True, normalize=True, rescale=False, density=1.0),
    "dare_linear": _arithmetic(
        _keep_at_random, elect=False, normalize=False, rescale=True, density=1.0
    ),
    "dare_ties": _arithmetic(
        _keep_at_random, elect=True, normalize=False, rescale=True, density=1.0
    ),
    "della": _arithmetic(
        _keep_by_rank, elect=True, normalize=True, rescale=True, density=1.0, epsilon=0.15
    ),
    "della_linear": _arithmetic(
        _keep_by_rank, elect=False, normalize=False, rescale=True, density=1.0, epsilon=0.15
    ),
    "breadcrumbs": _arithmetic(
        _keep_middle, elect=False, normalize=False, rescale=False, density=1.0, gamma=0.01
    ),
    "breadcrumbs_ties": _arithmetic(
        _keep_middle, elect=True, normalize=False, rescale=False, density=1.0, gamma=0.01
    ),
}


def merge_tensors(
    method: str,
    tensors: Sequence[Tensor],
    chosen: Chosen,
    *,
    base: Tensor | None = None,
    seed: int = 0,
    name: str = "tensor",
) -> Tensor:
    """One tensor of several models in memory, merged, in float32 and of the same shape."""
    blocks = InMemory(tensors, base, seed=seed, name=name)
    combine = METHODS[method].prepare(blocks, chosen)
    parts = [combine(index, blocks.read(index)) for index in range(len(blocks.bounds))]
    return torch.cat(parts).reshape(tensors[0].shape)
