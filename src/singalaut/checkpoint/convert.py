"""Whole checkpoints from one form to another: weights, configuration, tokenizer, chat format."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from singalaut.artifact import remove_folder
from singalaut.checkpoint.adapters import base_name, is_adapter, merged_weights
from singalaut.checkpoint.kquants import KQUANTS, open_llama_cpp, quantize
from singalaut.errors import CheckpointError, RecipeError
from singalaut.model.config import Gemma3Config
from singalaut.model.gguf import GgufFile, config_from_gguf, read_weights
from singalaut.model.gguf_write import FLOATS, FORMATS, refuse_custom_shapes, write_gguf
from singalaut.model.hf import (
    DTYPES,
    copy_companions,
    open_weights,
    parameter_shapes,
    read_config,
    save_weights,
    stored_dtype,
)
from singalaut.model.tensors import TensorReader
from singalaut.progress import Bar, progress
from singalaut.text.pieces import read_pieces
from singalaut.text.template import GEMMA_TEMPLATE, read_template
from singalaut.text.tokenizer import Tokenizer

log = logging.getLogger("singalaut")


def convert(
    source: Path,
    output: Path,
    *,
    dtype: str | None = None,
    quant: str | None = None,
    base: Path | None = None,
) -> None:
    """Write `source` as a Hugging Face directory, or as a GGUF file if `output` ends in `.gguf`.

    `source` is a GGUF file, a Hugging Face directory, or an adapter, which is folded into `base`.
    `dtype` (directories: `bfloat16` or `float32`) and `quant` (GGUF: one of `FORMATS` or `KQUANTS`)
    keep the source's own where not given; block-quantised weights become bfloat16. `output`
    appears only when complete.
    """
    _check_request(source, output, dtype, quant, base)
    if output.suffix == ".gguf":
        _to_gguf(source, output, quant, base)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        if source.is_file():
            convert_gguf(source, partial, dtype)
        else:
            _rewrite(source, partial, dtype, base)
        partial.chmod(0o755)
        partial.rename(output)
    finally:
        if partial.exists():
            remove_folder(partial)


def convert_gguf(file: Path, folder: Path, dtype: str | None) -> None:
    """Write weights, configuration, tokenizer and chat template of a GGUF file into `folder`."""
    gguf = GgufFile(file)
    config = config_from_gguf(gguf)
    pieces = _gguf_pieces(gguf)
    stored = torch.float32 if _kinds(gguf) == {"F32"} else torch.bfloat16
    target = DTYPES[dtype] if dtype else stored
    with _progress(config) as bar:
        save_weights(folder, config, target, _counted(read_weights(gguf, config, target), bar))
    tokenizer = Tokenizer.from_vocabulary(*pieces)
    template = gguf.metadata.get("tokenizer.chat_template", GEMMA_TEMPLATE)
    tokenizer.save(folder, template=template)


def _check_request(
    source: Path, output: Path, dtype: str | None, quant: str | None, base: Path | None
) -> None:
    """Raises RecipeError for options that are unknown or do not belong together."""
    known = [*FORMATS, *KQUANTS]
    is_gguf = output.suffix == ".gguf"
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(
            f"cannot write `{dtype}`", hint=f"use one of {', '.join(DTYPES)}", where="dtype"
        )
    if quant is not None and quant not in known:
        near = get_close_matches(quant.upper(), known, n=1)
        raise RecipeError(
            f"the format `{quant}` is not known",
            where="quant",
            hint=(f"did you mean `{near[0]}`? " if near else "") + f"known: {', '.join(known)}",
        )
    if quant is not None and not is_gguf:
        raise RecipeError(
            f"`{quant}` is a format of GGUF files", where=output, hint="name the output `….gguf`"
        )
    if dtype is not None and is_gguf:
        raise RecipeError(
            "a GGUF file has a format instead of a dtype",
            where=output,
            hint="use --quant F32 or --quant BF16",
        )
    if output.exists():
        raise RecipeError("the output exists already", where=output, hint="give it a new name")
    adapter = source.is_dir() and is_adapter(source)
    if adapter and base is None:
        name = base_name(source)
        raise RecipeError(
            "an adapter needs its base model",
            where=source,
            hint=f"--base MODEL; the adapter names `{name}`" if name else "--base MODEL",
        )
    if base is not None and not adapter:
        raise RecipeError(
            "a base model was given, but this is not an adapter", where=source, hint="leave it out"
        )


def _to_gguf(source: Path, output: Path, quant: str | None, base: Path | None) -> None:
    """Any source as a GGUF file; K-quants by way of a file in the source's own precision."""
    if quant in KQUANTS:
        open_llama_cpp(quant)  # before the work
    config: Gemma3Config
    pieces: tuple[list[Any], list[Any], list[Any]]
    if source.is_file():
        gguf = GgufFile(source)
        config, pieces, kinds = config_from_gguf(gguf), _gguf_pieces(gguf), _kinds(gguf)
        template = gguf.metadata.get("tokenizer.chat_template")
        weights = read_weights(gguf, config, torch.float32)
        name = gguf.metadata.get("general.name", source.stem)
    else:
        model = base or source
        config, kinds = read_config(model), _stored_kinds(model)
        refuse_custom_shapes(config)  # before the tokenizer, which takes seconds to read
        if config.vision:
            log.info("only the text model is written, without its vision tower")
            config = replace(config, vision=None)
        tokens_from = source if (source / "tokenizer.json").exists() else model
        pieces = read_pieces(tokens_from, config.vocab_size)
        template = (read_template(tokens_from) or read_template(model) or (None,))[0]
        weights = (
            merged_weights(model, source, config) if base else _directory_weights(model, config)
        )
        name = source.parent.name if source.name in ("model", "adapter") else source.name
    _log_losses(config, pieces, kinds, quant)
    own = next(iter(kinds)) if len(kinds) == 1 and kinds <= {"F32", "F16"} else "BF16"
    output.parent.mkdir(parents=True, exist_ok=True)
    whole = output.with_name(f".{output.stem}.{own}.gguf") if quant in KQUANTS else output
    written = own if quant is None or quant in KQUANTS else quant
    with _progress(config) as bar:
        counted = _counted(weights, bar)
        write_gguf(whole, config, written, counted, pieces, name=name, template=template)
    if whole != output:
        try:
            quantize(whole, output, str(quant))
        finally:
            whole.unlink(missing_ok=True)


