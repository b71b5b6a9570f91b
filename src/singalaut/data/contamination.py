"""Training rows that hold text of an evaluation.

Texts are compared by their letters, marks and digits alone, in lower case, so that punctuation,
spacing and layout do not hide a copy. A row is contaminated when it holds most runs of letters of
some evaluation text, or, of a text too short for that, when one of its lines is that text. Texts
and runs that come up again and again in the evaluation are labels and wording of the tasks, not
questions, and do not count. Paraphrases and translations are not seen.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from singalaut.artifact import write_json
from singalaut.data.ngrams import (
    MULTIPLIER,
    inner_windows,
    mix,
    window_counts,
    window_hashes,
)
from singalaut.data.sources import cut, find_files, read_piece
from singalaut.errors import DataError
from singalaut.text.languages import SCRIPT_RANGES

RUN_LETTERS = 20
RUN_HAN = 9  # a Chinese character says as much as two or three letters
HAN_SHARE = 0.3  # of its letters, from which a text is compared by runs of RUN_HAN
SHARED_BY = 20  # evaluation texts; a run in more of them is wording
FEWEST_RUNS = 11  # of a text that is recognised by its runs
FEWEST_LETTERS = 20  # of a text that is recognised as a line; shorter ones are names and numbers
FEWEST_HAN = 8
LINE_LETTERS = RUN_LETTERS + FEWEST_RUNS - 1  # texts of so many letters have enough runs
FILTER_BITS = 27
PLAIN_TEXT = (".txt", ".md")


class Hit(NamedTuple):
    """A document that holds `share` of the runs of an evaluation text."""

    document: int
    text: int
    share: float


class Letters:
    """Reduces texts to numbers, one for each letter, mark or digit; case is ignored."""

    def __init__(self) -> None:
        points = range(0x110000)
        kept = [p for p in points if unicodedata.category(chr(p))[0] in "LMN"]
        lower = [ord(c) if len(c := chr(p).lower()) == 1 else p for p in kept]
        self._hash = np.zeros(len(points), dtype=np.uint64)
        self._hash[kept] = mix(np.array(lower, dtype=np.uint64)) | np.uint64(1)
        self._is_han = np.zeros(len(points), dtype=bool)
        for first, last in SCRIPT_RANGES["Han"]:
            self._is_han[first : last + 1] = True

    def reduce(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The letters of all texts end to end, how many each has, and how many of them are Han."""
        code = np.frombuffer("".join(texts).encode("utf-32-le", "replace"), dtype="<u4")
        numbers = self._hash[code]
        is_kept = numbers != 0
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        kept_before = np.concatenate([[0], np.cumsum(is_kept)])
        han_before = np.concatenate([[0], np.cumsum(self._is_han[code])])
        lengths = np.diff(kept_before[ends], prepend=0)
        return numbers[is_kept], lengths, np.diff(han_before[ends], prepend=0)


