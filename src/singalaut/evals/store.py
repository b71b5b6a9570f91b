"""Every answer ever generated for an evaluation, in one SQLite file, by what made it.

A generation is keyed by the model's identity, the prompt, the sampling parameters and the seed,
so a killed run loses only what was in flight, a finished one replays without the model, and runs
that ask the same share the answer. Only answers that came to an end are kept: a failed request is
asked again. Scores that a network makes (MetricX) are kept beside them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from singalaut.contracts import Message, SamplingParams
from singalaut.database import open_database
from singalaut.errors import ArtifactError, MachineError, from_os_error

FORMAT = 1
LOOKUP = 500  # keys in one query
ROWS_WRITTEN = 400  # in one statement
KEPT: tuple[str, ...] = ("stop", "length")
DEFAULTS = asdict(SamplingParams())
SCHEMA = """
CREATE TABLE IF NOT EXISTS generation (
  key BLOB PRIMARY KEY, text TEXT NOT NULL, finish TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, value REAL);
CREATE TABLE IF NOT EXISTS score (key BLOB PRIMARY KEY, value REAL NOT NULL);
"""


class Generation(NamedTuple):
    """One answer; `value` is a log-probability where that was asked for and not a text."""

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    value: float | None = None


class Store:
    """The file, opened; safe to use from one thread at a time, and by several processes."""

    def __init__(self, path: Path):
        """Raises: ArtifactError for a file that is not such a store."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error) from error
        self.path = path
        try:
            self._connection = open_database(path, check_same_thread=False)
            self._connection.execute("PRAGMA cache_size = -65536")
            found = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise ArtifactError(
                    f"the store of answers has format {found}, this version uses {FORMAT}",
                    where=path,
                    hint="move the file away, or use the version that wrote it",
                )
            self._connection.executescript(SCHEMA)
            self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.Error as error:
            raise _refusal(error, path) from error

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Generation]:
        """The answers that are there, by key."""
        found: dict[bytes, Generation] = {}
        for row in self._rows(
            "key, text, finish, prompt_tokens, completion_tokens, value", "generation", keys
        ):
            found[row[0]] = Generation(*row[1:])
        return found

    def keep(self, rows: Iterable[tuple[bytes, Generation]]) -> None:
        """Add answers; when this returns they survive the end of the process."""
        self._write("generation", [(key, *generation) for key, generation in rows])

    def find_scores(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        return dict(self._rows("key, value", "score", keys))

    def keep_scores(self, scores: Mapping[bytes, float]) -> None:
        self._write("score", list(scores.items()))

    def close(self) -> None:
        self._connection.close()

    def _rows(self, columns: str, table: str, keys: Sequence[bytes]) -> list[Any]:
        rows: list[Any] = []
        try:
            if self._connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None:
                return []
            if len(keys) > 20 * LOOKUP:  # one pass over the file is cheaper than many look-ups
                self._connection.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (key PRIMARY KEY)")
                self._connection.execute("DELETE FROM wanted")
                self._connection.executemany(
                    "INSERT OR IGNORE INTO wanted VALUES (?)", ((key,) for key in keys)
                )
                joined = f"SELECT {columns} FROM wanted JOIN {table} USING (key)"
                rows = self._connection.execute(joined).fetchall()
                self._connection.commit()
                return rows
            for start in range(0, len(keys), LOOKUP):
                part = keys[start : start + LOOKUP]
                marks = ",".join("?" * len(part))
                query = f"SELECT {columns} FROM {table} WHERE key IN ({marks})"
                rows += self._connection.execute(query, part).fetchall()
        except sqlite3.Error as error:
            raise _refusal(error, self.path) from error
        return rows

    def _write(self, table: str, values: Sequence[tuple[Any, ...]]) -> None:
        """Write rows, many in one statement: between statements Python takes its lock back."""
        try:
            with self._connection:
                for start in range(0, len(values), ROWS_WRITTEN):
                    part = values[start : start + ROWS_WRITTEN]
                    row = f"({','.join('?' * len(part[0]))})"
                    marks = ",".join([row] * len(part))
                    flat = [value for row_values in part for value in row_values]
                    statement = f"INSERT OR REPLACE INTO {table} VALUES {marks}"
                    self._connection.execute(statement, flat)
        except sqlite3.Error as error:
            raise _refusal(error, self.path) from error


class Keys:
    """Keys of one model's answers under one set of sampling parameters, their seed aside."""

    def __init__(self, identity: str, sampling: SamplingParams):
        """Raises: ValueError for parameters that cannot be written down."""
        given = {k: v for k, v in asdict(sampling).items() if v != DEFAULTS[k] and k != "seed"}
        text = json.dumps([identity, given], sort_keys=True, default=dict)
        self._prefix = hashlib.blake2b(text.encode(), digest_size=32)

    def key(self, prompt: bytes, seed: int | None) -> bytes:
        """The key of the answer to a prompt, given by its digest."""
        digest = self._prefix.copy()
        digest.update(b"%b\0%d" % (prompt, -1 if seed is None else seed))
        return digest.digest()[:20]


def prompt_digest(prompt: Sequence[Message] | Sequence[int]) -> bytes:
    """A digest of a conversation or of token ids."""
    digest = hashlib.blake2b(digest_size=20)
    for part in prompt:
        if isinstance(part, int):
            digest.update(b"%d," % part)
        else:
            content = part.content if isinstance(part.content, str) else json.dumps(part.content)
            text = f"{part.role}\0{len(content)}\0{content}"
            digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.digest()


def score_key(*parts: str) -> bytes:
    """The key of a score: what made it, and of which texts."""
    joined = "\0".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=20).digest()


def _refusal(error: sqlite3.Error, path: Path) -> ArtifactError | MachineError:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return ArtifactError(
            f"the store of answers is damaged: {text}",
            where=path,
            hint="move the file away; its answers will be generated again",
        )
    hint = "free some space" if "full" in text else "check the disk, and who else uses the file"
    return MachineError(f"the store of answers cannot be used: {text}", where=path, hint=hint)
