"""A model to be converted, from whatever form it is in: opened and checked, read tensor by tensor.

A Hugging Face directory, an adapter on its base model, or a GGUF file with or without its projector
file. What is made of it is `convert.py`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from singalaut.checkpoint.adapters import open_merged
from singalaut.errors import CheckpointError
from singalaut.model.config import Gemma3Config, VisionConfig
from singalaut.model.gguf import GgufFile, check_shapes, config_from_gguf, read_parameter
from singalaut.model.hf import open_weights, parameter_shapes, read_config, stored_dtype
from singalaut.model.mmproj import check_vision, read_vision, read_vision_config
from singalaut.model.tensors import TensorReader
from singalaut.text.pieces import CONTROL, NEVER_MERGED, Pieces, drop_padding, read_pieces
from singalaut.text.template import read_template
from singalaut.text.vocabulary import IMAGE_TOKENS

log = logging.getLogger("singalaut")
SEEING = ("4b", "12b", "27b")
ROWS = 64  # a multiple of which the published models that see have as embedding rows
VISION, EMBEDDING = "vision.", "embedding.weight"


@dataclass(frozen=True)
class Source:
    """`read(name, dtype)` gives one parameter by our name; blocks are undone straight to `dtype`.

    `formats` are those of the matrices; `folders` are where tokenizer and notices lie as files,
    none for GGUF files; `pieces` takes seconds.
    """

    config: Gemma3Config
    name: str
    formats: frozenset[str]
    dtype: torch.dtype
    template: str | None
    folders: tuple[Path, ...]
    pieces: Callable[[], Pieces]
    read: Callable[[str, torch.dtype], Tensor]

    def weights(self, config: Gemma3Config, dtype: torch.dtype) -> Iterator[Tensor]:
        """The parameters of `config`, ours or a part of it, in the order of `parameter_shapes`."""
        return self._read_all(parameter_shapes(config), dtype)

    def vision_weights(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The parameters of the vision part, in the order of `vision_shapes`."""
        names = [name for name in parameter_shapes(self.config) if name.startswith(VISION)]
        return self._read_all(names, dtype)

    def _read_all(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[Tensor]:
        """Parameters one by one; says at the end in which of them a number is not finite."""
        broken = []
        try:
            for name in names:
                weight = self.read(name, dtype)
                if not weight.sum(dtype=torch.float32).isfinite():
                    broken.append(name)
                yield weight
        finally:  # who takes all of them need not ask for one more
            if broken:
                log.warning(
                    "%s: not all numbers are finite in `%s`%s (%d): the model cannot work",
                    self.name, broken[0], ", …" if broken[1:] else "", len(broken),
                )  # fmt: skip


@contextmanager
def open_source(
    path: Path, *, base: Path | None = None, mmproj: Path | None = None
) -> Iterator[Source]:
    """Open a directory, an adapter with its `base`, or a GGUF file with its `mmproj` file.

    Without `mmproj`, `mmproj-NAME.gguf` beside `NAME.gguf` is taken where there is one.
    """
    if path.is_file():
        mmproj = mmproj or beside(path)
        yield _gguf(GgufFile(path), None if mmproj is None else GgufFile(mmproj))
    elif base is not None:
        config = read_config(base)
        with open_merged(base, path, config) as read:
            yield _directory(base, path, config, read)
    else:
        config = read_config(path)
        reader, places = open_weights(path, config)
        with reader:
            yield _directory(path, None, config, lambda name: reader.read(places[name]))


def mmproj_path(path: Path) -> Path:
    """How the projector file of a GGUF file is named."""
    return path.with_name(f"mmproj-{path.name}")


def beside(path: Path) -> Path | None:
    """The projector file that lies beside a GGUF file under its name, if there is one."""
    found = mmproj_path(path)
    return found if found.is_file() else None


def formats_of(gguf: GgufFile) -> frozenset[str]:
    """The formats of the matrices; norms are float32 in every file."""
    from gguf import GGMLQuantizationType

    tensors = gguf.tensors.values()
    return frozenset(GGMLQuantizationType(t.type).name for t in tensors if len(t.shape) > 1)


def gguf_pieces(gguf: GgufFile) -> Pieces:
    """The vocabulary of a GGUF file, without the names that stand for rows without a token.

    Raises: CheckpointError for a file that has none.
    """
    names = ("tokens", "scores", "token_type")
    tokens, scores, types = (gguf.metadata.get(f"tokenizer.ggml.{name}", []) for name in names)
    if not (tokens and scores and types):
        raise CheckpointError(
            "the file holds no SentencePiece vocabulary (`tokenizer.ggml.tokens`, `scores`, "
            "`token_type`)",
            where=gguf.path.name,
            hint="use a GGUF file that was made with its tokenizer",
        )
    return drop_padding(Pieces(tokens, scores, types))


def _directory(
    model: Path, adapter: Path | None, config: Gemma3Config, read: Callable[[str], Tensor]
) -> Source:
    """A directory, or an adapter on it, whose own tokenizer and template come first."""
    folders = (model,) if adapter is None else (model, adapter)
    own = folders[-1]
    tokens_from = own if (own / "tokenizer.json").exists() else model
    with TensorReader.open(model) as reader:
        formats = frozenset(reader.dtype(name) for name in reader)
    return Source(
        config=config,
        name=own.parent.name if own.name in ("model", "adapter") else own.name,
        formats=formats,
        dtype=stored_dtype(model),
        template=(read_template(tokens_from) or read_template(model) or (None,))[0],
        folders=folders,
        pieces=partial(read_pieces, tokens_from, config.vocab_size),
        read=lambda name, _: read(name),
    )


def _gguf(file: GgufFile, mmproj: GgufFile | None) -> Source:
    """A GGUF file; with a projector file, the model that sees."""
    config, pieces = config_from_gguf(file), gguf_pieces(file)
    check_shapes(file, config)
    rows = config.vocab_size
    if mmproj is None and config.size_name in SEEING:
        log.info("the file holds the text model only; its vision part can be given as `--mmproj`")
    if mmproj is not None:
        vision = read_vision_config(mmproj)
        check_vision(mmproj, vision, config.hidden_size)
        config, pieces = _seeing(config, pieces, vision, file.path)
        log.info("the vision part is read from %s", mmproj.path.name)
        if config.vocab_size > rows:
            log.info(
                "%d embedding rows that the file lacks are copies of the padding token's",
                config.vocab_size - rows,
            )

    def read(name: str, dtype: torch.dtype) -> Tensor:
        if name.startswith(VISION):
            assert mmproj is not None and config.vision is not None
            return read_vision(mmproj, name.removeprefix(VISION), config.vision, dtype)
        weight = read_parameter(file, name, dtype)
        if name == EMBEDDING and config.vocab_size > rows:
            # as unlikely to be sampled by others as padding is: zeros could beat real logits
            lacking = weight[config.pad_id].expand(config.vocab_size - rows, -1)
            return torch.cat((weight, lacking))
        return weight

    formats = formats_of(file)
    return Source(
        config=config,
        name=file.metadata.get("general.name", file.path.stem),
        formats=formats,
        dtype=torch.float32 if formats == {"F32"} else torch.bfloat16,
        template=file.metadata.get("tokenizer.chat_template"),
        folders=(),
        pieces=lambda: pieces,
        read=read,
    )


def _seeing(
    config: Gemma3Config, pieces: Pieces, vision: VisionConfig, where: Path
) -> tuple[Gemma3Config, Pieces]:
    """The configuration with its vision part, and the vocabulary with all three image tokens.

    Text-only files leave out the last of them, which has no embedding of its own.
    """
    start, end, image = IMAGE_TOKENS.values()
    tokens, scores, types = pieces
    if start not in tokens or end not in tokens:
        raise CheckpointError(
            f"the vocabulary has no `{start}` and `{end}`",
            where=where.name,
            hint="this text model cannot see; leave `--mmproj` out",
        )
    if image not in tokens:
        tokens, scores, types = [*tokens, image], [*scores, NEVER_MERGED], [*types, CONTROL]
    vision = replace(
        vision,
        start_id=tokens.index(start),
        end_id=tokens.index(end),
        image_id=tokens.index(image),
    )
    rows = max(config.vocab_size, -(-len(tokens) // ROWS) * ROWS)
    return replace(config, vocab_size=rows, vision=vision), Pieces(tokens, scores, types)
