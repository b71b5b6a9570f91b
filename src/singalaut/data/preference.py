"""Preference pairs as tokens on disk: one prompt, a chosen and a rejected answer.

```
pairs/
  pairs.json   what the pairs come from, and what became of every row
  pairs.npy    one record a pair (PAIR), in the order of the sources
  words.bin    the tokens of both conversations of a pair, one after the other; 32 bits each, the
               top bit set where a token belongs to the answer
```

Only the last turn is the answer: earlier turns of the assistant belong to the prompt. In which
order pairs are learned is the stage's business.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from singalaut.artifact import write_json
from singalaut.contracts import Sample
from singalaut.data.config import DataSource
from singalaut.data.pair_rows import PairWords, Refused, encode_pairs, read_samples
from singalaut.errors import DataError
from singalaut.text.bulk import IDS, BulkEncoder
from singalaut.text.chat import ChatFormat
from singalaut.text.conversations import ConversationEncoder, is_learned
from singalaut.text.tokenizer import Tokenizer

ROWS_AT_ONCE = 256
UNKNOWN = "unknown"
PAIR = np.dtype(
    [
        ("start", "<u8"),  # of the chosen conversation, in words; the rejected one follows it
        ("chosen", "<u4"),  # tokens of the conversation
        ("rejected", "<u4"),
        ("chosen_answer", "<u4"),  # tokens of the answer alone
        ("rejected_answer", "<u4"),
        ("source", "<u2"),
        ("language", "<u2"),
        ("row", "<u8"),  # of the source, from 1
    ]
)


@dataclass(frozen=True)
class Pairs:
    """Pairs opened for reading; words are mapped, not read."""

    about: dict[str, Any]
    records: np.ndarray
    _words: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Pairs:
        about = json.loads((folder / "pairs.json").read_bytes())
        records = np.load(folder / "pairs.npy", mmap_mode="r", allow_pickle=False)
        return cls(about, records, np.memmap(folder / "words.bin", dtype=IDS, mode="r"))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def languages(self) -> list[str]:
        """The languages, by the numbers that pairs have."""
        return list(self.about["languages"])

    def tokens(self) -> np.ndarray:
        """Tokens of both conversations together, of each pair."""
        return self.records["chosen"].astype(np.int64) + self.records["rejected"]

    def computed(self) -> np.ndarray:
        """Tokens of all documents, as they are computed: the prompt of a pair counts once."""
        records = self.records
        chosen, rejected = (records[name].astype(np.int64) for name in ("chosen", "rejected"))
        prompt = np.minimum(
            chosen - records["chosen_answer"], rejected - records["rejected_answer"]
        )
        return np.concatenate([chosen, rejected - prompt])

    def words(self, pair: int) -> tuple[np.ndarray, np.ndarray]:
        """The chosen and the rejected conversation, uint32; the top bit marks the answer."""
        record = self.records[pair]
        start, middle = int(record["start"]), int(record["start"]) + int(record["chosen"])
        return self._words[start:middle], self._words[middle : middle + int(record["rejected"])]

    def prompt(self, pair: int) -> bytes:
        """What tells the prompt of a pair from others: the tokens before the answer."""
        chosen, _ = self.words(pair)
        return chosen[: int(is_learned(chosen).argmax())].tobytes()


def make_pairs(
    sources: Sequence[DataSource],
    data: Sequence[Path | None],
    model: Path,
    max_tokens: int,
    folder: Path,
) -> Pairs:
    """Read and tokenise the pairs of all sources into `folder`, unless they are there.

    Rows that are no pair are counted by reason. Raises: DataError where no pair is left.
    """
    if (folder / "pairs.json").exists():
        return Pairs.open(folder)
    tokenizer = Tokenizer.load(model)
    encoder = ConversationEncoder(ChatFormat.load(model, tokenizer), BulkEncoder(tokenizer))
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "words.bin").open("wb") as out:
        writer = _Writer(encoder, max_tokens, out)
        for source, place in zip(sources, data, strict=True):
            writer.add_source(source, place)
    refused = writer.refused.as_rows()
    if not writer.records:
        first = f": {refused[0]['examples'][0]}" if refused else ""
        raise DataError(f"there is no pair to learn from{first}")
    np.save(partial / "pairs.npy", np.array(writer.records, dtype=PAIR))
    about = {"sources": writer.about, "languages": list(writer.languages), "refused": refused}
    write_json(partial / "pairs.json", {**about, "end_of_turn": tokenizer.end_of_turn_id})
    partial.rename(folder)
    return Pairs.open(folder)


class _Writer:
    """Takes the rows of sources into a store; every row becomes a pair, or is counted."""

    def __init__(self, encoder: ConversationEncoder, max_tokens: int, out: IO[bytes]):
        self._encoder, self._max_tokens, self._out = encoder, max_tokens, out
        self._start = 0
        self.refused = Refused()
        self.records: list[np.ndarray] = []
        self.languages: dict[str, int] = {}
        self.about: list[dict[str, Any]] = []

    def add_source(self, source: DataSource, place: Path | None) -> None:
        """Raises: DataError where the source cannot be read."""
        rows, before = 0, len(self.records)
        waiting: list[tuple[int, Sample]] = []
        for row, sample in read_samples(source, place, self.refused):
            rows += 1
            if sample is not None:
                waiting.append((row, sample))
            if len(waiting) == ROWS_AT_ONCE:
                self._add(source.label, waiting)
                waiting = []
            if source.limit is not None and len(self.records) - before >= source.limit:
                break
        self._add(source.label, waiting)
        if source.limit is not None:
            del self.records[before + source.limit :]
        kept = len(self.records) - before
        self.about.append({"name": source.label, "rows": rows, "pairs": kept})

    def _add(self, name: str, rows: Sequence[tuple[int, Sample]]) -> None:
        encoded = encode_pairs(self._encoder, [sample for _, sample in rows])
        for (row, sample), found in zip(rows, encoded, strict=True):
            try:
                record = _record(found, self._max_tokens)
            except DataError as error:
                self.refused.add(error, f"{name}, row {row}")
                continue
            assert not isinstance(found, DataError)
            code = sample.language or UNKNOWN
            record["language"] = self.languages.setdefault(code, len(self.languages))
            record["start"], record["source"], record["row"] = self._start, len(self.about), row
            self.records.append(record)
            for words in found:
                self._out.write(words.tobytes())
                self._start += len(words)


def _record(found: PairWords | DataError, max_tokens: int) -> np.ndarray:
    """The record of a pair, but for its place. Raises: DataError for a pair that is left out."""
    if isinstance(found, DataError):
        raise found
    record = np.zeros((), dtype=PAIR)
    for name, words in zip(("chosen", "rejected"), found, strict=True):
        if len(words) > max_tokens:
            raise DataError(
                f"the {name} conversation has `{len(words)}` tokens, more than `max_tokens`"
            )
        record[name], record[f"{name}_answer"] = len(words), is_learned(words).sum()
    if np.array_equal(*found):
        raise DataError("the chosen and the rejected answer are identical")
    return record