def _log_losses(
    config: Gemma3Config, pieces: tuple[list[Any], ...], kinds: set[str], quant: str | None
) -> None:
    """Say what the file will not hold."""
    if beyond := config.vocab_size - len(pieces[0]):
        log.info("%d embedding rows beyond the vocabulary are dropped", beyond)
    if quant is not None and quant not in FLOATS and not kinds & set(FLOATS):
        before = ", ".join(sorted(kinds))
        log.warning("the weights were quantised before (%s): quality is lost twice", before)
    if len(config.eos_ids) > 2:
        log.warning("of the tokens that end an answer, %s, two are written", config.eos_ids)


def _rewrite(source: Path, folder: Path, dtype: str | None, base: Path | None) -> None:
    """A directory in any layout, or an adapter on `base`, to the text-only layout in `dtype`."""
    model = base or source
    config = read_config(model)
    target = DTYPES[dtype] if dtype else stored_dtype(model)
    weights = merged_weights(model, source, config) if base else _directory_weights(model, config)
    with _progress(config) as bar:
        save_weights(folder, config, target, _counted(weights, bar))
    copy_companions(model, folder)
    if base:
        copy_companions(source, folder)  # an adapter's own tokenizer and template come first


def _directory_weights(folder: Path, config: Gemma3Config) -> Iterator[Tensor]:
    reader, places = open_weights(folder, config)
    with reader:
        for place in places.values():
            yield reader.read(place)


def _progress(config: Gemma3Config) -> AbstractContextManager[Bar]:
    return progress("convert", len(parameter_shapes(config)), "tensor")


def _counted(weights: Iterator[Tensor], bar: Bar) -> Iterator[Tensor]:
    for weight in weights:
        bar.advance()
        yield weight


def _gguf_pieces(gguf: GgufFile) -> tuple[list[Any], list[Any], list[Any]]:
    names = ("tokens", "scores", "token_type")
    tokens, scores, types = (gguf.metadata.get(f"tokenizer.ggml.{name}", []) for name in names)
    if not (tokens and scores and types):
        raise CheckpointError(
            "the file holds no SentencePiece vocabulary (`tokenizer.ggml.tokens`, `scores`, "
            "`token_type`)",
            where=gguf.path.name,
            hint="use a GGUF file that was made with its tokenizer",
        )
    return tokens, scores, types


def _kinds(gguf: GgufFile) -> set[str]:
    """The formats of the matrices; norms are float32 in every file."""
    from gguf import GGMLQuantizationType

    tensors = gguf.tensors.values()
    return {GGMLQuantizationType(t.type).name for t in tensors if len(t.shape) > 1}


def _stored_kinds(folder: Path) -> set[str]:
    with TensorReader.open(folder) as reader:
        return {reader.dtype(name) for name in reader}
