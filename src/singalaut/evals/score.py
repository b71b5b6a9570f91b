"""From the answers of one cell to its scores: which code scores which kind of answer."""

from __future__ import annotations

from singalaut.evals.schedule import CellAnswers
from singalaut.evals.score_labels import score_labels, score_logprobs
from singalaut.evals.score_open import score_instructions, score_judged
from singalaut.evals.score_texts import score_texts
from singalaut.evals.scored import Outside, Rules, Scored


def score_cell(
    answers: CellAnswers, rules: Rules, outside: Outside | None = None, logprobs: bool = False
) -> Scored:
    """Score the answers of a cell; `logprobs` where they are log-probabilities of labels.

    Every answer is read twice, by the published rules and with care, and where they disagree is
    counted. What a judge or a regression model says of answers is handed in as `outside`.
    """
    kind = answers.cell.task.kind
    if kind == "labels":
        return score_logprobs(answers) if logprobs else score_labels(answers, rules)
    if kind == "instructions":
        return score_instructions(answers)
    if kind in ("dialogue", "criteria"):
        return score_judged(answers, outside or Outside())
    return score_texts(answers, rules, outside or Outside())
