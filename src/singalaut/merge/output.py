"""Shape, vocabulary and companion files of the merged model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from singalaut.merge.config import MergeConfig
from singalaut.merge.plan import Given, common_shape, named
from singalaut.merge.sources import EMBEDDING, Source
from singalaut.merge.vocabulary import (
    Alignment,
    align,
    check_same,
    read_vocabulary,
    write_tokenizer,
)
from singalaut.model.config import Gemma3Config
from singalaut.model.hf import copy_companions, write_settings

UNION = "union"


@dataclass(frozen=True)
class Output:
    """What the merged model is besides its weights."""

    shape: Gemma3Config
    like: Path
    """The model whose tokenizer and other files it has."""
    alignment: Alignment | None = None
    control_rows: tuple[int, ...] = ()
    """Rows of the embedding that belong to control tokens, where that is asked for."""
    tokenizer: Mapping[str, Any] | None = None
    """The joined `tokenizer.json`, where the vocabularies are joined."""

    def write_files(self, folder: Path, dtype: torch.dtype) -> None:
        """Everything but the weights."""
        copy_companions(self.like, folder)
        if self.tokenizer is not None:
            for file in folder.glob("tokenizer.model"):  # knows nothing of the joined tokens
                file.unlink()
            write_tokenizer(folder, dict(self.tokenizer))
        write_settings(folder, self.shape, dtype)


def prepare_output(
    config: MergeConfig, given: Mapping[str, Given], sources: Mapping[Any, Source]
) -> Output:
    """Raises: CheckpointError where shapes or vocabularies differ that must not."""
    shape = common_shape(config, given)
    entries = list(given.values())
    if config.tokenizer is None:
        check_same([entry.folder for entry in entries], shape.vocab_size)
        wanted = config.embeddings_from and config.embedding_rows == "control"
        control = _control_rows(entries[0].folder, shape.vocab_size) if wanted else ()
        return Output(shape, entries[0].folder, control_rows=control)
    distinct = list({entry.key: entry for entry in entries}.values())
    keys = [entry.key for entry in distinct]
    union = config.tokenizer == UNION
    first = given.get("base", entries[0]) if union else named(config, given, "tokenizer")
    assert first is not None
    vocabularies = [read_vocabulary(entry.folder) for entry in distinct]
    alignment, raw = align(
        [sources[key] for key in keys],
        vocabularies,
        [sources[key].num_rows(EMBEDDING) for key in keys],
        [entry.settings.source for entry in distinct],
        like=keys.index(first.key),
        union=union,
        base=keys.index(given["base"].key) if "base" in given else None,
    )
    shape = replace(
        shape,
        vocab_size=alignment.num_rows,
        bos_id=first.shape.bos_id,
        pad_id=first.shape.pad_id,
        eos_ids=_ends(distinct, alignment),
    )
    control = tuple(alignment.control_rows.tolist())
    return Output(shape, first.folder, alignment, control, raw if union else None)


def _control_rows(folder: Path, num_rows: int) -> tuple[int, ...]:
    vocabulary = read_vocabulary(folder)
    ids = vocabulary.without_rows_beyond(num_rows)
    return tuple(sorted(ids[token] for token in vocabulary.control if token in ids))


def _ends(entries: Sequence[Given], alignment: Alignment) -> tuple[int, ...]:
    """The rows in the output of the tokens that end an answer in any of the models."""
    found: dict[int, None] = {}
    for entry, indices in zip(entries, alignment.indices, strict=True):
        row_of = {int(index): row for row, index in enumerate(indices) if index >= 0}
        found |= {row_of[i]: None for i in entry.shape.eos_ids if i in row_of}
    return tuple(found)
