"""Answers of the model while it trains: fixed questions, asked greedily every so many steps."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic
from singalaut.contracts import ROLES, Message, Request, Sampler, SamplingParams
from singalaut.errors import DataError
from singalaut.watch.config import WatchConfig

log = logging.getLogger("singalaut")
FILE = "samples.jsonl"
MOST = 64  # questions; more are an evaluation's business


def read_questions(config: WatchConfig, file: Path | None) -> list[list[Message]]:
    """The questions of the settings and of their file, as conversations.

    Raises: DataError for a line that is no question, or where there are too many.
    """
    found = [[Message("user", question)] for question in config.samples]
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the questions cannot be read: {error}", where=file) from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                found.append(_question(line, file, number))
    if len(found) > MOST:
        raise DataError(
            f"{len(found)} questions to be answered while training, {MOST} at most",
            where="watch.samples",
            hint="take fewer, or an `evaluate` stage",
        )
    return found


def _question(line: str, file: Path, number: int) -> list[Message]:
    where = f"{file.name}, line {number}"
    if not line.lstrip().startswith("{"):
        return [Message("user", line.strip())]
    try:
        row = json.loads(line)
        turns = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        messages = [Message(turn["role"], turn["content"]) for turn in turns]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"this is no question: {type(error).__name__}: {error}",
            where=where,
            hint="write `messages` or `prompt`, or a line of plain text",
        ) from error
    if any(m.role not in ROLES or not isinstance(m.content, str) for m in messages):
        raise DataError("a question has roles and contents that are texts", where=where)
    while messages and messages[-1].role == "assistant":
        messages.pop()  # rows of training data may be used as they are
    if not messages:
        raise DataError("a question has no turn of the user", where=where)
    return messages


def take_samples(
    sampler: Sampler, questions: Sequence[Sequence[Message]], step: int, max_tokens: int
) -> list[dict[str, Any]]:
    """The greedy answers to all questions, as rows; one that fails has an `error`."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    requests = [Request(question, params, id=str(n)) for n, question in enumerate(questions)]
    rows: dict[int, dict[str, Any]] = {}
    for completion in sampler.sample(requests):
        number = int(completion.request_id)
        rows[number] = {
            "step": step,
            "question": "\n\n".join(str(message.content) for message in questions[number]),
            "text": completion.text,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            **({} if completion.error is None else {"error": completion.error}),
        }
    return [rows[number] for number in sorted(rows)]


class Samples:
    """The answers of a stage, in `samples.jsonl`; those of a step are written once."""

    def __init__(
        self,
        folder: Path,
        questions: Sequence[Sequence[Message]],
        max_tokens: int,
        open_sampler: Callable[[], AbstractContextManager[Sampler | None]],
    ) -> None:
        """`open_sampler` gives None in processes that only help."""
        self.questions, self.max_tokens = questions, max_tokens
        self._file, self._open_sampler = folder / FILE, open_sampler

    def take(self, step: int) -> None:
        """Ask with the weights as they are before `step`; what was asked then is asked anew."""
        begin = time.monotonic()
        with self._open_sampler() as sampler:
            if sampler is None:
                return
            rows = take_samples(sampler, self.questions, step, self.max_tokens)
        kept = [line for line in self._lines() if json.loads(line)["step"] < step]
        kept += [json.dumps(row, ensure_ascii=False) for row in rows]
        write_atomic(self._file, "".join(f"{line}\n" for line in kept).encode("utf-8", "replace"))
        failed = [row["error"] for row in rows if "error" in row]
        seconds = time.monotonic() - begin
        log.info("step %d: %d questions answered in %.1f s", step, len(rows), seconds)
        if failed:
            log.warning("%d questions could not be answered: %s", len(failed), failed[0])

    def _lines(self) -> list[str]:
        return self._file.read_text("utf-8").splitlines() if self._file.exists() else []
