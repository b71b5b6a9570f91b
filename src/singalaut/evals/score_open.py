"""Scores of open answers: instructions that can be checked, and what a judge has said."""

from __future__ import annotations

from collections import Counter

import numpy as np

from singalaut.evals.conditions import conditions
from singalaut.evals.instructions import check_instructions
from singalaut.evals.measure import strata_of
from singalaut.evals.schedule import CellAnswers
from singalaut.evals.scored import (
    Outside,
    Scored,
    by_name,
    number,
    percent,
    question_row,
    run_row,
    single,
)
from singalaut.evals.taskfile import Metric
from singalaut.verify.constraints.check import Semantics


def score_instructions(answers: CellAnswers) -> Scored:
    """Whether each response follows its instructions and is in the right language.

    Official packs are checked by SEA-IFEval's rules, our own by what a reader would say.
    """
    cell = answers.cell
    official = cell.task.form == "official"
    shape = (answers.runs, len(cell.examples))
    passed, strict, loose, other = (np.full(shape, np.nan) for _ in range(4))
    counts: Counter[str] = Counter()
    rows = [question_row(example, "") for example in cell.examples]
    rules: tuple[Semantics, Semantics]
    rules = ("sea-helm", "native") if official else ("native", "sea-helm")
    answered = 0
    for run, turns in enumerate(answers.turns):
        for index, found in enumerate(turns):
            if not found:
                rows[index]["runs"].append(None)
                continue
            answered += 1
            example, text = cell.examples[index], found[0].text
            code = cell.language.language
            first, second = (check_instructions(example, text, code, rule) for rule in rules)
            odd = conditions(text, found[0].finish)
            if first.strict is None:
                odd.append("unchecked")
            else:
                passed[run, index] = first.strict
                strict[run, index] = first.strict and first.right_language
                loose[run, index] = bool(first.loose) and first.right_language
            if second.strict is not None:
                other[run, index] = second.strict and second.right_language
            if not first.right_language:
                odd.append("wrong_language")
            counts.update(odd)
            shown = run_row(text, found[0].finish, odd, number(strict[run, index]))
            rows[index]["runs"].append(shown | {"reasons": first.reasons})
    scored = Scored(
        cell, "instructions", {"instructions": single(strict)}, None, counts, answered, 0, rows
    )
    scored.facts |= {
        "followed": percent(single(passed)),
        "loose": percent(single(loose)),
        "native" if official else "sea_ifeval": percent(single(other)),
        "rules": "SEA-IFEval" if official else "native",
    }
    if cell.task.slices:
        scored.facts["slices"] = by_name(strata_of(strict, [e.slice for e in cell.examples]))
    return scored


def score_judged(answers: CellAnswers, outside: Outside) -> Scored:
    """Conversations and criteria: what a judge made of each, averaged over categories."""
    cell = answers.cell
    values = outside.judged
    if values is None:
        values = np.full((answers.runs, len(cell.examples)), np.nan)
    names = [str(example.extra.get("category", "")) for example in cell.examples]
    one = cell.task.kind == "criteria"
    measure = single(values) if one else strata_of(values, names)
    counts: Counter[str] = Counter()
    rows = [
        question_row(example, "" if one else name)
        for example, name in zip(cell.examples, names, strict=True)
    ]
    answered = 0
    for run, turns in enumerate(answers.turns):
        for index, found in enumerate(turns):
            if not found:
                rows[index]["runs"].append(None)
                continue
            answered += 1
            odd = [c for answer in found for c in conditions(answer.text, answer.finish)]
            counts.update(odd)
            row = run_row(found[-1].text, found[-1].finish, odd, number(values[run, index]))
            row["turns"] = [answer.text for answer in found]
            if outside.notes is not None:
                row["judge"] = outside.notes[run][index]
            rows[index]["runs"].append(row)
    metric: Metric = cell.task.metric
    scored = Scored(cell, metric, {metric: measure}, None, counts, answered, 0, rows)
    scored.facts["slices"] = by_name(strata_of(values, names))
    return scored
