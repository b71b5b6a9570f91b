"""Rows with two answers to one prompt: which are pairs, and what becomes of the others.

How pairs are stored is `preference.py`'s business, what shapes rows have `shapes.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from singalaut.contracts import Message, Sample
from singalaut.data.config import DataSource
from singalaut.data.hub import fetch_hub
from singalaut.data.pieces import blurred
from singalaut.data.rows import RowReader
from singalaut.data.sources import cut, find_files, read_piece
from singalaut.errors import DataError
from singalaut.text.bulk import IDS
from singalaut.text.conversations import LEARNED, TOKEN, ConversationEncoder, is_learned

EXAMPLES = 3  # of each reason


@dataclass
class Refused:
    """Rows that are no pair: how many for each reason, and a few of them by source and number."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, error: DataError, place: str) -> None:
        reason = blurred(error.what)
        self.counts[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(f"{place}: {error.what}")

    def as_rows(self) -> list[dict[str, Any]]:
        """One row a reason, the most frequent first."""
        return [
            {"reason": reason, "rows": count, "examples": self.examples[reason]}
            for reason, count in self.counts.most_common()
        ]


def read_samples(
    source: DataSource, place: Path | None, refused: Refused
) -> Iterator[tuple[int, Sample | None]]:
    """The samples of a source, numbered from 1; None for a row that is refused, and counted."""
    if place is None:
        assert source.hub is not None
        files = fetch_hub(source.hub, source.subset, source.split, source.revision)
        folder = None
    else:
        files, folder = find_files(place, source.split), place if place.is_dir() else place.parent
    reader = RowReader(source.label, source.language, source.licence, source.columns, folder)  # type: ignore[arg-type]
    number = 0
    for file in files:
        for piece in cut(0, file):
            for _, row in read_piece(piece):
                number += 1
                try:
                    if isinstance(row, DataError):
                        raise row
                    yield number, reader.read(row, number)
                except DataError as error:
                    refused.add(error, f"{source.label}, row {number}")
                    yield number, None


PairWords = tuple[np.ndarray, np.ndarray]  # of the chosen and the rejected conversation


def encode_pairs(
    encoder: ConversationEncoder, samples: Sequence[Sample]
) -> list[PairWords | DataError]:
    """Both conversations of each row as words, or in their place why they cannot be used.

    The words are those of `ConversationEncoder`, marked as learned in the last answer alone; of a
    rejected answer that was cut, as `rejected_is_cut` says, the end is not learned.
    """
    faults = [pair_fault(sample) for sample in samples]
    conversations: list[Sequence[Message]] = []
    for sample, fault in zip(samples, faults, strict=True):
        if fault is None:
            conversations.append(sample.messages)
            conversations.append([*sample.messages[:-1], *sample.rejected])
    encoded = iter(encoder.encode(conversations))
    results: list[PairWords | DataError] = []
    for sample, fault in zip(samples, faults, strict=True):
        if fault is not None:
            results.append(fault)
            continue
        chosen, rejected = next(encoded), next(encoded)
        if isinstance(chosen, DataError):
            results.append(chosen)
        elif isinstance(rejected, DataError):
            results.append(rejected)
        else:
            ends = not sample.meta.get("rejected_is_cut")
            results.append((_answer_only(chosen), _answer_only(rejected, ends)))
    return results


def pair_fault(sample: Sample) -> DataError | None:
    """Why a row is no pair of answers to one prompt; None where it is one."""
    if not sample.rejected:
        same = "the chosen and the rejected answer are identical, or there is no rejected one"
        return DataError(same)
    if len(sample.messages) < 2:
        return DataError("there is no prompt before the answers")
    chosen, rejected = sample.messages[-1], sample.rejected[-1]
    if len(sample.rejected) > 1 or {chosen.role, rejected.role} != {"assistant"}:
        return DataError("the two conversations differ in more than the assistant's last answer")
    if sample.messages[-2].role == "assistant":
        return DataError("the prompt ends with a turn of the assistant")
    if sample.tools:
        return DataError("the row offers tools, which the chat format does not put into the prompt")
    if not _has_text(chosen.content) or not _has_text(rejected.content):
        which = "rejected" if _has_text(chosen.content) else "chosen"
        return DataError(f"the {which} answer is empty")
    if chosen.content == rejected.content:
        return DataError("the chosen and the rejected answer are identical")
    is_cut = sample.meta.get("rejected_is_cut")
    if is_cut is not None and not isinstance(is_cut, bool):
        return DataError(f"`rejected_is_cut` is `{str(is_cut)[:40]}`; it must be true or false")
    return None


def _has_text(content: Any) -> bool:
    return not isinstance(content, str) or bool(content.strip())


def _answer_only(found: bytes, ends: bool = True) -> np.ndarray:
    """A conversation with the mark on its last answer alone; on its end only where it `ends`."""
    words = np.frombuffer(found, IDS)
    learned = is_learned(words)
    end = int(np.flatnonzero(learned)[-1])
    begin = int(np.flatnonzero(~learned[:end])[-1]) + 1
    marked = words & TOKEN
    marked[begin : end + ends] |= LEARNED
    return marked
