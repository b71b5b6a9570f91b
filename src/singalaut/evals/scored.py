"""The scores of one cell, and the rows that are kept of its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from singalaut.evals.chrf import chrf_score
from singalaut.evals.measure import Floats, Measure, Strata, point
from singalaut.evals.profiles import Version
from singalaut.evals.taskfile import Metric
from singalaut.evals.tasks import Cell, Example

Rule = Literal["official", "robust"]


@dataclass(frozen=True)
class Rules:
    """How answers are read: the version of the published rules, and which reading is scored."""

    version: Version = "v1.2"
    scored: Rule = "official"


@dataclass(frozen=True)
class Outside:
    """What others say of a cell's answers, [runs][questions].

    `metricx` are errors from 0 (best) to 25; `judged` scores of a judge from 0 to 1, NaN where it
    gave none; `notes` what else it said, kept with the rows; `counts` its oddities.
    """

    metricx: Sequence[Sequence[float]] | None = None
    judged: Floats | None = None
    notes: Sequence[Sequence[Any]] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Scored:
    """A cell's measures by metric, its figures, and a row for each question.

    `official_sums` has scores that are published as another sum than the measure's;
    `distribution` says how many answers score within each tenth of the scale.
    """

    cell: Cell
    metric: Metric
    measures: dict[Metric, Measure]
    robust: Measure | None
    counts: Counter[str]
    answered: int
    disagreements: int
    rows: list[dict[str, Any]]
    official_sums: dict[Metric, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    distribution: list[int] = field(default_factory=list)


def question_row(example: Example, stratum: str) -> dict[str, Any]:
    """The row of a question, to which its runs are added; `stratum` is what it is averaged in."""
    row: dict[str, Any] = {"id": example.id, "prompt": example.prompt, "stratum": stratum}
    if example.before:
        row["before"] = [[message.role, message.content] for message in example.before]
    return row | {"runs": []}


def run_row(text: str, finish: str, odd: Sequence[str], score: float | None) -> dict[str, Any]:
    return {"response": text, "finish_reason": finish, "score": score, "odd": list(odd)}


def distribution(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many answers score within each tenth of the scale from 0 to 1."""
    scores = [run["score"] for row in rows for run in row["runs"] if run]
    known = np.clip([score for score in scores if score is not None], 0.0, 1.0)
    counts: list[int] = np.histogram(known, bins=10, range=(0.0, 1.0))[0].tolist()
    return counts


def single(values: Floats) -> Strata:
    """All questions in one stratum: a plain mean."""
    return Strata(values, np.zeros(values.shape[1], np.int64), ("",))


def item_scores(measure: Measure) -> Floats:
    """The score of each answer by itself, [R, N], 0 to 1; NaN without an answer."""
    if isinstance(measure, Strata):
        return measure.values
    missing = measure.statistics.sum(-1) == 0
    return np.where(missing, np.nan, chrf_score(measure.statistics) / 100)


def by_name(measure: Strata) -> dict[str, float | None]:
    """The mean over runs of each stratum, 0 to 100."""
    parts = measure.parts()
    return {
        name: percent(single(parts[:, place : place + 1]))
        for place, name in enumerate(measure.names)
    }


def percent(measure: Measure) -> float | None:
    return number(100 * point(measure)[0])


def numbers(values: Floats) -> list[list[float | None]]:
    """A table of figures to write down; None where there is none."""
    rounded: list[list[float]] = np.round(values, 6).tolist()
    if not np.isnan(values).any():
        return rounded  # type: ignore[return-value]
    return [[None if v != v else v for v in row] for row in rounded]


def number(value: float) -> float | None:
    """A figure to write down; None where there is none."""
    return None if np.isnan(value) else round(float(value), 6)
