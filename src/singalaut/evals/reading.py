"""Both readings of every response of a cell, and what is odd about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from singalaut.evals.conditions import conditions, enough_letters
from singalaut.evals.extraction import Extraction, Extractor
from singalaut.evals.measure import Floats, Measure
from singalaut.evals.robust import nfc
from singalaut.evals.schedule import CellAnswers
from singalaut.evals.scored import Rule, Scored, numbers, question_row, run_row
from singalaut.evals.taskfile import Metric
from singalaut.verify.language import is_language

Read = list[list["Extraction | None"]]  # [runs][questions]
ALIKE = 0.8  # share of its words that a text has in common with a reference it is nearly


class One(NamedTuple):
    """Both readings of one response; `differs` says whether they disagree."""

    official: Extraction
    robust: Extraction
    odd: tuple[str, ...]
    differs: bool


@dataclass
class Reading:
    """The readings of a cell, [runs][questions]; None where there is no response."""

    table: list[list[One | None]]
    scored: Rule

    @property
    def chosen(self) -> Read:
        """The reading that is scored."""
        if self.scored == "robust":
            return self.robust
        return [[None if one is None else one.official for one in row] for row in self.table]

    @property
    def robust(self) -> Read:
        return [[None if one is None else one.robust for one in row] for row in self.table]


def read_all(answers: CellAnswers, official: Extractor, robust: Extractor, scored: Rule) -> Reading:
    """Both readings of every response, and what is odd about it; equal responses are read once."""
    cell = answers.cell
    labels, language = cell.task.kind == "labels", cell.language.answer_language
    known: dict[tuple[str, str], One] = {}
    table: list[list[One | None]] = []
    for turns in answers.turns:
        row: list[One | None] = []
        for found, example in zip(turns, cell.examples, strict=True):
            if not found:
                row.append(None)
                continue
            key = found[0][:2]  # text and finish
            one = known.get(key)
            if one is None:
                first, second = official(key[0]), robust(key[0])
                odd = _oddities(*key, first if scored == "official" else second, second)
                used = first if scored == "official" else second
                judged = used.answer if not labels else (key[0] if used.answer is None else "")
                if judged and not _in_language(judged, language, example.references):
                    odd.append("wrong_language")
                differs = nfc(first.answer or "") != (second.answer or "")
                one = known[key] = One(first, second, tuple(odd), differs)
            row.append(one)
        table.append(row)
    return Reading(table, scored)


def _oddities(text: str, finish: str, used: Extraction, careful: Extraction) -> list[str]:
    odd = conditions(text, finish)
    if not used.answer:
        odd.append("unextractable")
    elif not used.tagged:
        odd.append("untagged")
    if careful.echoed:
        odd.append("echoed")
    if careful.contradictory:
        odd.append("contradictory")
    return odd


def _in_language(text: str, language: str, references: Sequence[str]) -> bool:
    """Whether a text is in its language, as far as it is long enough to tell.

    A text that is nearly a reference is in the language of that, and needs no model to tell.
    """
    if not enough_letters(text):
        return True
    words = set(text.split())
    for reference in references:
        common = words.intersection(reference.split())
        if len(common) >= ALIKE * len(words):
            return True
    return is_language(text, language)[0]


def scored_reading(
    answers: CellAnswers,
    metric: Metric,
    measures: dict[Metric, Measure],
    robust: Measure | None,
    read: Reading,
    strata: list[str],
) -> Scored:
    """The scores of a cell with the counts of both readings, and its rows."""
    counts: Counter[str] = Counter()
    answered = disagreements = 0
    examples = answers.cell.examples
    rows = [question_row(e, stratum) for e, stratum in zip(examples, strata, strict=True)]
    for turns, ones in zip(answers.turns, read.table, strict=True):
        for found, one, row in zip(turns, ones, rows, strict=True):
            if not found or one is None:
                row["runs"].append(None)
                continue
            answered += 1
            disagreements += one.differs
            for name in one.odd:
                counts[name] += 1
            shown = run_row(found[0].text, found[0].finish, one.odd, None)
            shown["answer"], shown["tagged"] = one.official.answer, one.official.tagged
            if one.differs:
                shown["robust"] = one.robust.answer
            row["runs"].append(shown)
    cell = answers.cell
    return Scored(cell, metric, measures, robust, counts, answered, disagreements, rows)


def show_scores(rows: list[dict[str, Any]], values: Floats) -> None:
    """Put the score of each answer into its row."""
    for scores, row in zip(numbers(values.T), rows, strict=True):
        for score, shown in zip(scores, row["runs"], strict=True):
            if shown is not None:
                shown["score"] = score
