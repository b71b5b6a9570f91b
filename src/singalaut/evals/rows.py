"""Rows of evaluation data from JSON lines, plain or compressed, with what is wrong counted.

A row that cannot be used is left out and counted by what is wrong with it, so that a result can
say how many rows it lacks and why. What a row means is left to its task.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from singalaut.errors import DataError, from_os_error

ProblemKind = Literal[
    "not_json", "missing_field", "missing_label", "unknown_label", "duplicate_id", "bad_constraint"
]
LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB]")
EXAMPLES_KEPT = 5  # of each kind of problem


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one row; `lost` says whether the row was left out for it."""

    kind: ProblemKind
    where: str
    what: str
    lost: bool = True


@dataclass
class Problems:
    """Counts by kind, and the first few of each kind in words."""

    counts: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    first: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        self.counts[problem.kind] += 1
        self.lost += problem.lost
        if self.counts[problem.kind] <= EXAMPLES_KEPT:
            self.first.append(problem)


def read_rows(file: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its line, counted from 1; blank lines are skipped."""
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if LONE_SURROGATE.search(line):
                json.dumps(row, ensure_ascii=False).encode()
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, an object is needed")
        except (ValueError, RecursionError) as error:
            where = f"{file.name}, line {number}"
            problems.add(Problem("not_json", where, f"not a JSON object in UTF-8: {error}"))
            continue
        yield number, row


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name` below `folder`, or its gzipped form."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def _lines(file: Path) -> list[bytes]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise from_os_error(error) from error
    if file.suffix != ".gz":
        return data.split(b"\n")
    try:
        return gzip.decompress(data).split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        hint = "fetch it again, or give the plain file"
        raise DataError(f"not a gzip file: {error}", where=file, hint=hint) from None
