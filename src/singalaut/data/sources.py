"""Files of conversations to samples, with every refusal naming file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from singalaut.contracts import ROLES, Message, Sample
from singalaut.data.pictures import with_files
from singalaut.errors import DataError, from_os_error


def read_samples(path: Path, language: str | None = None) -> list[Sample]:
    """The rows of a JSONL file of conversations in the OpenAI `messages` format.

    `language` is for rows that do not say theirs. Raises DataError at the first row that is not
    JSON, has no messages, or has no assistant turn.
    """
    samples = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    samples.append(_sample(line, path, number, language))
    except OSError as error:
        raise from_os_error(error) from error
    if not samples:
        raise DataError(
            "the file has no rows", where=path, hint="give a JSONL file of conversations"
        )
    return samples


def _sample(line: bytes, path: Path, number: int, language: str | None) -> Sample:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:  # bad JSON or bad UTF-8
        fact = (
            f"{error.msg} at character {error.pos + 1}"
            if isinstance(error, json.JSONDecodeError)
            else str(error)
        )
        raise DataError(
            f"not valid JSON: {fact}", where=where, hint="each line must be one JSON object"
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(
            f"no list `messages` (found: {found or 'nothing'})",
            where=where,
            hint='write {"messages": [{"role": "user", "content": "…"}, …]}',
        )
    messages = [_message(turn, path.parent, where) for turn in row["messages"]]
    if not any(message.role == "assistant" for message in messages):
        raise DataError(
            "the conversation has no assistant turn, so there is nothing to learn from it",
            where=where,
            hint="add the answer or remove the row",
        )
    if row.get("tools"):
        raise DataError(
            "the row offers `tools`, which the chat format does not put into the prompt yet",
            where=where,
            hint="remove the tools or the row",
        )
    known = {"messages", "tools", "id", "language", "source", "licence", "license"}
    return Sample(
        messages=messages,
        id=str(row.get("id", f"{path.stem}:{number}")),
        language=_text(row, "language", where) or language,
        source=_text(row, "source", where) or path.stem,
        licence=_text(row, "licence", where) or _text(row, "license", where),
        meta={key: value for key, value in row.items() if key not in known},
    )


def _text(row: dict[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"`{key}` is {json.dumps(value)[:60]}, a text is needed", where=where)
    return value


def _message(turn: Any, folder: Path, where: str) -> Message:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        found = turn.get("role") if isinstance(turn, dict) else turn
        raise DataError(
            f"a message has the role {found!r}; needed one of {', '.join(ROLES)}", where=where
        )
    content = turn.get("content")
    if content is None and turn.get("tool_calls"):
        content = ""
    if not isinstance(content, str | list):
        raise DataError(f"the {turn['role']} message has no text in `content`", where=where)
    if isinstance(content, list):
        content = with_files(content, folder, where)
    return Message(
        turn["role"], content, turn.get("tool_calls"), turn.get("tool_call_id"), turn.get("name")
    )
