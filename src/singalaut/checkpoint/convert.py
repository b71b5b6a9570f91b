"""Whole checkpoints from one form to another: weights, configuration, tokenizer, chat format."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from singalaut.artifact import remove_folder, write_atomic, write_json
from singalaut.checkpoint.adapters import base_name, is_adapter
from singalaut.checkpoint.kquants import KQUANTS, open_llama_cpp, quantize
from singalaut.checkpoint.sources import Source, mmproj_path, open_source
from singalaut.errors import RecipeError
from singalaut.model import mmproj as projector
from singalaut.model.gguf_stream import FLOATS
from singalaut.model.gguf_write import FORMATS, refuse_custom_shapes, write_gguf
from singalaut.model.hf import DTYPES, copy_companions, parameter_shapes, save_weights
from singalaut.progress import Bar, progress
from singalaut.text.pieces import Pieces
from singalaut.text.sentencepiece import sentencepiece_model
from singalaut.text.template import GEMMA_TEMPLATE
from singalaut.text.tokenizer import Tokenizer
from singalaut.text.vocabulary import IMAGE_TOKENS

log = logging.getLogger("singalaut")


def convert(
    source: Path,
    output: Path,
    *,
    dtype: str | None = None,
    quant: str | None = None,
    base: Path | None = None,
    mmproj: Path | None = None,
) -> list[Path]:
    """Write `source` as a Hugging Face directory, or as a GGUF file if `output` ends in `.gguf`.

    `source` is a GGUF file, whose vision part is in `mmproj`, a Hugging Face directory, or an
    adapter, which is folded into `base`. `dtype` (directories: `bfloat16` or `float32`) and
    `quant` (GGUF: one of `FORMATS` or `KQUANTS`) keep the source's own where not given;
    block-quantised weights become bfloat16. The vision part of a model goes to a GGUF file of its
    own beside `output`; an `output` named `mmproj….gguf` is that part alone.

    Returns what was written; it appears only when complete.
    """
    _check_request(source, output, dtype, quant, base, mmproj)
    if quant in KQUANTS:
        open_llama_cpp(quant)  # before the work
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".gguf":
        with open_source(source, base=base, mmproj=mmproj) as opened:
            return _write_gguf_files(opened, output, quant)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        write_directory(source, partial, dtype=dtype, base=base, mmproj=mmproj)
        partial.chmod(0o755)
        partial.rename(output)
    finally:
        if partial.exists():
            remove_folder(partial)
    return [output]


def write_directory(
    source: Path,
    folder: Path,
    *,
    dtype: str | None = None,
    base: Path | None = None,
    mmproj: Path | None = None,
) -> None:
    """Write weights, configuration, tokenizer and chat template of any source into `folder`."""
    with open_source(source, base=base, mmproj=mmproj) as opened:
        config = opened.config
        target = DTYPES[dtype] if dtype else opened.dtype
        with _progress(len(parameter_shapes(config))) as bar:
            save_weights(folder, config, target, _counted(opened.weights(config, target), bar))
        for files in opened.folders:
            copy_companions(files, folder)
        if not opened.folders:
            _write_tokenizer(folder, opened.pieces(), opened.template)


def _write_tokenizer(folder: Path, pieces: Pieces, template: str | None) -> None:
    """All files of a tokenizer. Published models add the image token to the SentencePiece model."""
    tokenizer = Tokenizer.from_vocabulary(*pieces)
    tokenizer.save(folder, template=template or GEMMA_TEMPLATE)
    image, last = IMAGE_TOKENS["image_token"], len(pieces.tokens) - 1
    if pieces.tokens[last] == image:
        write_json(folder / "added_tokens.json", {image: last})
        pieces = Pieces(pieces.tokens[:last], pieces.scores[:last], pieces.types[:last])
    write_atomic(folder / "tokenizer.model", sentencepiece_model(*pieces))


def _check_request(
    source: Path,
    output: Path,
    dtype: str | None,
    quant: str | None,
    base: Path | None,
    mmproj: Path | None,
) -> None:
    """Raises RecipeError for options that are unknown or do not belong together."""
    known = [*FORMATS, *KQUANTS]
    is_gguf = output.suffix == ".gguf"
    if dtype is not None and dtype not in DTYPES:
        why = ": Gemma 3's residual stream overflows it" if dtype == "float16" else ""
        raise RecipeError(
            f"cannot write `{dtype}`{why}", hint=f"use one of {', '.join(DTYPES)}", where="dtype"
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
    if mmproj is not None and not source.is_file():
        raise RecipeError(
            "a projector file was given, but the source is no GGUF file",
            where=source,
            hint="leave it out: directories hold their vision part themselves",
        )


def _write_gguf_files(source: Source, output: Path, quant: str | None) -> list[Path]:
    """The text model and its vision part, or the vision part alone; both or nothing."""
    if output.name.startswith("mmproj"):
        _write_mmproj(source, output, quant or _own_float(source))
        return [output]
    written = []
    with ExitStack() as undo:
        refuse_custom_shapes(source.config)  # before the tokenizer, which takes seconds to read
        if source.config.vision is not None:
            beside = mmproj_path(output)
            if beside.exists():
                raise RecipeError(
                    "the output exists already", where=beside, hint="give it a new name"
                )
            _write_mmproj(source, beside, _mmproj_format(source, quant))
            written.append(beside)
            undo.callback(beside.unlink, missing_ok=True)
        _write_text(source, output, quant)
        undo.pop_all()
    return [output, *written]


def _write_text(source: Source, output: Path, quant: str | None) -> None:
    """The text model; K-quants by way of a file in the source's own precision."""
    config, pieces = replace(source.config, vision=None), source.pieces()
    _log_losses(source, len(pieces.tokens), quant)
    own = _own_float(source)
    whole = output.with_name(f".{output.stem}.{own}.gguf") if quant in KQUANTS else output
    written = own if quant is None or quant in KQUANTS else quant
    with _progress(len(parameter_shapes(config))) as bar:
        counted = _counted(source.weights(config, torch.float32), bar)
        write_gguf(
            whole, config, written, counted, pieces, name=source.name, template=source.template
        )
    if whole != output:
        try:
            quantize(whole, output, str(quant))
        finally:
            whole.unlink(missing_ok=True)


