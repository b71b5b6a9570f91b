"""Answers of one step of reinforcement learning: kept as Parquet, before anything learns from them.

Shapes: P prompts, G answers to each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from singalaut.contracts import Score

FILE = "step-{:06d}.parquet"


@dataclass(frozen=True)
class Rollout:
    """One answer: where it came from, its tokens, and what it was worth."""

    prompt_id: str
    place: int  # of the prompt, among all that were ever drawn
    language: str
    source: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    score: Score
    advantage: float = 0.0
    question: str = ""

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def reward(self) -> float:
        """NaN where the answer could not be scored."""
        return np.nan if self.score.value is None else self.score.value


@dataclass(frozen=True)
class Rollouts:
    """The answers of a step, group by group."""

    answers: tuple[Rollout, ...]
    groups: int
    flat_groups: int  # that were drawn, but whose answers did not differ
    next_place: int  # of the first prompt that the following step may draw
    seconds: dict[str, float]
    failures: dict[str, int] = field(default_factory=dict)
    """Prompts that got no answers, by what was the matter."""

    @property
    def rewards(self) -> np.ndarray:
        """[P, G], NaN where not scored."""
        return np.array([answer.reward for answer in self.answers]).reshape(self.groups, -1)

    @property
    def is_flat(self) -> bool:
        """Whether the answers are those of prompts that teach nothing, as no others were found."""
        return not any(is_lively(row) for row in self.rewards)

    def with_advantages(self, advantages: Sequence[float]) -> Rollouts:
        pairs = zip(self.answers, advantages, strict=True)
        return replace(self, answers=tuple(replace(a, advantage=float(w)) for a, w in pairs))


def is_lively(rewards: np.ndarray) -> bool:
    """Whether scored answers differ in reward, so that something can be learned."""
    scored = rewards[np.isfinite(rewards)]
    return len(scored) > 1 and bool(scored.max() - scored.min() >= 1e-6)


def as_row(answer: Rollout) -> dict[str, Any]:
    """An answer as plain values."""
    return {
        "prompt_id": answer.prompt_id,
        "place": answer.place,
        "language": answer.language,
        "source": answer.source,
        "prompt": list(answer.prompt),
        "tokens": list(answer.tokens),
        "logprobs": list(answer.logprobs),
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "reward": answer.score.value,
        "parts": json.dumps(answer.score.parts),
        "reasons": list(answer.score.reasons),
        "advantage": answer.advantage,
        "question": answer.question,
    }


def from_row(row: Mapping[str, Any]) -> Rollout:
    """The answer that `as_row` has made plain."""
    return Rollout(
        row["prompt_id"],
        row["place"],
        row["language"],
        row["source"],
        tuple(row["prompt"]),
        tuple(row["tokens"]),
        tuple(row["logprobs"]),
        row["text"],
        row["finish_reason"],
        Score(row["reward"], json.loads(row["parts"]), tuple(row["reasons"])),
        row["advantage"],
        row.get("question", ""),
    )


def save_rollouts(folder: Path, step: int, rollouts: Rollouts) -> None:
    """Write the step's answers; the file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "groups": rollouts.groups,
        "flat_groups": rollouts.flat_groups,
        "next_place": rollouts.next_place,
        "seconds": rollouts.seconds,
        "failures": rollouts.failures,
    }
    schema = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("place", pa.int64()),
            ("language", pa.string()),
            ("source", pa.string()),
            ("prompt", pa.list_(pa.int32())),
            ("tokens", pa.list_(pa.int32())),
            ("logprobs", pa.list_(pa.float64())),
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("reward", pa.float64()),
            ("parts", pa.string()),
            ("reasons", pa.list_(pa.string())),
            ("advantage", pa.float64()),
            ("question", pa.string()),
        ],
        metadata={"step": json.dumps(about)},
    )
    file = folder / FILE.format(step)
    temporary = file.with_suffix(".tmp")
    rows = [as_row(answer) for answer in rollouts.answers]
    pq.write_table(pa.Table.from_pylist(rows, schema), temporary, compression="zstd")
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(file)


def load_rollouts(folder: Path, step: int) -> Rollouts | None:
    """The answers of a step that was begun before, if they are there."""
    file = folder / FILE.format(step)
    if not file.exists():
        return None
    table = pq.read_table(file)
    about = json.loads(table.schema.metadata[b"step"])
    return Rollouts(
        tuple(from_row(row) for row in table.to_pylist()),
        about["groups"],
        about["flat_groups"],
        about["next_place"],
        about["seconds"],
        about["failures"],
    )
