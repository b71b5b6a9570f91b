"""Samples to token rows, and the order in which training sees them.

The order is a pure function of the seed and the step, so a resumed run needs no position of its
own: it asks for the next step's batch.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from singalaut.contracts import Sample, derive
from singalaut.data.config import DataSource
from singalaut.data.sources import read_samples
from singalaut.errors import DataError

if TYPE_CHECKING:
    from singalaut.text.parts import ImageTokens

log = logging.getLogger("singalaut")


@dataclass(frozen=True)
class Example:
    """One conversation as tokens; `mask` is True on the tokens that are learned."""

    tokens: np.ndarray
    mask: np.ndarray
    language: str
    source: int  # index of the file it came from
    name: str = ""
    pictures: tuple[bytes | str | Path, ...] = ()


@dataclass(frozen=True)
class Micro:
    """Conversations laid end to end in one row, to be run in one forward pass.

    `pictures` are in the order of their tokens: bytes of files, `data:` URIs or paths.
    """

    tokens: Tensor  # [1, T]
    mask: Tensor  # [1, T]
    lengths: tuple[int, ...]
    pictures: tuple[bytes | str | Path, ...] = ()


@dataclass(frozen=True)
class TrainingData:
    """Everything that training asks of its data."""

    examples: list[Example]
    weights: tuple[float, ...]  # of the sources
    end_of_turn: int
    provenance: list[dict[str, Any]]  # rows by source, language and licence
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def order(self, epoch: int, seed: int) -> np.ndarray:
        """Indices of one pass: each source's rows `weight` times, a fraction drawn at random."""
        generator = np.random.default_rng(derive(seed, "order", epoch))
        parts = []
        for rows, weight in zip(self._rows_by_source, self.weights, strict=True):
            wanted = max(1, round(len(rows) * weight)) if len(rows) else 0
            whole, rest = divmod(wanted, len(rows)) if len(rows) else (0, 0)
            parts += [rows] * whole + [generator.permutation(rows)[:rest]]
        return generator.permutation(np.concatenate(parts))

    def batch(self, step: int, size: int, seed: int) -> list[Example]:
        """The conversations of one optimiser step."""
        chosen = []
        for place in range(step * size, (step + 1) * size):
            epoch, index = divmod(place, self.rows_in_a_pass)
            chosen.append(self.examples[self._cached_order(epoch, seed)[index]])
        return chosen

    @cached_property
    def rows_in_a_pass(self) -> int:
        return len(self.order(0, 0))

    @cached_property
    def _rows_by_source(self) -> list[np.ndarray]:
        sources = np.array([example.source for example in self.examples])
        return [np.flatnonzero(sources == source) for source in range(len(self.weights))]

    def _cached_order(self, epoch: int, seed: int) -> np.ndarray:
        """The order of a pass; the last two are kept, as a step may cross from one to the next."""
        if (epoch, seed) not in self._orders:
            if len(self._orders) > 1:
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch, seed] = self.order(epoch, seed)
        return self._orders[epoch, seed]


def load_training_data(
    files: list[Path],
    sources: tuple[DataSource, ...],
    model: Path,
    max_tokens: int,
    image_tokens: int | None = None,
) -> TrainingData:
    """Read and tokenise the sources with the tokenizer and chat template of a model directory.

    `image_tokens` is how many tokens a picture takes, None for a model that cannot see.
    """
    from singalaut.text.chat import ChatFormat
    from singalaut.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model)
    chat = ChatFormat.load(model, tokenizer)
    examples, too_long, origins = [], 0, Counter[tuple[str, str, str]]()
    for number, (file, source) in enumerate(zip(files, sources, strict=True)):
        for sample in read_samples(file, source.language):
            name = f"{file}, row {sample.id}"
            try:
                pictures, images = _pictures(sample, image_tokens)
                tokens, mask = chat.encode_with_mask(sample.messages, images=images)
            except DataError as error:
                raise DataError(error.what, where=name, hint=error.hint) from error
            if len(tokens) > max_tokens:
                too_long += 1
                continue
            language = sample.language or "unknown"
            origins[sample.source or file.stem, language, sample.licence or "not stated"] += 1
            example = Example(np.array(tokens), np.array(mask), language, number, name, pictures)
            examples.append(example)
    if not examples:
        raise DataError(
            f"every conversation is longer than {max_tokens} tokens", hint="raise `max_tokens`"
        )
    if too_long:
        log.warning("%d conversations longer than %d tokens were left out", too_long, max_tokens)
    provenance = [
        {"source": source, "language": language, "licence": licence, "rows": rows}
        for (source, language, licence), rows in sorted(origins.items())
    ]
    weights = tuple(source.weight for source in sources)
    return TrainingData(examples, weights, tokenizer.end_of_turn_id, provenance)


def _pictures(
    sample: Sample, image_tokens: int | None
) -> tuple[tuple[bytes | str | Path, ...], ImageTokens | None]:
    """The pictures of a conversation in order, and how they become tokens."""
    from singalaut.text.parts import ImageTokens, image_sources

    found = image_sources(sample.messages)
    if not found:
        return (), None
    if image_tokens is None:
        raise DataError(
            f"the model is text-only, but the conversation has images ({len(found)})",
            hint="tune a model that sees (Gemma 3 4B, 12B or 27B), or remove the images or the row",
        )
    pictures = tuple(source for source in found if source is not None)
    if len(pictures) < len(found):
        raise DataError(
            "an image part without an image",
            hint='add it as "image": the name of a file beside the rows, or a `data:` URI',
        )
    return pictures, ImageTokens((0,) * len(found), image_tokens)


def micro_batches(batch: list[Example], max_tokens: int) -> list[Micro]:
    """Lay conversations end to end in rows of at most `max_tokens` tokens (or one conversation)."""
    rows: list[list[Example]] = []
    room = 0
    for example in sorted(batch, key=lambda e: -len(e.tokens)):
        if len(example.tokens) > room:
            rows.append([])
            room = max_tokens
        rows[-1].append(example)
        room -= len(example.tokens)
    return [_lay_out(row) for row in rows]


def _lay_out(row: list[Example]) -> Micro:
    masks = []
    for example in row:
        mask = example.mask.copy()
        mask[0] = False  # nothing of this conversation stands before its first token
        masks.append(mask)
    return Micro(
        torch.from_numpy(np.concatenate([e.tokens for e in row]))[None],
        torch.from_numpy(np.concatenate(masks))[None],
        tuple(len(e.tokens) for e in row),
        tuple(picture for e in row for picture in e.pictures),
    )