def _write_mmproj(source: Source, output: Path, quant: str) -> None:
    if source.config.vision is None:
        raise RecipeError(
            "the model has no vision part, which a file of this name would hold",
            where=output,
            hint="name the output of a text model otherwise, or give its `mmproj` file",
        )
    if quant not in projector.FORMATS:
        raise RecipeError(
            f"the vision part cannot be {quant}",
            where=output,
            hint="use one of " + ", ".join(projector.FORMATS),
        )
    weights = source.vision_weights(torch.float32)
    projector.write_mmproj(output, source.config, quant, weights, name=source.name)


def _own_float(source: Source) -> str:
    """The float format that a source is in; bfloat16 for a mixture and for blocks."""
    formats = source.formats
    return next(iter(formats)) if formats in ({"F32"}, {"F16"}) else "BF16"


def _mmproj_format(source: Source, quant: str | None) -> str:
    """What a vision part is beside a text model of format `quant`: never blocks."""
    if quant is None:
        return _own_float(source)
    return quant if quant in FLOATS else "F16"


def _log_losses(source: Source, tokens: int, quant: str | None) -> None:
    """Say what the file will not hold."""
    if beyond := source.config.vocab_size - tokens:
        log.info("%d embedding rows beyond the vocabulary are dropped", beyond)
    if quant is not None and quant not in FLOATS and not source.formats & set(FLOATS):
        before = ", ".join(sorted(source.formats))
        log.warning("the weights were quantised before (%s): quality is lost twice", before)
    if len(source.config.eos_ids) > 2:
        ids = source.config.eos_ids
        log.warning("of the tokens that end an answer, %s, two are written", ids)


def _progress(tensors: int) -> AbstractContextManager[Bar]:
    return progress("convert", tensors, "tensor")


def _counted(weights: Iterator[Tensor], bar: Bar) -> Iterator[Tensor]:
    for weight in weights:
        bar.advance()
        yield weight