class EvaluationTexts:
    """The texts that training rows must not hold, indexed by their runs of letters."""

    def __init__(self, texts: list[str], tables: list[_Table], lines: _Lines):
        self.texts = texts
        self._tables = tables
        self._lines = lines
        self._letters = Letters()

    @classmethod
    def build(cls, texts: Sequence[str]) -> EvaluationTexts:
        """Index the texts; those that come more than SHARED_BY times are left out."""
        texts = [text for text, times in Counter(texts).items() if times <= SHARED_BY]
        values, lengths, han = Letters().reduce(texts)
        is_han = han > HAN_SHARE * lengths
        tables = [
            _build_table(values, lengths, is_han == by_han, size)
            for by_han, size in ((False, RUN_LETTERS), (True, RUN_HAN))
        ]
        is_short = (tables[0].totals == 0) & (tables[1].totals == 0)
        is_short &= lengths >= np.where(is_han, FEWEST_HAN, FEWEST_LETTERS)
        short, hashes = _line_hashes(values, lengths)
        wanted = is_short[short]
        hashes, first = np.unique(hashes[wanted], return_index=True)
        return cls(texts, tables, _Lines(hashes, short[wanted][first]))

    @property
    def num_indexed(self) -> int:
        """How many of the texts are long enough to be recognised."""
        by_runs = sum(int((table.totals > 0).sum()) for table in self._tables)
        return by_runs + len(self._lines.texts)

    def save(self, folder: Path) -> None:
        """Write the index as files that processes can share by mapping them."""
        folder.mkdir(parents=True, exist_ok=True)
        tables: list[_Table | _Lines] = [*self._tables, self._lines]
        for number, table in enumerate(tables):
            for name, array in table._asdict().items():
                np.save(folder / f"{number}.{name}.npy", array)
        write_json(folder / "texts.json", self.texts)

    @classmethod
    def load(cls, folder: Path) -> EvaluationTexts:
        def arrays(number: int, names: Iterable[str]) -> list[np.ndarray]:
            return [np.load(folder / f"{number}.{name}.npy", mmap_mode="r") for name in names]

        tables = [_Table(*arrays(number, _Table._fields)) for number in range(2)]
        texts = json.loads((folder / "texts.json").read_bytes())
        return cls(texts, tables, _Lines(*arrays(2, _Lines._fields)))

    def find(self, documents: Sequence[str], share: float) -> list[Hit]:
        """For each document that holds `share` of a text or more, the text it holds most of."""
        lines = [document.split("\n") for document in documents]
        line_counts = [len(own) for own in lines]
        values, line_letters, _ = self._letters.reduce([line for own in lines for line in own])
        owner = np.repeat(np.arange(len(documents)), line_counts)
        letters = np.bincount(owner, line_letters, minlength=len(documents)).astype(np.int64)
        best: dict[int, Hit] = {}
        hits = [hit for table in self._tables for hit in _find(table, values, letters, share)]
        for hit in [*hits, *_find_lines(self._lines, values, line_letters, owner)]:
            if hit.document not in best or hit.share > best[hit.document].share:
                best[hit.document] = hit
        return [best[document] for document in sorted(best)]


class _Table(NamedTuple):
    """Which evaluation texts hold a run, for runs of one size.

    The texts of `hashes[i]` are `texts[begins[i] : begins[i + 1]]`; `totals` are the runs of each
    text; `maybe` has a bit for the upper bits of a hash, which answers nearly all look-ups.
    """

    size: np.ndarray
    hashes: np.ndarray
    begins: np.ndarray
    texts: np.ndarray
    totals: np.ndarray
    maybe: np.ndarray


class _Lines(NamedTuple):
    """Texts that are too short to be known by their runs: the sorted hashes of the whole texts."""

    hashes: np.ndarray
    texts: np.ndarray


