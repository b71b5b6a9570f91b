"""Adapter directories folded into their base model, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import open_weights
from singalaut.model.lora import CONFIG, WEIGHTS, adapters, is_nested, load_adapter, peft_stem
from singalaut.model.tensors import TensorReader


def is_adapter(folder: Path) -> bool:
    """Whether a directory holds a PEFT adapter and no model of its own."""
    return (folder / CONFIG).exists() and not (folder / "config.json").exists()


def base_name(folder: Path) -> str | None:
    """What an adapter calls the model that it belongs to, where that can be read."""
    try:
        return json.loads((folder / CONFIG).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def open_merged(
    base: Path, adapter: Path, config: Gemma3Config
) -> Iterator[Callable[[str], Tensor]]:
    """A function from the name of a parameter to W + scale · B A, in the dtype of W.

    The sum is float32. Raises: CheckpointError for an adapter that is not plain LoRA on this base.
    """
    with torch.device("meta"):
        model = Gemma3(config)
    scales = {name: module.scale for name, module in adapters(load_adapter(model, adapter))}
    weights, places = open_weights(base, config)
    with weights, TensorReader([adapter / WEIGHTS]) as updates:
        nested = is_nested(updates)

        def read(name: str) -> Tensor:
            weight = weights.read(places[name])
            module = name.removesuffix(".weight")
            if module not in scales:
                return weight
            stem = peft_stem(module, nested=nested)
            a, b = (updates.read(f"{stem}.lora_{x}.weight").float() for x in "AB")
            return (weight.float() + scales[module] * (b @ a)).to(weight.dtype)

        yield read
