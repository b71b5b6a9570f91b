"""Checks a response against its instructions, each by itself: the door of this folder.

Three semantics. `native`: what a reader of the language would say. `sea-helm` and `ifeval`: the
rules of SEA-IFEval and of the English IFEval, for figures that can be compared with theirs; they
have no rule for some instructions and languages, which are then not scored. Strict takes the
response as it is; loose also tries it without its first line, its last line, both, and each of
these without asterisks (arXiv 2311.07911).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from singalaut.errors import DataError
from singalaut.text.languages import language as known_language
from singalaut.verify.constraints.contradictions import contradictions
from singalaut.verify.constraints.ifeval import ifeval_check
from singalaut.verify.constraints.parameters import instruction, valid_parameters
from singalaut.verify.constraints.sea_helm import sea_helm_check
from singalaut.verify.language import ALIASES, fasttext_language, is_language
from singalaut.verify.verdict import Verdict

Semantics = Literal["native", "sea-helm", "ifeval"]
LANGUAGE_INSTRUCTION = "language:response_language"
LANGUAGE_INSTRUCTIONS = frozenset(  # which look at the language themselves
    {LANGUAGE_INSTRUCTION, "change_case:english_capital", "change_case:english_lowercase"}
)


@dataclass(frozen=True)
class Constraint:
    """One instruction with its parameters, as data sets write them."""

    instruction_id: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What became of one constraint; `ok` is None in both where it could not be checked."""

    instruction_id: str
    strict: Verdict
    loose: Verdict


def check(
    instruction_id: str,
    parameters: Mapping[str, Any] | None,
    response: str,
    language: str,
    *,
    prompt: str | None = None,
    semantics: Semantics = "native",
    loose: bool = False,
) -> Verdict:
    """Whether `response`, to a prompt in `language`, follows one instruction.

    Raises: DataError for an unknown instruction or impossible parameters, RecipeError for an
    unknown language.
    """
    known_language(language)
    if semantics == "sea-helm":
        instruction(instruction_id)
        given = dict(parameters or {})
    else:
        given = valid_parameters(instruction_id, parameters, language)
        if prompt is not None and instruction_id in LANGUAGE_INSTRUCTIONS:
            given["prompt"] = prompt
    verdict = _verdict(instruction_id, given, response, language, semantics)
    if not loose or verdict.ok is not False:
        return verdict
    for name, variant in _variants(response):
        other = _verdict(instruction_id, given, variant, language, semantics)
        if other.ok:
            return Verdict(True, f"{name}: {other.reason}")
    return verdict


def check_all(
    constraints: Sequence[Constraint],
    response: str,
    language: str,
    *,
    prompt: str | None = None,
    semantics: Semantics = "native",
) -> list[Result]:
    """Strict and loose verdicts on each constraint, none depending on another.

    A constraint that cannot be checked, say for an unknown name, is None with the reason.
    """
    results = []
    for constraint in constraints:
        name, parameters = constraint.instruction_id, constraint.parameters
        try:
            strict, loose = (
                check(
                    *(name, parameters, response, language),
                    prompt=prompt,
                    semantics=semantics,
                    loose=is_loose,
                )
                for is_loose in (False, True)
            )
        except DataError as error:
            strict = loose = Verdict(None, error.what)
        results.append(Result(name, strict, loose))
    return results


def validate(constraints: Sequence[Constraint], language: str) -> None:
    """Refuse constraints that cannot be checked or cannot all be followed.

    Raises: DataError with every fault found, RecipeError for an unknown language.
    """
    known_language(language)
    faults = []
    for constraint in constraints:
        try:
            valid_parameters(constraint.instruction_id, constraint.parameters, language)
        except DataError as error:
            faults.append(f"{constraint.instruction_id}: {error.what}")
    if not faults:
        pairs = [(constraint.instruction_id, constraint.parameters) for constraint in constraints]
        faults = contradictions(pairs, language)
    if faults:
        raise DataError("constraints that cannot be followed: " + "; ".join(faults))


def constraints_of(
    instruction_ids: Sequence[str], parameters: Sequence[Mapping[str, Any] | None]
) -> list[Constraint]:
    """Constraints of a row that lists names and parameters side by side, as IFEval's rows do.

    Raises: DataError if the lists differ in length.
    """
    if len(instruction_ids) != len(parameters):
        raise DataError(
            f"{len(instruction_ids)} instructions but {len(parameters)} sets of parameters"
        )
    return [
        Constraint(name, given or {})
        for name, given in zip(instruction_ids, parameters, strict=True)
    ]


def answer_language(constraints: Sequence[Constraint], language: str) -> str:
    """The language the response should be in: the one asked for, else that of the prompt."""
    for constraint in constraints:
        if constraint.instruction_id == LANGUAGE_INSTRUCTION:
            given = constraint.parameters
            code = str(given.get("language") or given.get("response_language") or language)
            return ALIASES.get(code.lower(), code.lower())
    return language


def in_language(
    response: str, language: str, *, prompt: str | None = None, semantics: Semantics = "native"
) -> Verdict:
    """Whether a response is in `language`: what turns accuracy into language-normalised accuracy.

    By SEA-HELM's rule the top guess of the model must be right, Indonesian and Malay being one.
    """
    if semantics == "native":
        return Verdict(*is_language(response, language, prompt))
    found = fasttext_language(response)
    pair = {"id", "ms"}
    return Verdict(found == language or {found, language} <= pair, f"fastText says {found}")


def _verdict(
    instruction_id: str,
    parameters: Mapping[str, Any],
    response: str,
    language: str,
    semantics: Semantics,
) -> Verdict:
    if semantics == "sea-helm":
        return sea_helm_check(instruction_id, parameters, response, language)
    if not response.strip():
        return Verdict(False, "the response is empty")
    if semantics == "ifeval":
        return ifeval_check(instruction_id, parameters, response, language)
    return instruction(instruction_id).check(response, parameters, language)


def _variants(response: str) -> list[tuple[str, str]]:
    lines = response.split("\n")
    cut = [
        ("as it is", response),
        ("without the first line", "\n".join(lines[1:]).strip()),
        ("without the last line", "\n".join(lines[:-1]).strip()),
        ("without the first and last line", "\n".join(lines[1:-1]).strip()),
    ]
    bare = [(f"{name}, without asterisks", text.replace("*", "")) for name, text in cut]
    seen = {response}
    variants = []
    for name, text in (*cut[1:], *bare):
        if text.strip() and text not in seen:
            seen.add(text)
            variants.append((name, text))
    return variants
