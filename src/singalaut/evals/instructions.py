"""Whether a response follows the instructions of its question, and in the right language.

The checks themselves are those of `verify`, which rewards use too.
"""

from __future__ import annotations

from dataclasses import dataclass

from singalaut.evals.tasks import Example
from singalaut.verify.constraints.check import (
    Constraint,
    Semantics,
    answer_language,
    check_all,
    in_language,
)


@dataclass(frozen=True)
class Checked:
    """`strict` and `loose` are None where a check does not apply; `reasons` say why what."""

    strict: bool | None
    loose: bool | None
    right_language: bool
    reasons: list[str]


def check_instructions(example: Example, text: str, language: str, semantics: Semantics) -> Checked:
    """Whether all instructions are followed; a question with one that cannot be checked is None."""
    constraints = [Constraint(name, given) for name, given in example.extra["constraints"]]
    results = check_all(constraints, text, language, prompt=example.turns[-1], semantics=semantics)
    expected = answer_language(constraints, language)
    spoken = in_language(text, expected, prompt=example.turns[-1], semantics=semantics)
    reasons = [f"{r.instruction_id}: {r.strict.reason}" for r in results if not r.strict.ok]
    if not spoken.ok:
        reasons.append(f"language: {spoken.reason}, wanted {expected}")
    if any(result.strict.ok is None for result in results):
        return Checked(None, None, bool(spoken.ok), reasons)
    return Checked(
        all(result.strict.ok for result in results),
        all(result.loose.ok for result in results),
        bool(spoken.ok),
        reasons,
    )
