"""Closing a store: from the folders of its pieces to what `store.py` reads.

Here is done what needs all rows: duplicates are found, and documents get their final records.
Token files are moved, not copied, unless documents in them are left out. A stop in the middle
loses nothing: what was decided is written down before anything is moved. What is told about all
this is `report.py`'s business.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from singalaut.artifact import write_json
from singalaut.data.near import PLACES, find_twins, shingles
from singalaut.data.pieces import DOCUMENT as PIECE_DOCUMENT
from singalaut.data.pieces import Summary
from singalaut.data.store import (
    DOCUMENT,
    DROPPED,
    FORMAT,
    PICTURE,
    picture_file,
    token_file,
)
from singalaut.text.conversations import token_ids

log = logging.getLogger("singalaut")
DUPLICATE = "the same as an earlier row"
NEAR_DUPLICATE = "nearly the same as an earlier row"
MOST_ORIGINS = 50  # of a source that are listed by name
TWIN = np.dtype([("dropped", "<u8"), ("kept", "<u8"), ("similarity", "<f4"), ("is_exact", "?")])


@dataclass(frozen=True)
class Gathered:
    """The documents of all pieces, end to end, before duplicates go.

    Those of `summaries[i]` are `documents[bounds[i] : bounds[i + 1]]`. `start` is where a
    document's tokens begin in its piece's file; `row` counts from 1 in its source, `file_row` in
    its file.
    """

    summaries: Sequence[Summary]
    documents: np.ndarray
    bounds: np.ndarray
    start: np.ndarray
    row: np.ndarray
    file_row: np.ndarray

    def pieces(self) -> Iterator[tuple[Summary, slice]]:
        """Each piece that could be read, and its documents."""
        for place, summary in enumerate(self.summaries):
            if not summary.lost:
                yield summary, slice(int(self.bounds[place]), int(self.bounds[place + 1]))

    def summary_of(self, documents: np.ndarray) -> list[Summary]:
        """The piece of each document."""
        places = np.searchsorted(self.bounds, documents, side="right") - 1
        return [self.summaries[place] for place in places.tolist()]


def gather(folder: Path, summaries: Sequence[Summary]) -> Gathered:
    """Read what all pieces below `folder` hold; those that were lost hold nothing."""
    empty = np.empty(0, PIECE_DOCUMENT)
    loaded = [
        empty if summary.lost else np.load(_piece(folder, summary) / "documents.npy")
        for summary in summaries
    ]
    documents = np.concatenate([empty, *loaded])
    counts = [len(part) for part in loaded]
    bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    start = np.concatenate([np.empty(0, np.int64), *(_starts(part["tokens"]) for part in loaded)])
    before_in_source, before_in_file = [], []
    by_source, by_file = Counter[int](), Counter[tuple[int, str]]()
    for summary in summaries:
        before_in_source.append(by_source[summary.source])
        before_in_file.append(by_file[summary.source, summary.file])
        by_source[summary.source] += summary.rows
        by_file[summary.source, summary.file] += summary.rows
    row = documents["row"] + np.repeat(np.array(before_in_source, dtype=np.uint64), counts)
    file_row = documents["row"] + np.repeat(np.array(before_in_file, dtype=np.uint64), counts)
    return Gathered(summaries, documents, bounds, start, row, file_row)


def decide(folder: Path, gathered: Gathered, *, duplicates: bool, near: float | None) -> np.ndarray:
    """The documents that are left out because of an earlier one, as TWIN records.

    Decided once: what a stopped run has decided is read back.
    """
    file = folder / "twins.npy"
    if file.exists():
        return np.load(file)
    alive = np.ones(len(gathered.documents), dtype=bool)
    twins = [np.empty(0, TWIN)]
    if duplicates or near is not None:
        twins.append(_same(gathered.documents["hash"]))
        alive[twins[-1]["dropped"]] = False
    if near is not None:
        log.info("looking for near-duplicates among %s rows", f"{int(alive.sum()):,}")
        signature = _joined_signatures(folder, gathered)
        reader = Tokens(folder, gathered)
        found = find_twins(signature, near, lambda i: shingles(reader.tokens(i)), alive)
        twins.append(np.array([(*twin, False) for twin in found], dtype=TWIN))
        del signature
        (folder / "signatures.npy").unlink()
    decided = np.concatenate(twins)
    temporary = folder / ".twins.npy"
    np.save(temporary, decided)
    temporary.rename(file)
    return decided


def close(
    folder: Path, out: Path, gathered: Gathered, twins: np.ndarray, about: dict[str, Any]
) -> None:
    """Write the store to `out`; `about` is what its `store.json` says beside the counts."""
    out.mkdir(parents=True, exist_ok=True)
    alive = np.ones(len(gathered.documents), dtype=bool)
    alive[twins["dropped"]] = False
    for summary, own in gathered.pieces():
        _move_tokens(folder, out, summary, gathered.documents["tokens"][own], alive[own])
        pictures = _piece(folder, summary) / "pictures.bin"
        if pictures.exists():
            pictures.rename(out / picture_file(summary.number))
    records, languages = _records(gathered, alive)
    _save(out / "documents.npy", records)
    _save(out / "pictures.npy", _picture_table(folder, gathered, alive))
    dropped, reasons = _dropped(folder, gathered, twins)
    _save(out / "dropped.npy", dropped)
    numbers = np.unique(records["piece"]).tolist()
    counts = {
        "format": FORMAT,
        "documents": len(records),
        "tokens": int(records["tokens"].sum(dtype=np.int64)),
        "learned": int(records["learned"].sum(dtype=np.int64)),
        "longest": int(records["tokens"].max(initial=0)),
        "languages": languages,
        "reasons": reasons,
        "provenance": provenance(gathered, alive, [s["name"] for s in about["sources"]]),
        "token_bytes": {str(n): (out / token_file(n)).stat().st_size for n in numbers},
    }
    for number, source in enumerate(about["sources"]):
        own = records[records["source"] == number]
        source["documents"] = len(own)
        source["tokens"] = int(own["tokens"].sum(dtype=np.int64))
    write_json(out / "store.json", counts | about)


def provenance(gathered: Gathered, alive: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """How many rows come from where: source, language and licence as the rows say.

    A source whose rows name too many origins, a column of addresses say, is listed by its own name.
    """
    rows = Counter[tuple[int, str, str, str]]()
    for summary, own in gathered.pieces():
        kept = gathered.documents["origin"][own][alive[own]]
        for origin, count in zip(
            summary.origins, np.bincount(kept, minlength=len(summary.origins)).tolist(), strict=True
        ):
            rows[summary.source, *origin] += count
    origins = Counter(number for number, _ in {(number, origin) for number, origin, *_ in rows})
    listed = Counter[tuple[str, str, str]]()
    for (number, place, language, licence), count in rows.items():
        name = names[number] if origins[number] > MOST_ORIGINS else place
        listed[name, language, licence] += count
    return [
        {"source": source, "language": language, "licence": licence, "rows": count}
        for (source, language, licence), count in sorted(listed.items())
        if count
    ]


class Tokens:
    """Reads the tokens of gathered documents."""

    def __init__(self, folder: Path, gathered: Gathered):
        self._folder, self._gathered = folder, gathered
        self._maps: dict[int, np.ndarray] = {}

    def tokens(self, document: int) -> np.ndarray:
        (summary,) = self._gathered.summary_of(np.array([document]))
        if summary.number not in self._maps:
            file = _piece(self._folder, summary) / "tokens.bin"
            self._maps[summary.number] = np.memmap(file, dtype="<u4", mode="r")
        start = int(self._gathered.start[document])
        stop = start + int(self._gathered.documents["tokens"][document])
        return token_ids(self._maps[summary.number][start:stop])


def _piece(folder: Path, summary: Summary) -> Path:
    return folder / f"{summary.number:06d}"


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths, dtype=np.int64) - lengths


def _same(hashes: np.ndarray) -> np.ndarray:
    """The documents whose hash an earlier one has."""
    order = np.argsort(hashes, kind="stable")
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = hashes[order][1:] != hashes[order][:-1]
    twins = np.zeros(int((~is_new).sum()), dtype=TWIN)
    twins["dropped"] = order[~is_new]
    if len(twins):
        twins["kept"] = order[is_new][np.cumsum(is_new) - 1][~is_new]
    twins["similarity"], twins["is_exact"] = 1, True
    return np.sort(twins, order="dropped")


def _joined_signatures(folder: Path, gathered: Gathered) -> np.ndarray:
    """The signatures of all documents in one file, mapped."""
    shape = (len(gathered.documents), PLACES)
    file = folder / "signatures.npy"
    joined = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint16, shape=shape)
    for summary, own in gathered.pieces():
        if own.start < own.stop:
            joined[own] = np.load(_piece(folder, summary) / "signatures.npy", mmap_mode="r")
    return joined


def _move_tokens(
    folder: Path, out: Path, summary: Summary, lengths: np.ndarray, alive: np.ndarray
) -> None:
    """Bring a piece's tokens to the store, without those of documents that are left out."""
    source, target = _piece(folder, summary) / "tokens.bin", out / token_file(summary.number)
    if target.exists() or not alive.any():
        return
    if alive.all():
        source.rename(target)
        return
    words = np.memmap(source, dtype="<u4", mode="r")
    temporary = out / f".{target.name}"
    with temporary.open("wb") as file:
        file.write(words[np.repeat(alive, lengths)].tobytes())
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)


