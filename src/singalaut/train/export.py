"""A training checkpoint as a Hugging Face directory, at any step, without the job or a GPU.

Tensors are put together one at a time from the files of however many processes wrote them. Where
the run keeps an average of its weights, that is what is written, as the stage itself would.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from singalaut.artifact import remove_folder
from singalaut.errors import CheckpointError, RecipeError
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import (
    DTYPES,
    copy_companions,
    open_weights,
    parameter_shapes,
    read_config,
    save_weights,
    set_parameter,
    stored_dtype,
)
from singalaut.model.lora import adapters, add_adapter, save_adapter
from singalaut.train.pieces import Parts, known_checkpoints


def checkpoints_of(place: Path) -> list[Path]:
    """The checkpoints of a stage that has not finished, by its folder with or without `.partial`.

    `place` may also be the folder of one checkpoint. Empty if it is neither.
    """
    if (place / "step.json").exists():
        return [place]
    beside = place.with_name(place.name + ".partial")
    found = (known_checkpoints(folder / ".work") for folder in (place, beside))
    return next((known for known in found if known), [])


def export_checkpoint(
    place: Path,
    output: Path,
    *,
    step: int | None = None,
    base: Path | None = None,
    dtype: str | None = None,
    adapter_only: bool = False,
) -> Path:
    """Write the weights after `step` steps, or after the last that was saved, as a directory.

    An adapter is folded into `base`, the model that training began with (known from the run unless
    it has moved); with `adapter_only` it is written alone, as PEFT has it.
    Raises: RecipeError, CheckpointError with what there is.
    """
    if output.exists():
        raise RecipeError("the output exists already", where=output, hint="give it a new name")
    if dtype is not None and dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise RecipeError(f"cannot write `{dtype}`", hint=f"use one of {known}", where="dtype")
    parts = Parts(_chosen(place, step))
    base = _base(parts, base)
    if adapter_only and parts.about["adapter"] is None:
        raise RecipeError(
            "all weights are trained, so there is no adapter",
            where=place,
            hint="leave `--adapter-only` out",
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        if adapter_only:
            _write_adapter(parts, base, partial)
        else:
            config = replace(read_config(base), eos_ids=tuple(parts.about["eos_ids"]))
            target = DTYPES[dtype] if dtype else stored_dtype(base)
            save_weights(partial, config, target, _weights(parts, base, config))
            copy_companions(base, partial)
        partial.chmod(0o755)
        partial.rename(output)
    finally:
        if partial.exists():
            remove_folder(partial)
    return output


def _chosen(place: Path, step: int | None) -> Path:
    known = checkpoints_of(place)
    if not known:
        raise RecipeError(
            "there is no checkpoint of a training run",
            where=place,
            hint="give the folder of a stage that is training or was stopped, `….partial`; a "
            "finished stage has only its `model/`",
        )
    numbers = {int(path.name.removeprefix("step-")): path for path in known}
    if step is None:
        return known[-1]
    if step not in numbers:
        there = ", ".join(map(str, numbers))
        hint = f"there are {there}; `keep_checkpoints` says how many are kept"
        raise RecipeError(f"there is no checkpoint after step {step}", where=place, hint=hint)
    return numbers[step]


def _base(parts: Parts, base: Path | None) -> Path:
    """The model that training began with."""
    found = base or (None if parts.about["base"] is None else Path(parts.about["base"]))
    if found is None or not (found / "config.json").exists():
        raise RecipeError(
            "the model that training began with is not where it was",
            where=found or parts.folder,
            hint="name it with `--base MODEL`",
        )
    return found


def _weights(parts: Parts, base: Path, config: Gemma3Config) -> Iterator[Tensor]:
    """Every parameter in the order of `parameter_shapes`; what was frozen is the base's."""
    adapter = parts.about["adapter"]
    reader, places = open_weights(base, config)
    with reader:
        for name, shape in parameter_shapes(config).items():
            module = name.removesuffix(".weight")
            if f"weight.{name}" in parts:
                weight = _learned(parts, name)
            else:
                weight = reader.read(places[name])
                if f"weight.{module}.a" in parts:
                    a, b = (_learned(parts, f"{module}.{leaf}") for leaf in "ab")
                    scale = adapter["alpha"] / adapter["rank"]
                    _check_shape(f"{module}.b · a", (b.shape[0], a.shape[1]), shape, base)
                    weight = weight.float() + scale * (b @ a)
            _check_shape(name, tuple(weight.shape), shape, base)
            yield weight


def _learned(parts: Parts, name: str) -> Tensor:
    """A trained parameter, float32: its average where there is one."""
    label = "average" if f"average.{name}" in parts else "weight"
    return parts.whole(f"{label}.{name}", torch.float32)


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...], base: Path) -> None:
    if found != wanted:
        raise CheckpointError(
            f"`{name}` has shape {list(found)} in the checkpoint, the base asks for {list(wanted)}",
            where=base,
            hint="this is not the model that training began with",
        )


def _write_adapter(parts: Parts, base: Path, folder: Path) -> None:
    settings: dict[str, Any] = parts.about["adapter"]
    with torch.device("meta"):
        model = Gemma3(read_config(base))
    add_adapter(model, settings["rank"], settings["alpha"], tuple(settings["targets"]), seed=0)
    for name, adapted in adapters(model):
        for leaf in "ab":
            weight = _learned(parts, f"{name}.{leaf}")
            shape = tuple(getattr(adapted, leaf).shape)
            _check_shape(f"{name}.{leaf}", tuple(weight.shape), shape, base)
            set_parameter(model, f"{name}.{leaf}", weight)
    name = base.parent.name if base.name == "model" else base.name
    save_adapter(model, folder, base_name=name)
