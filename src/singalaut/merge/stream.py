"""The merge stage: models of one shape in, one model out, a tensor at a time.

Inputs are memory-mapped and the output is written as a stream, so memory does not depend on the
size of the models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path

from torch import Tensor

from singalaut.artifact import Work
from singalaut.errors import CheckpointError, RecipeError
from singalaut.merge.config import MergeConfig
from singalaut.merge.methods import linear
from singalaut.model.config import Gemma3Config
from singalaut.model.hf import (
    copy_companions,
    open_weights,
    parameter_shapes,
    read_config,
    save_weights,
    stored_dtype,
)
from singalaut.progress import progress

log = logging.getLogger("singalaut")


def run_merge(config: MergeConfig, *, models: list[Path], work: Work) -> None:
    """Write the merged model to `model/`, in the first model's dtype and with its tokenizer."""
    weights = [model.weight for model in config.models]
    if config.normalize and abs(sum(weights)) < 1e-12:
        raise RecipeError(
            f"the weights {weights} sum to zero",
            where=f"{config.name}.models",
            hint="change a weight or set `normalize = false`",
        )
    shape = _common_shape(models)
    with ExitStack() as stack:
        sources = []
        for model in models:
            reader, places = open_weights(model, shape)
            sources.append((stack.enter_context(reader), places))

        def merged() -> Iterator[Tensor]:
            names = list(parameter_shapes(shape))
            with progress("merge", len(names), "tensor") as bar:
                for name in names:
                    tensors = [reader.read(places[name]) for reader, places in sources]
                    result = linear(tensors, weights, config.normalize)
                    if not result.isfinite().all():
                        raise CheckpointError(
                            f"`{name}` is not finite after merging",
                            where=f"{config.name}.models",
                            hint="one of the models is damaged; evaluate each alone",
                        )
                    bar.advance()
                    yield result

        save_weights(work.path / "model", shape, stored_dtype(models[0]), merged())
    copy_companions(models[0], work.path / "model")
    log.info("merged %d models with weights %s", len(models), weights)


def _common_shape(models: list[Path]) -> Gemma3Config:
    """The shape of all models; end-of-text ids are pooled. Raises at the first difference."""
    configs = [read_config(model) for model in models]
    eos = tuple(dict.fromkeys(i for config in configs for i in config.eos_ids))
    first = replace(configs[0], eos_ids=eos)
    for model, config in zip(models[1:], configs[1:], strict=True):
        for field in (field.name for field in fields(config) if field.name != "eos_ids"):
            value, wanted = getattr(config, field), getattr(first, field)
            if value != wanted:
                raise CheckpointError(
                    f"`{field}` is {value} here and {wanted} in the first model",
                    where=model,
                    hint="only models of one architecture and size can be merged",
                )
    return first
