"""Whether training data hold questions of a pack: whole texts, or long pieces of them.

Texts are compared by their letters and digits alone, in small letters, so that neither spaces nor
punctuation hide a copy. A piece is as many characters as about eight words take in its script. A
text of half a piece or more is found wherever it stands whole, a shorter one where it is a line of
its own. Windows are hashed for a whole text at once: millions of rows can be looked through.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from singalaut.errors import DataError, from_os_error
from singalaut.evals.examples import question_texts
from singalaut.evals.tasks import Task, TaskLanguage

PIECE_CHARACTERS = {"zh": 16, "th": 36, "lo": 36, "km": 36, "my": 36}
PIECE_OTHERWISE = 44
SHORTEST_WHOLE = 12  # characters: shorter lines coincide by chance
EXAMPLES_KEPT = 5
MULTIPLIER = 0x9E3779B97F4A7C15
INVERSE = pow(MULTIPLIER, -1, 1 << 64)
Hashes = NDArray[np.uint64]
Owner = tuple[int, str]  # the cell's place and the question's id
T = TypeVar("T")


@dataclass
class Overlap:
    """Questions of one cell that stand in the data as a whole or in part, and where."""

    name: str
    questions: int
    whole: set[str] = field(default_factory=set)
    pieces: set[str] = field(default_factory=set)
    examples: list[dict[str, Any]] = field(default_factory=list)


class Index:
    """The texts of a pack's questions, to look training texts up in."""

    def __init__(self, cells: Sequence[tuple[Task, TaskLanguage]]):
        self.overlaps: list[Overlap] = []
        self._lines: dict[str, list[Owner]] = {}  # texts too short to look for inside others
        heads: dict[int, dict[int, list[tuple[str, Owner]]]] = {}
        pieces: dict[int, dict[int, list[Owner]]] = {}
        for task, language in cells:
            questions = question_texts(task, language)
            cell = len(self.overlaps)
            self.overlaps.append(Overlap(f"{task.name}.{language.language}", len(questions)))
            for identity, texts in questions:
                for plain in filter(None, map(letters, texts)):
                    length = piece_length(plain)
                    if len(plain) < length // 2:
                        if len(plain) >= SHORTEST_WHOLE:
                            self._lines.setdefault(plain, []).append((cell, identity))
                        continue
                    head = int(window_hashes(plain[: length // 2], length // 2)[0])
                    begun = heads.setdefault(length // 2, {})
                    begun.setdefault(head, []).append((plain, (cell, identity)))
                    if len(plain) >= length:
                        known = pieces.setdefault(length, {})
                        for value in np.unique(window_hashes(plain, length)).tolist():
                            known.setdefault(value, []).append((cell, identity))
        self._heads = {length: _sorted(found) for length, found in heads.items()}
        self._pieces = {length: _sorted(found) for length, found in pieces.items()}

    def look_up(self, text: str, where: str) -> None:
        """Note every question that a training text holds."""
        plain = letters(text)
        lines = {plain, *(letters(line) for line in text.split("\n"))} if "\n" in text else {plain}
        for line in lines:
            for owner in self._lines.get(line, ()):
                self._note(owner, where, text, whole=True)
        for length, (hashes, begun) in self._heads.items():
            for place, value in _hits(plain, length, hashes):
                for whole, owner in begun[value]:
                    if plain.startswith(whole, place):
                        self._note(owner, where, text, whole=True)
        for length, (hashes, known) in self._pieces.items():
            for value in {value for _, value in _hits(plain, length, hashes)}:
                for owner in known[value]:
                    self._note(owner, where, text, whole=False)

    def _note(self, owner: Owner, where: str, text: str, *, whole: bool) -> None:
        cell, identity = owner
        overlap = self.overlaps[cell]
        if not whole and identity in overlap.whole:
            return
        found = overlap.whole if whole else overlap.pieces
        if identity not in found and len(overlap.examples) < EXAMPLES_KEPT:
            overlap.examples.append(
                {"question": identity, "where": where, "whole": whole, "text": text[:200]}
            )
        found.add(identity)


def _sorted(found: Mapping[int, list[T]]) -> tuple[Hashes, Mapping[int, list[T]]]:
    return np.array(sorted(found), np.uint64), found


def _hits(plain: str, length: int, hashes: Hashes) -> list[tuple[int, int]]:
    """Where windows of a text begin whose hashes are among those, and these hashes."""
    if len(plain) < length:
        return []
    found = window_hashes(plain, length)
    nearest = np.minimum(np.searchsorted(hashes, found), len(hashes) - 1)
    (places,) = np.nonzero(hashes[nearest] == found)
    return list(zip(places.tolist(), found[places].tolist(), strict=True))


def check(cells: Sequence[tuple[Task, TaskLanguage]], files: Sequence[Path]) -> dict[str, Any]:
    """Look every text of the files up among the questions of the cells.

    Raises: DataError for a line that is not JSON.
    """
    index = Index(cells)
    rows = 0
    for file in files:
        for number, row in _rows(file):
            rows += 1
            for text in row_texts(row):
                index.look_up(text, f"{file.name}, line {number}")
    return {
        "rows": rows,
        "cells": [
            {
                "cell": overlap.name,
                "questions": overlap.questions,
                "whole": len(overlap.whole),
                "pieces": len(overlap.pieces | overlap.whole),
                "examples": overlap.examples,
            }
            for overlap in index.overlaps
        ],
    }


def row_texts(value: Any) -> Iterator[str]:
    """Every text of a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from row_texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from row_texts(item)


def letters(text: str) -> str:
    """Letters, marks and digits of a text in small letters, after compatibility composition."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isalnum():
        return folded
    return "".join(c for c in folded if c.isalnum() or unicodedata.category(c)[0] == "M")


def piece_length(plain: str) -> int:
    """How many characters are a piece in the script that most of the text is in."""
    middle = ord(plain[len(plain) // 2])
    for code, (first, last) in {
        "zh": (0x3400, 0x9FFF),
        "th": (0x0E00, 0x0E7F),
        "lo": (0x0E80, 0x0EFF),
        "km": (0x1780, 0x17FF),
        "my": (0x1000, 0x109F),
    }.items():
        if first <= middle <= last:
            return PIECE_CHARACTERS[code]
    return PIECE_OTHERWISE


def window_hashes(text: str, length: int) -> Hashes:
    """A hash of every window of `length` characters: a polynomial modulo 2^64, all at once.

    With m the multiplier, the sums s_k = sum of c_i m^-i over i < k give the window that begins at
    k as (s_(k+length) - s_k) m^k.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    codes = (codes + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    downwards, upwards = _powers(len(codes))
    sums = np.concatenate(([np.uint64(0)], np.cumsum(codes * downwards)))
    return (sums[length:] - sums[:-length]) * upwards[: len(codes) - length + 1]


_POWERS: list[tuple[Hashes, Hashes]] = []


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """m^-i and m^i for i < count, kept for the longest text so far."""
    if not _POWERS or len(_POWERS[0][0]) < count:
        size = max(4096, 2 * count)
        made = []
        for base in (INVERSE, MULTIPLIER):
            steps = np.full(size, np.uint64(base), np.uint64)
            steps[0] = 1
            made.append(np.cumprod(steps, dtype=np.uint64))
        _POWERS[:] = [(made[0], made[1])]
    downwards, upwards = _POWERS[0]
    return downwards[:count], upwards[:count]


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"not JSON: {error}", where=f"{file}, line {number}", hint="mend the line"
                    ) from None
    except FileNotFoundError:
        raise DataError("no such file", where=file, hint="check the path") from None
    except OSError as error:
        raise from_os_error(error) from error
