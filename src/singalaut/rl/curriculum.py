"""How hard each prompt is for the model that a run starts from, and which is asked when.

The share of a few answers that pass decides whether a prompt is asked at all, and the order.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic
from singalaut.contracts import derive
from singalaut.errors import DataError
from singalaut.rewards.samples import place_of
from singalaut.rl.ask import Task
from singalaut.rl.config import DifficultyConfig, RlConfig
from singalaut.rl.difficulty import Rewards, Trial, try_all

log = logging.getLogger("singalaut")
FILE = "difficulty.jsonl"


@dataclass(frozen=True)
class Rated:
    """A prompt, and how many of its scored answers passed; None where none could be scored."""

    task: Task
    rate: float | None


class Order:
    """An order without end in which prompts are drawn; a function of the seed and of pass rates.

    Each pass over the prompts is shuffled anew. With a curriculum it is then sorted: `easy_first`
    in stretches of what a run is going to draw, so that it sees all levels however many prompts
    there are; `target` as a whole, by how far a pass rate is from the target.
    """

    def __init__(self, rated: Sequence[Rated], seed: int, config: RlConfig):
        self.rated, self.seed = rated, derive(seed, "prompts")
        self._kind = config.difficulty.order if config.difficulty else "shuffled"
        self._target = config.difficulty.target if config.difficulty else 0.0
        stretch = len(rated)
        if self._kind == "easy_first":
            stretch = min(stretch, config.steps * config.prompts_per_step)
        self._stretch = stretch
        self._sorted: tuple[int, list[int]] = (-1, [])

    def draw(self, first: int, count: int) -> list[tuple[int, Task]]:
        """The tasks at places `first` … of the order."""
        return [(at, self.rated[self._index(at)].task) for at in range(first, first + count)]

    def _index(self, place: int) -> int:
        if self._kind == "shuffled":
            return place_of(place, len(self.rated), self.seed)
        number, within = divmod(place, self._stretch)
        if self._sorted[0] != number:
            begin = number * self._stretch
            drawn = [
                place_of(at, len(self.rated), self.seed)
                for at in range(begin, begin + self._stretch)
            ]
            self._sorted = (number, sorted(drawn, key=self._hardness))
        return self._sorted[1][within]

    def _hardness(self, index: int) -> float:
        rate = self.rated[index].rate
        assert rate is not None
        return -rate if self._kind == "easy_first" else abs(rate - self._target)


def choose(trial: Trial, tasks: Sequence[Task], folder: Path) -> tuple[list[Rated], dict[str, Any]]:
    """The prompts whose difficulty is wanted, with their pass rates, and a report.

    The rates of all prompts are written to `folder`, where a resumed run finds them.
    Raises: DataError if no prompt is left.
    """
    wanted, file = trial.wanted, folder / FILE
    if not file.exists():
        rewards = try_all(trial, tasks)
        lines = [_line(task, found, wanted) for task, found in zip(tasks, rewards, strict=True)]
        if trial.team.is_first:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_atomic(file, text.encode("utf-8", "surrogatepass"))
    else:
        lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    report = report_of(lines, wanted)
    for row in report["by_language"]:
        log.info("difficulty %s: %s", row["language"], _shown(row))
    rated = [Rated(task, line["pass_rate"]) for task, line in zip(tasks, lines, strict=True)]
    kept = [r for r, line in zip(rated, lines, strict=True) if line["kept"]]
    if not kept:
        counts = {name: report[name] for name in ("too_easy", "too_hard", "unscored")}
        raise DataError(
            f"no prompt has a pass rate between {wanted.min} and {wanted.max}: {counts}",
            where=file,
            hint="widen `difficulty`, take other prompts, or tune the model before",
        )
    return kept, report


def report_of(lines: Sequence[dict[str, Any]], wanted: DifficultyConfig) -> dict[str, Any]:
    """Prompts by what became of them, and for each language how many have which pass rate."""
    fates = Counter(line["fate"] for line in lines)
    languages = sorted({line["language"] for line in lines})
    rows = []
    for language in languages:
        mine = [line for line in lines if line["language"] == language]
        rates = Counter(
            round(line["pass_rate"] * wanted.samples)
            for line in mine
            if line["pass_rate"] is not None
        )
        rows.append(
            {
                "language": language,
                "prompts": len(mine),
                "kept": sum(line["kept"] for line in mine),
                "passes": [rates[n] for n in range(wanted.samples + 1)],
            }
        )
    return {
        "samples": wanted.samples,
        **{name: fates[name] for name in ("kept", "too_easy", "too_hard", "unscored")},
        "by_language": rows,
    }


def _shown(row: dict[str, Any]) -> str:
    most = len(row["passes"]) - 1
    found = [f"{count} with {n}" for n, count in enumerate(row["passes"]) if count]
    counts = ", ".join(found) or "none could be scored"
    return f"{row['kept']} of {row['prompts']} prompts kept; passes of {most}: {counts}"


def _line(task: Task, rewards: Rewards, wanted: DifficultyConfig) -> dict[str, Any]:
    scored = [value for value in rewards if value is not None]
    rate = sum(value >= wanted.passing for value in scored) / len(scored) if scored else None
    fate = "kept"
    if rate is None:
        fate = "unscored"
    elif not wanted.min <= rate <= wanted.max:
        fate = "too_easy" if rate > wanted.max else "too_hard"
    return {
        "prompt_id": task.sample.id,
        "language": task.sample.language or "unknown",
        "source": task.sample.source or "unknown",
        "pass_rate": rate,
        "mean_reward": sum(scored) / len(scored) if scored else None,
        "fate": fate,
        "kept": fate == "kept",
    }
