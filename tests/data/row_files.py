"""Rows and files of them, for the tests of data."""

from __future__ import annotations

import json
from pathlib import Path


def conversation(question: str, answer: str, **more: object) -> dict[str, object]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def write_rows(file: Path, rows: list) -> Path:
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return file
