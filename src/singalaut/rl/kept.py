"""Answers of a step as they come: what a killed run need not ask again.

One JSON line an answer, one file a process. A line has left the process when `add` returns, so
that it survives the end of the process, however it comes; that of the machine may cost the last
lines, which are then asked for again. A step's lines go away after its answers are stored.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from singalaut.contracts import Completion, Usage

FILE = "answers-{:06d}-{}.jsonl"


class Kept:
    """The answers to the prompts of one step, by place of the prompt and number of the answer."""

    def __init__(self, folder: Path, step: int, rank: int = 0):
        """Read what all processes have kept of the step; the first one removes earlier steps'."""
        folder.mkdir(parents=True, exist_ok=True)
        self.found: dict[tuple[int, int], Completion] = {}
        own = folder / FILE.format(step, rank)
        _cut_to_lines(own)
        for file in sorted(folder.glob(FILE.format(step, "*"))):
            for line in file.read_bytes().split(b"\n")[:-1]:
                self._take(json.loads(line))
        if rank == 0:
            for file in folder.glob("answers-*.jsonl"):
                if file.name < FILE.format(step, ""):
                    file.unlink()
        self._file = own.open("a", encoding="utf-8")

    def add(self, place: int, completion: Completion) -> None:
        """Keep an answer to the prompt at a place of the order."""
        row = {
            "place": place,
            "index": completion.index,
            "tokens": _packed("i", completion.token_ids),
            "logprobs": _packed("d", completion.logprobs or ()),
            "text": completion.text,
            "finish": completion.finish_reason,
            "prompt_tokens": completion.usage.prompt_tokens,
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self.found[place, completion.index] = completion

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _take(self, row: dict[str, Any]) -> None:
        tokens = _unpacked("i", row["tokens"])
        self.found[row["place"], row["index"]] = Completion(
            str(row["place"]),
            row["index"],
            tokens,
            row["text"],
            row["finish"],
            Usage(row["prompt_tokens"], len(tokens)),
            _unpacked("d", row["logprobs"]),
        )


def _packed(kind: str, numbers: Sequence[float]) -> str:
    """Numbers as text, five times as fast as digits: others wait for their tokens."""
    return base64.b64encode(array(kind, numbers).tobytes()).decode()


def _unpacked(kind: str, text: str) -> tuple[Any, ...]:
    return tuple(array(kind, base64.b64decode(text)))


def _cut_to_lines(file: Path) -> None:
    """Take off a last line that a kill cut short."""
    if file.exists():
        data = file.read_bytes()
        with file.open("r+b") as handle:
            handle.truncate(data.rfind(b"\n") + 1)