def _line_hashes(values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lines that have a few letters, and a hash of each: Σ_k value_k · M^(k+1) mod 2⁶⁴."""
    few = np.flatnonzero((lengths >= FEWEST_HAN) & (lengths < LINE_LETTERS))
    counts = lengths[few]
    begins = np.cumsum(counts) - counts
    places = np.arange(counts.sum()) - np.repeat(begins, counts)
    starts = (np.cumsum(lengths) - lengths)[few]
    powers = [pow(MULTIPLIER, k + 1, 1 << 64) for k in range(LINE_LETTERS)]
    terms = values[np.repeat(starts, counts) + places] * np.array(powers, dtype=np.uint64)[places]
    hashes = np.add.reduceat(terms, begins) if len(few) else np.empty(0, dtype=np.uint64)
    return few, mix(hashes)


def _find_lines(
    table: _Lines, values: np.ndarray, lengths: np.ndarray, owner: np.ndarray
) -> Iterator[Hit]:
    if not len(table.hashes):
        return
    lines, hashes = _line_hashes(values, lengths)
    place = np.searchsorted(table.hashes, hashes)
    place[place == len(table.hashes)] = 0
    for i in np.flatnonzero(table.hashes[place] == hashes).tolist():
        yield Hit(int(owner[lines[i]]), int(table.texts[place[i]]), 1.0)


def _build_table(
    values: np.ndarray, lengths: np.ndarray, is_wanted: np.ndarray, size: int
) -> _Table:
    texts = np.repeat(np.arange(len(lengths)), window_counts(lengths, size))
    hashes = window_hashes(values, size)[inner_windows(lengths, size)]
    hashes, texts = hashes[is_wanted[texts]], texts[is_wanted[texts]]
    order = np.lexsort((texts, hashes))
    hashes, texts = hashes[order], texts[order]
    is_new = np.ones(len(hashes), dtype=bool)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (texts[1:] != texts[:-1])
    hashes, texts = hashes[is_new], texts[is_new]
    _, held_by = np.unique(hashes, return_counts=True)
    is_telling = np.repeat(held_by <= SHARED_BY, held_by)
    totals = np.bincount(texts[is_telling], minlength=len(lengths))
    is_telling &= totals[texts] >= FEWEST_RUNS
    hashes, counts = np.unique(hashes[is_telling], return_counts=True)
    bits = np.zeros(1 << FILTER_BITS, dtype=bool)
    bits[hashes >> np.uint64(64 - FILTER_BITS)] = True
    return _Table(
        np.array(size),
        hashes,
        np.concatenate([[0], np.cumsum(counts)]),
        texts[is_telling],
        np.where(totals >= FEWEST_RUNS, totals, 0),
        np.packbits(bits, bitorder="little"),
    )


def _find(table: _Table, values: np.ndarray, lengths: np.ndarray, share: float) -> Iterator[Hit]:
    """The documents, end to end in `values`, that hold at least `share` of a text's runs."""
    if not len(table.hashes):
        return
    size = int(table.size)
    hashes = window_hashes(values, size)
    high = hashes >> np.uint64(64 - FILTER_BITS)
    bit = table.maybe[high >> np.uint64(3)] >> (high & np.uint64(7)).astype(np.uint8) & 1
    begin = np.flatnonzero(bit)
    place = np.searchsorted(table.hashes, hashes[begin])
    place[place == len(table.hashes)] = 0
    is_held = table.hashes[place] == hashes[begin]
    begin, place = begin[is_held], place[is_held]
    ends = np.cumsum(lengths)
    document = np.searchsorted(ends, begin, side="right")
    inside = begin + size <= ends[document]
    runs = np.unique(document[inside] * len(table.hashes) + place[inside])
    document, place = np.divmod(runs, len(table.hashes))
    counts = table.begins[place + 1] - table.begins[place]
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    text = table.texts[np.repeat(table.begins[place], counts) + offsets]
    num_texts = len(table.totals)
    pairs, number = np.unique(np.repeat(document, counts) * num_texts + text, return_counts=True)
    document, text = np.divmod(pairs, num_texts)
    shares = number / table.totals[text]
    for i in np.flatnonzero(shares >= share).tolist():
        yield Hit(int(document[i]), int(text[i]), float(shares[i]))


def read_evaluation_texts(folders: Iterable[Path]) -> list[str]:
    """Every text in the data files of the folders, whatever its column, and whole text files.

    Raises: DataError for a folder without any.
    """
    texts: list[str] = []
    for folder in folders:
        before = len(texts)
        plain = (
            [f for f in sorted(folder.rglob("*")) if f.suffix in PLAIN_TEXT]
            if folder.is_dir()
            else []
        )
        texts += [file.read_text("utf-8", "replace") for file in plain]
        for file in find_files(folder):
            for piece in cut(0, file):
                for _, row in read_piece(piece):
                    if isinstance(row, DataError):
                        raise DataError(row.what, where=file, hint="correct the evaluation's file")
                    texts += _strings(row)
        if len(texts) == before:
            raise DataError("the evaluation holds no texts", where=folder)
    return texts


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
