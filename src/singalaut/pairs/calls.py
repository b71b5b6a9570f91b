"""Every answer that a model gave while pairs were made, in one SQLite file, by what was asked.

A call's key is the model's identity, the messages and the sampling parameters with their seed. An
answer is on disk before it is used, so a killed run asks again only what was in flight. Calls that
failed are not kept: the next run asks them again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from singalaut.contracts import Message, Request, Sampler
from singalaut.database import open_database
from singalaut.errors import ArtifactError, from_os_error

KEPT = ("stop", "length")
SCHEMA = "CREATE TABLE IF NOT EXISTS call (key BLOB PRIMARY KEY, text TEXT, finish TEXT) STRICT"


class Answer(NamedTuple):
    """What a model said, or in `error` why it said nothing."""

    text: str
    finish: str
    error: str | None = None


class Calls:
    """The file, opened."""

    def __init__(self, path: Path):
        """Raises: ArtifactError for a file that is no such store."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error) from error
        try:
            self._connection = open_database(path, SCHEMA)
        except sqlite3.Error as error:
            raise ArtifactError(
                f"this is no store of answers: {error}", where=path, hint="move the file away"
            ) from error

    def find(self, key: bytes) -> Answer | None:
        row = self._connection.execute(
            "SELECT text, finish FROM call WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else Answer(*row)

    def keep(self, key: bytes, answer: Answer) -> None:
        """Add an answer; when this returns it survives the end of the process."""
        with self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO call VALUES (?, ?, ?)", (key, answer.text, answer.finish)
            )

    def close(self) -> None:
        self._connection.close()


def call_key(identity: str, request: Request) -> bytes:
    """What decides an answer: who is asked, what, and how; not the request's name."""
    messages = [[m.role, m.content] for m in request.prompt if isinstance(m, Message)]
    parts = [identity, messages, asdict(request.sampling)]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=dict)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Model(NamedTuple):
    """Someone to ask; opened only if there is something that was never asked before."""

    identity: str
    open: Callable[[], Sampler]


def ask(model: Model, requests: Sequence[Request], calls: Calls) -> Iterator[tuple[str, Answer]]:
    """The answer to each request by its id, in any order; known ones are not asked again.

    Requests for the same are asked once. Each has one answer (`sampling.n` is 1).
    """
    waiting: dict[bytes, list[Request]] = {}
    for request in requests:
        waiting.setdefault(call_key(model.identity, request), []).append(request)
    known = {key: answer for key in waiting if (answer := calls.find(key)) is not None}
    for key, answer in known.items():
        for request in waiting.pop(key):
            yield request.id, answer
    if not waiting:
        return
    keys = {same[0].id: key for key, same in waiting.items()}
    for completion in model.open().sample([same[0] for same in waiting.values()]):
        key = keys[completion.request_id]
        answer = Answer(completion.text, completion.finish_reason, completion.error)
        if answer.finish in KEPT:
            calls.keep(key, answer)
        for request in waiting.pop(key):
            yield request.id, answer
    for same in waiting.values():
        for request in same:
            yield request.id, Answer("", "error", "there was no answer")
