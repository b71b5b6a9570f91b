"""What becomes of one piece of a source: a folder of tokens, documents and what was left out.

It is written aside and renamed when the piece is done, so that it is there whole or not at all; a
run that goes on, or another machine, sees from the folders what is left to do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from singalaut.artifact import write_json

DOCUMENT = np.dtype(
    [
        ("tokens", "<u4"),
        ("learned", "<u4"),
        ("origin", "<u2"),  # its place in the summary's `origins`
        ("pictures", "<u4"),
        ("row", "<u8"),  # from 1, in the piece
        ("hash", "<u8"),  # of the tokens and pictures
    ]
)
DROPPED = np.dtype([("row", "<u8"), ("reason", "<u2")])  # its place in the summary's `reasons`
EXAMPLES = 3  # of each reason, in a piece
EXCERPT_CHARACTERS = 240
MOST_ORIGINS = 1000  # pairs of origin and licence that a piece lists by name
MOST_ALIKE = 3  # reasons that differ in a value only; further ones are counted without the value
OTHER = "other"


def blurred(what: str) -> str:
    """A reason without the values that it names in backquotes."""
    return re.sub(r"`[^`]*`", "…", what)


class Reason(NamedTuple):
    """Why a row is left out; `is_fault` if it could not be used, not merely was not wanted."""

    what: str
    is_fault: bool


@dataclass
class Summary:
    """What a piece came to; `lost` says why it could not be read.

    `cut` counts shortened rows, `joined` those with turns of one role one after the other.
    """

    number: int
    source: int
    file: str
    size_bytes: int
    rows: int = 0
    tokens: int = 0
    learned: int = 0
    cut: int = 0
    joined: int = 0
    lost: str | None = None
    kept: int = 0
    reasons: list[dict[str, Any]] = field(default_factory=list)
    """`what`, `is_fault`, `rows` and `examples` of each reason."""
    origins: list[tuple[str, str, str]] = field(default_factory=list)
    """Where rows say they come from: source, language, licence."""
    checks: dict[str, list[Any]] = field(default_factory=dict)
    """What the checks found, for the plots: declared and found language, and how many."""

    @property
    def faults(self) -> int:
        return sum(reason["rows"] for reason in self.reasons if reason["is_fault"])


class PieceWriter:
    """Collects the documents of one piece; on leaving the block without an error they are kept."""

    def __init__(self, folder: Path, summary: Summary):
        self.summary = summary
        self._final = folder / f"{summary.number:06d}"
        self._work = folder / f".{summary.number:06d}.{os.uname().nodename}.{os.getpid()}"
        self._documents: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []
        self._picture_sizes: list[int] = []
        self._dropped: list[tuple[int, int]] = []
        self._reasons: dict[Reason, int] = {}
        self._origins: dict[tuple[str, str, str], int] = {}
        self._found: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> PieceWriter:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()  # not the folder above, which is gone once the store is closed
        self._tokens = (self._work / "tokens.bin").open("wb")
        self._pictures = (self._work / "pictures.bin").open("wb")
        return self

    def origin(self, source: str, language: str, licence: str) -> int:
        """The number, in this piece, of where a row says it comes from."""
        key = (source, language, licence)
        if key not in self._origins and len(self._origins) >= MOST_ORIGINS:
            key = (OTHER, language, OTHER)  # a column of addresses, say, that names every row
        return self._origins.setdefault(key, len(self._origins))

    def add(self, tokens: bytes, documents: np.ndarray, signatures: np.ndarray | None) -> None:
        """Documents with their tokens end to end."""
        self._tokens.write(tokens)
        self._documents.append(documents)
        if signatures is not None:
            self._signatures.append(signatures)

    def add_pictures(self, pictures: Sequence[bytes]) -> None:
        """The pictures of the documents added, in order."""
        for picture in pictures:
            self._pictures.write(picture)
            self._picture_sizes.append(len(picture))

    def found_language(self, declared: str, found: str) -> None:
        self._found[declared, found] += 1

    def drop(self, row: int, reason: Reason, detail: str, excerpt: Callable[[], str]) -> None:
        """A row that is left out; the first few of each reason are kept as examples."""
        number = self._reasons.setdefault(reason, len(self._reasons))
        self._dropped.append((row, number))
        if number == len(self.summary.reasons):
            self.summary.reasons.append({**reason._asdict(), "rows": 0, "examples": []})
        about = self.summary.reasons[number]
        about["rows"] += 1
        if len(about["examples"]) < EXAMPLES:
            about["examples"].append({"row": row, "detail": detail, "excerpt": excerpt()})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._tokens.close()
        self._pictures.close()
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _finish(self) -> None:
        documents = np.concatenate([np.empty(0, DOCUMENT), *self._documents])
        np.save(self._work / "documents.npy", documents)
        if self._signatures:
            np.save(self._work / "signatures.npy", np.concatenate(self._signatures))
        if self._picture_sizes:
            np.save(self._work / "pictures.npy", np.array(self._picture_sizes, dtype="<u8"))
        else:
            (self._work / "pictures.bin").unlink()
        np.save(self._work / "dropped.npy", np.array(self._dropped, dtype=DROPPED))
        summary = self.summary
        summary.tokens = int(documents["tokens"].sum(dtype=np.int64))
        summary.learned = int(documents["learned"].sum(dtype=np.int64))
        summary.kept = len(documents)
        summary.origins = list(self._origins)
        summary.checks = {"language": [[*key, rows] for key, rows in sorted(self._found.items())]}
        write_json(self._work / "piece.json", asdict(summary))
        try:
            self._work.rename(self._final)
        except OSError:
            if read_summary(self._final.parent, summary.number) is not None:
                return  # another machine was faster, with the same result
            shutil.rmtree(self._final, ignore_errors=True)
            self._work.rename(self._final)


def read_summary(folder: Path, number: int) -> Summary | None:
    """The summary of a finished piece, or None, also where a crash of the machine cut it short."""
    place = folder / f"{number:06d}"
    try:
        summary = summary_from(json.loads((place / "piece.json").read_bytes()))
        whole = (place / "tokens.bin").stat().st_size == summary.tokens * 4
    except (OSError, ValueError):
        return None
    return summary if whole else None


def summary_from(values: dict[str, Any]) -> Summary:
    """A summary that was written down as JSON."""
    return Summary(**{**values, "origins": [tuple(origin) for origin in values["origins"]]})
