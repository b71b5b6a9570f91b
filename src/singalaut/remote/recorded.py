"""A Sampler over answers that something else has generated, read from a file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from singalaut.artifact import content_hash
from singalaut.contracts import Completion, Delta, FinishReason, Message, Request, Usage
from singalaut.errors import DataError, from_os_error

FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class RecordedSampler:
    """Answers requests by their id or, failing that, by the text of their last message.

    Rows are JSON objects with `response` and either `id` or `prompt`; `finish_reason` may follow.
    An id without its run answers every run. What is not there is answered with an error.
    """

    def __init__(self, file: Path):
        """Raises: DataError for a row that is none."""
        self.file = file
        self._by_id: dict[str, dict[str, Any]] = {}
        self._by_prompt: dict[str, dict[str, Any]] = {}
        self._counts = {"answers": 0.0, "missing": 0.0}
        for number, row in _rows(file):
            if not isinstance(row.get("response"), str) or not {"id", "prompt"} & set(row):
                raise DataError(
                    "a recorded answer needs `response`, and `id` or `prompt`",
                    where=f"{file}, line {number}",
                    hint='as in {"id": "sentiment.id/s1", "response": "Jawaban: Positif"}',
                )
            if "id" in row:
                self._by_id[str(row["id"])] = row
            else:
                self._by_prompt[str(row["prompt"])] = row

    @property
    def identity(self) -> str:
        return f"recorded {content_hash(self.file)}"

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            yield self._completion(request)

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        completion = self._completion(request)
        yield Delta(completion.text, (), completion.finish_reason)

    def weights_changed(self) -> None:
        """There are no weights."""

    def sleep(self) -> None:
        """There is no cache."""

    def wake(self) -> None:
        """There is no cache."""

    def statistics(self) -> dict[str, float]:
        return dict(self._counts)

    def _completion(self, request: Request) -> Completion:
        row = self._by_id.get(request.id) or self._by_id.get(request.id.rpartition("/")[0])
        if row is None and self._by_prompt:
            row = self._by_prompt.get(_last_text(request.prompt))
        if row is None:
            self._counts["missing"] += 1
            reason = "no answer to this question is recorded"
            return Completion(request.id, 0, (), "", "error", Usage(0, 0), error=reason)
        self._counts["answers"] += 1
        finish = FINISH.get(str(row.get("finish_reason", "stop")), "stop")
        return Completion(request.id, 0, (), row["response"], finish, Usage(0, 0))


def _last_text(prompt: Sequence[Message] | Sequence[int]) -> str:
    last = prompt[-1] if prompt else None
    return str(last.content) if isinstance(last, Message) else ""


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise from_os_error(error) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"not JSON: {error}", where=f"{file}, line {number}", hint="mend the line"
            ) from None
        if not isinstance(row, dict):
            raise DataError("not a JSON object", where=f"{file}, line {number}")
        yield number, row
