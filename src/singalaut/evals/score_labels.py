"""Scores of choices: the label that is written, or the one of highest log-probability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from singalaut.evals.extraction import label_extractor
from singalaut.evals.measure import Floats, strata_of
from singalaut.evals.reading import Read, read_all, scored_reading, show_scores
from singalaut.evals.robust import echoes, robust_label_extractor
from singalaut.evals.schedule import CellAnswers
from singalaut.evals.scored import Rules, Scored, by_name, number, percent, question_row, single


def score_labels(answers: CellAnswers, rules: Rules) -> Scored:
    cell, spec = answers.cell, answers.cell.language
    echoed = echoes(spec.prompt.open(spec.prompt.question.text), spec.tag)
    read = read_all(
        answers,
        label_extractor(
            rules.version, spec.tag, spec.labels, spec.language, cell.task.case_sensitive
        ),
        robust_label_extractor(spec.tag, spec.labels, spec.synonyms, echoed),
        rules.scored,
    )
    gold = [example.gold for example in cell.examples]
    names = [e.slice for e in cell.examples] if cell.task.slices else gold
    measure = strata_of(_hits(read.chosen, gold), names, cell.chance)
    robust = strata_of(_hits(read.robust, gold), names, cell.chance)
    scored = scored_reading(answers, "accuracy", {"accuracy": measure}, robust, read, names)
    scored.facts["plain_accuracy"] = percent(single(measure.values))
    scored.facts["chance"] = 100 * cell.chance
    if cell.task.slices:
        scored.facts["slices"] = by_name(measure)
    for row, label in zip(scored.rows, gold, strict=True):
        row["gold"] = label
    show_scores(scored.rows, measure.values)
    return scored


def score_logprobs(answers: CellAnswers) -> Scored:
    """The label of highest log-probability, and how probable the gold label is among them."""
    cell = answers.cell
    labels = list(cell.language.labels)
    gold = [labels.index(example.gold) for example in cell.examples]
    table = np.full((len(labels), len(gold)), np.nan)
    for run, turns in enumerate(answers.turns):
        for index, found in enumerate(turns):
            if found and found[0].value is not None:
                table[run, index] = found[0].value
    whole = ~np.isnan(table).any(0)
    shifted = np.exp(table - np.nanmax(np.where(whole, table, 0.0), axis=0))
    probability = np.where(whole, shifted[gold, range(len(gold))] / shifted.sum(0), np.nan)
    best = np.argmax(np.where(whole, table, -np.inf), axis=0)
    hits = np.where(whole, (best == gold).astype(np.float64), np.nan)[None]
    names = [e.slice for e in cell.examples] if cell.task.slices else [labels[g] for g in gold]
    measure = strata_of(hits, names, cell.chance)
    scored = Scored(
        cell, "accuracy", {"accuracy": measure}, None, Counter(), int(whole.sum()), 0, []
    )
    scored.facts["gold_probability"] = percent(single(probability[None]))
    scored.facts["chance"] = 100 * cell.chance
    for index, example in enumerate(cell.examples):
        values = {name: number(table[run, index]) for run, name in enumerate(labels)}
        given = labels[best[index]] if whole[index] else None
        shown = {"logprobs": values, "answer": given, "score": number(hits[0, index])}
        row = question_row(example, names[index]) | {"gold": example.gold, "runs": [shown]}
        scored.rows.append(row)
    return scored


def _hits(read: Read, gold: Sequence[str]) -> Floats:
    return np.array(
        [
            [np.nan if e is None else float(e.answer == g) for e, g in zip(row, gold, strict=True)]
            for row in read
        ]
    )
