"""Conversations compared by a judge with those of a baseline, in both orders.

A judgement is asked for after each turn, with the model first and with the baseline first. Two
equal verdicts stand, two different ones are a tie. A verdict that cannot be read is no verdict:
its pair is not scored, while the published rule counts it as a tie or a loss; both are reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from singalaut.contracts import Message
from singalaut.evals.measure import Floats
from singalaut.evals.schedule import CellAnswers
from singalaut.evals.store import Generation
from singalaut.evals.tasks import Example, JudgePrompts

Verdict = Literal["win", "loss", "tie"]
Order = Literal["first", "second"]  # where the judged model's answer stands
ORDERS: tuple[Order, Order] = ("second", "first")
Notes = list[list[list[dict[str, Any]]]]
WORTH: Mapping[Verdict, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True, slots=True)
class Question:
    """One judgement to be asked for."""

    run: int
    example: int
    turn: int
    order: Order
    messages: tuple[Message, ...]


@dataclass
class Judgements:
    """What a judge made of a cell: scores of questions [runs][questions], notes and counts."""

    values: Floats
    notes: Notes
    counts: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Any] = field(default_factory=dict)


def pair_questions(answers: CellAnswers, counts: Counter[str]) -> list[Question]:
    """What to ask a judge about the conversations of a cell; what cannot be asked is counted."""
    task = answers.cell.task
    assert task.judge is not None
    made = []
    for run, row in enumerate(answers.turns):
        for index, turns in enumerate(row):
            example = answers.cell.examples[index]
            if not turns or len(turns) < len(example.turns):
                continue
            baseline = _baseline(example, task.judge)
            if baseline is None:
                counts["judge_without_baseline"] += 1
                continue
            for turn in range(len(turns)):
                for order in ORDERS:
                    messages = _messages(task.judge, example, turns, baseline, turn, order)
                    made.append(Question(run, index, turn, order, messages))
    return made


def empty_notes(shape: tuple[int, int]) -> Notes:
    """No notes yet, by run and question."""
    return [[[] for _ in range(shape[1])] for _ in range(shape[0])]


def read_verdict(text: str, prompts: JudgePrompts, order: Order) -> tuple[Verdict | None, str]:
    """The verdict for the judged model, and what is odd: exactly one label has to occur."""
    first, second, tie = (label in text for label in prompts.verdicts)
    if not text.strip():
        return None, "judge_empty"
    if first + second + tie != 1:
        return None, "judge_contradictory" if first + second + tie else "judge_prose"
    if tie:
        return "tie", ""
    return ("win" if first == (order == "first") else "loss"), ""


def judge_pairs(
    answers: CellAnswers,
    questions: Sequence[Question],
    given: Sequence[Generation | None],
    counts: Counter[str],
) -> Judgements:
    """Scores of conversations from the judge's answers; None is a request that failed."""
    prompts = answers.cell.task.judge
    assert prompts is not None
    shape = (answers.runs, len(answers.cell.examples))
    verdicts: dict[tuple[int, int, int], dict[Order, Verdict | None]] = {}
    notes = empty_notes(shape)
    for question, generation in zip(questions, given, strict=True):
        verdict: Verdict | None = None
        if generation is None:
            odd = "judge_failed"
        else:
            verdict, odd = read_verdict(generation.text, prompts, question.order)
            if odd and generation.finish == "length":
                odd = "judge_truncated"
        if odd:
            counts[odd] += 1
        key = (question.run, question.example, question.turn)
        verdicts.setdefault(key, {})[question.order] = verdict
        notes[question.run][question.example].append(
            {
                "turn": question.turn + 1,
                "model_stands": question.order,
                "verdict": verdict,
                "odd": odd,
                "text": generation.text if generation else None,
            }
        )
    ours: dict[tuple[int, int], list[float]] = {}
    theirs: dict[tuple[int, int], list[float]] = {}
    agreed = both = first_preferred = 0
    for (run, index, _), pair in verdicts.items():
        one, two = (pair[order] for order in ORDERS)
        if one is not None and two is not None:
            both += 1
            agreed += one == two
            # the same place won whoever stood there
            first_preferred += (one, two) == ("loss", "win")
            ours.setdefault((run, index), []).append(WORTH[one] if one == two else 0.5)
        theirs.setdefault((run, index), []).append(_published(one, two))
    if both:
        counts["judge_orders_disagree"] += both - agreed
    values = _table(ours, shape)
    facts = {
        "judgements": len(questions),
        "agreement_of_orders": agreed / both if both else None,
        "first_place_preferred": first_preferred / both if both else None,
        "published_rule": _category_mean(_table(theirs, shape), answers),
        "win_rate": _category_mean(values, answers, weighted=False),
    }
    return Judgements(values, notes, counts, facts)


def _published(one: Verdict | None, two: Verdict | None) -> float:
    if one != two:
        return 0.5
    return 0.0 if one is None else WORTH[one]


def _messages(
    prompts: JudgePrompts,
    example: Example,
    turns: Sequence[Generation],
    baseline: Sequence[str],
    turn: int,
    order: Order,
) -> tuple[Message, ...]:
    referenced = (
        bool(prompts.referenced)
        and example.extra["category"] in prompts.referenced_categories
        and len(example.references) > turn
    )
    values: dict[str, str] = {}
    for place in range(turn + 1):
        number, own = place + 1, turns[place].text
        first, second = (own, baseline[place]) if order == "first" else (baseline[place], own)
        values[f"question_{number}"] = example.turns[place]
        values[f"answer_a_{number}"], values[f"answer_b_{number}"] = first, second
        if referenced:
            values[f"ref_answer_{number}"] = example.references[place]
    systems = prompts.referenced_system if referenced else prompts.system
    texts = prompts.referenced if referenced else prompts.prompts
    system = systems[min(turn, len(systems) - 1)].fill({})
    text = texts[min(turn, len(texts) - 1)].fill(values)
    return (Message("system", system), Message("user", text))


def _baseline(example: Example, prompts: JudgePrompts) -> Sequence[str] | None:
    given: Mapping[str, Sequence[str]] = example.extra["baselines"]
    chosen = given.get(prompts.baseline)
    if chosen is None and len(given) == 1:
        chosen = next(iter(given.values()))
    return chosen if chosen is not None and len(chosen) >= len(example.turns) else None


def _table(found: Mapping[tuple[int, int], Sequence[float]], shape: tuple[int, int]) -> Floats:
    values = np.full(shape, np.nan)
    for place, scores in found.items():
        values[place] = sum(scores) / len(scores)
    return values


def _category_mean(values: Floats, answers: CellAnswers, weighted: bool = True) -> float | None:
    """The mean over categories of their means, or the plain mean; 0 to 100."""
    groups: dict[str, list[float]] = {}
    for index, example in enumerate(answers.cell.examples):
        name = example.extra["category"] if weighted else ""
        groups.setdefault(name, []).extend(v for v in values[:, index] if not np.isnan(v))
    means = [sum(group) / len(group) for group in groups.values() if group]
    return 100 * sum(means) / len(means) if means else None
