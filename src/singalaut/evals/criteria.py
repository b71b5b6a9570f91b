"""Answers held against written criteria by a judge, one request for each criterion."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from singalaut.contracts import Message
from singalaut.evals.pairwise import Judgements, Question, empty_notes
from singalaut.evals.schedule import CellAnswers
from singalaut.evals.store import Generation
from singalaut.evals.tasks import Example, JudgePrompts
from singalaut.evals.template import Template

CLASSIFICATION = re.compile(r"<classification>\s*(\w+)\s*</classification>")
SEVERITY = {"high": 10.0, "medium": 5.0, "low": 1.0}
GENERIC = "generic"


def criteria_questions(answers: CellAnswers, counts: Counter[str]) -> list[Question]:
    """What to ask a judge about the answers of a cell; `turn` is the number of the criterion."""
    prompts = answers.cell.task.judge
    assert prompts is not None
    made = []
    for run, row in enumerate(answers.turns):
        for index, turns in enumerate(row):
            example = answers.cell.examples[index]
            if not turns or len(turns) < len(example.turns):
                continue
            for place, criterion in enumerate(example.extra["criteria"]):
                try:
                    messages = _messages(prompts, example, turns, criterion)
                except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                    counts["judge_bad_criterion"] += 1
                    continue
                made.append(Question(run, index, place, "first", messages))
    return made


def judge_criteria(
    answers: CellAnswers,
    questions: Sequence[Question],
    given: Sequence[Generation | None],
    counts: Counter[str],
) -> Judgements:
    """Scores of answers, 0 to 1; one with a criterion that was not judged is not scored."""
    prompts = answers.cell.task.judge
    assert prompts is not None
    shape = (answers.runs, len(answers.cell.examples))
    notes = empty_notes(shape)
    worths: dict[tuple[int, int], dict[int, float]] = {}
    for question, generation in zip(questions, given, strict=True):
        name, odd = _read(generation, prompts)
        if odd:
            counts[odd] += 1
        else:
            key = (question.run, question.example)
            worths.setdefault(key, {})[question.turn] = prompts.classes[name]
        notes[question.run][question.example].append(
            {
                "criterion": question.turn,
                "class": name or None,
                "odd": odd,
                "text": generation.text if generation else None,
            }
        )
    values = np.full(shape, np.nan)
    for (run, index), found in worths.items():
        criteria = answers.cell.examples[index].extra["criteria"]
        if len(found) == len(criteria):
            values[run, index] = _total(criteria, found, prompts.weighted)
    return Judgements(values, notes, counts, {"judgements": len(questions)})


def _read(generation: Generation | None, prompts: JudgePrompts) -> tuple[str, str]:
    """The class that the judge names last, and what is odd about its answer."""
    if generation is None:
        return "", "judge_failed"
    if not generation.text.strip():
        return "", "judge_empty"
    found = CLASSIFICATION.findall(generation.text)
    if not found:
        return "", "judge_truncated" if generation.finish == "length" else "judge_prose"
    if found[-1] not in prompts.classes:
        return "", "judge_unknown_class"
    return found[-1], ""


def _total(
    criteria: Sequence[Mapping[str, Any]], worths: Mapping[int, float], weighted: bool
) -> float:
    """Criteria of a turn are averaged, then turns; or, weighted by severity, generic ones times
    the others."""
    if not weighted:
        turns: dict[int, list[float]] = {}
        for place, criterion in enumerate(criteria):
            turns.setdefault(int(criterion.get("turn", 0)), []).append(worths[place])
        return sum(sum(t) / len(t) for t in turns.values()) / len(turns)
    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for place, criterion in enumerate(criteria):
        severity = str(criterion.get("severity", "")).lower()
        weight = SEVERITY.get(severity, 1.0)
        total = sums[severity == GENERIC]
        total[0] += weight * worths[place]
        total[1] += weight
    generic, own = (t[0] / t[1] if t[1] else 0.0 for t in (sums[True], sums[False]))
    return generic * own


def _messages(
    prompts: JudgePrompts,
    example: Example,
    turns: Sequence[Generation],
    criterion: Mapping[str, Any],
) -> tuple[Message, ...]:
    turn = int(criterion.get("turn", 0))
    transcript = f"[User]\n{example.turns[0]}"
    for place in range(turn):
        transcript += f"\n\n[Assistant (fixed)]\n{turns[place].text}"
        transcript += f"\n\n[User]\n{example.turns[place + 1]}"
    reference = ""
    if criterion.get("include_reference") and prompts.reference is not None:
        reference = "\n" + prompts.reference.fill({"reference": example.references[0]}) + "\n"
    point = Template.formatted(criterion["criterion"]).fill(example.extra["fields"][0])
    text = prompts.prompts[min(turn, len(prompts.prompts) - 1)].fill(
        {
            "transcript": transcript,
            "prompt": example.turns[0],
            "response": turns[turn].text,
            "keyPointText": point,
            "reference_text_block": reference,
        }
    )
    return (Message("system", prompts.system[0].fill({})), Message("user", text))