def _records(gathered: Gathered, alive: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The final records of the documents that stay, and the languages they refer to."""
    summaries = gathered.summaries
    languages = sorted({language for s in summaries for _, language, _ in s.origins})
    number = {language: i for i, language in enumerate(languages)}
    documents = gathered.documents[alive]
    records = np.zeros(len(documents), dtype=DOCUMENT)
    records["tokens"], records["learned"] = documents["tokens"], documents["learned"]
    records["pictures"] = documents["pictures"]
    records["picture"] = _starts(documents["pictures"])
    records["row"] = gathered.row[alive]
    first = 0
    for summary, own in gathered.pieces():
        here = slice(first, first := first + int(alive[own].sum()))
        records["piece"][here] = summary.number
        records["source"][here] = summary.source
        records["start"][here] = _starts(documents["tokens"][here])
        codes = np.array([number[language] for _, language, _ in summary.origins], dtype=np.uint16)
        records["language"][here] = codes[documents["origin"][here]]
    return records, languages


def _picture_table(folder: Path, gathered: Gathered, alive: np.ndarray) -> np.ndarray:
    tables = [np.empty(0, PICTURE)]
    for summary, own in gathered.pieces():
        sizes_file = _piece(folder, summary) / "pictures.npy"
        if not sizes_file.exists():
            continue
        sizes = np.load(sizes_file)
        kept = np.repeat(alive[own], gathered.documents["pictures"][own])
        table = np.zeros(len(sizes), dtype=PICTURE)
        table["piece"], table["bytes"], table["start"] = summary.number, sizes, _starts(sizes)
        tables.append(table[kept])
    return np.concatenate(tables)


def _dropped(folder: Path, gathered: Gathered, twins: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Every row that is left out, and what the numbers of the reasons mean."""
    reasons: dict[str, int] = {}
    tables = [np.empty(0, DROPPED)]
    rows_before = Counter[int]()
    for summary in gathered.summaries:
        if not summary.lost:
            own = np.load(_piece(folder, summary) / "dropped.npy")
            numbers = [reasons.setdefault(r["what"], len(reasons)) for r in summary.reasons]
            table = np.zeros(len(own), dtype=DROPPED)
            table["source"] = summary.source
            table["row"] = own["row"] + rows_before[summary.source]
            table["reason"] = np.array([*numbers, 0], dtype=np.uint16)[own["reason"]]
            tables.append(table)
        rows_before[summary.source] += summary.rows
    for what, is_exact in ((DUPLICATE, True), (NEAR_DUPLICATE, False)):
        own = twins["dropped"][twins["is_exact"] == is_exact]
        table = np.zeros(len(own), dtype=DROPPED)
        table["source"] = [summary.source for summary in gathered.summary_of(own)]
        table["row"] = gathered.row[own]
        if len(own):
            table["reason"] = reasons.setdefault(what, len(reasons))
        tables.append(table)
    return np.concatenate(tables), list(reasons)


def _save(file: Path, array: np.ndarray) -> None:
    temporary = file.with_name(f".{file.name}")
    np.save(temporary, array)
    temporary.rename(file)
