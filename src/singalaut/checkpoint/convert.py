"""Whole checkpoints from one form to another: weights, configuration, tokenizer, chat format."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from singalaut.artifact import remove_folder
from singalaut.errors import CheckpointError, RecipeError
from singalaut.model.gguf import GgufFile, config_from_gguf, read_weights
from singalaut.model.hf import (
    DTYPES,
    copy_companions,
    open_weights,
    parameter_shapes,
    read_config,
    save_weights,
    stored_dtype,
)
from singalaut.progress import progress
from singalaut.text.template import GEMMA_TEMPLATE
from singalaut.text.tokenizer import Tokenizer

log = logging.getLogger("singalaut")


def convert(source: Path, output: Path, *, dtype: str | None = None) -> None:
    """Write `source`, a GGUF file or a Hugging Face directory, as a Hugging Face directory.

    `dtype` is `bfloat16` or `float32`; without it a directory keeps its own and block-quantised
    weights become bfloat16. `output` appears only when complete.
    """
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(
            f"cannot write `{dtype}`", hint=f"use one of {', '.join(DTYPES)}", where="dtype"
        )
    if output.suffix == ".gguf":
        raise RecipeError(
            "only Hugging Face directories can be written", where=output, hint="name a directory"
        )
    if output.exists():
        raise RecipeError("the output exists already", where=output, hint="name a new directory")
    partial = output.with_name(output.name + ".partial")
    if partial.exists():
        remove_folder(partial)
    partial.mkdir(parents=True)
    try:
        if source.is_file():
            convert_gguf(source, partial, dtype)
        else:
            _rewrite(source, partial, dtype)
        partial.rename(output)
    finally:
        if partial.exists():
            remove_folder(partial)


def convert_gguf(file: Path, folder: Path, dtype: str | None) -> None:
    """Write weights, configuration, tokenizer and chat template of a GGUF file into `folder`."""
    gguf = GgufFile(file)
    config = config_from_gguf(gguf)
    meta = gguf.metadata
    names = ("tokens", "scores", "token_type")
    arrays: list[list[Any]] = [meta.get(f"tokenizer.ggml.{name}", []) for name in names]
    if not all(arrays):
        raise CheckpointError(
            "the file holds no SentencePiece vocabulary (`tokenizer.ggml.tokens`, `scores`, "
            "`token_type`)",
            where=file.name,
            hint="use a GGUF file that was made with its tokenizer",
        )
    stored = torch.float32 if _is_float32(gguf) else torch.bfloat16
    target = DTYPES[dtype] if dtype else stored
    with progress("convert", len(parameter_shapes(config)), "tensor") as bar:
        save_weights(folder, config, target, _counted(read_weights(gguf, config, target), bar))
    tokenizer = Tokenizer.from_vocabulary(*arrays)
    tokenizer.save(folder, template=meta.get("tokenizer.chat_template", GEMMA_TEMPLATE))


def _rewrite(source: Path, folder: Path, dtype: str | None) -> None:
    """A directory in any layout to the text-only one, in `dtype`."""
    config = read_config(source)
    reader, places = open_weights(source, config)
    target = DTYPES[dtype] if dtype else stored_dtype(source)
    with reader, progress("convert", len(places), "tensor") as bar:
        weights = (reader.read(place) for place in places.values())
        save_weights(folder, config, target, _counted(weights, bar))
    copy_companions(source, folder)


def _counted(weights: Iterator[Tensor], bar: object) -> Iterator[Tensor]:
    for weight in weights:
        bar.advance()  # type: ignore[attr-defined]
        yield weight


def _is_float32(gguf: GgufFile) -> bool:
    return {tensor.type for tensor in gguf.tensors.values()} == {0}
