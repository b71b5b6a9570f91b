"""Parameters of an instruction, checked and brought to one form, or refused with the reason.

Whether two instructions contradict each other is decided in `contradictions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from singalaut.errors import DataError
from singalaut.text.digits import ascii_digits
from singalaut.text.languages import LANGUAGES
from singalaut.text.segmentation import graphemes
from singalaut.verify.constraints.table import (
    INSTRUCTIONS,
    PARAMETER_ALIASES,
    RELATIONS,
    Instruction,
    Kind,
)


def instruction(instruction_id: str) -> Instruction:
    """The instruction of a name such as `keywords:existence`.

    Raises: DataError, naming the nearest known name.
    """
    if instruction_id in INSTRUCTIONS:
        return INSTRUCTIONS[instruction_id]
    near = get_close_matches(instruction_id, INSTRUCTIONS, n=1, cutoff=0.5)
    raise DataError(
        f"unknown instruction `{instruction_id}`",
        hint=f"did you mean `{near[0]}`?" if near else f"known: {' '.join(sorted(INSTRUCTIONS))}",
    )


def valid_parameters(
    instruction_id: str, parameters: Mapping[str, Any] | None, language: str
) -> dict[str, Any]:
    """Parameters under their own names, numbers as integers, those that are None left out.

    Raises: DataError for a missing, unknown or impossible parameter, and where the instruction
    does not apply to the script of `language`.
    """
    known = instruction(instruction_id)
    if known.needs_case and LANGUAGES[language].script != "Latin":
        raise DataError(
            f"`{instruction_id}` needs capital and small letters",
            where=f"language {language}",
            hint=f"the {LANGUAGES[language].script} script has no case; leave the instruction out",
        )
    kinds = {**known.needs, **known.may_have}
    result: dict[str, Any] = {}
    for name, value in (parameters or {}).items():
        if value is None:
            continue
        name = PARAMETER_ALIASES.get(name, name)
        if name not in kinds:
            near = get_close_matches(name, kinds, n=1, cutoff=0.5)
            takes = f"it takes {', '.join(kinds) or 'none'}"
            raise DataError(
                f"unknown parameter `{name}`",
                where=instruction_id,
                hint=f"did you mean `{near[0]}`? {takes}" if near else takes,
            )
        result[name] = _value(instruction_id, name, kinds[name], value)
    for name in known.needs:
        if name not in result:
            raise DataError(f"parameter `{name}` is missing", where=instruction_id)
    _refuse_impossible(instruction_id, result)
    return result


def _value(instruction_id: str, name: str, kind: Kind, value: Any) -> Any:
    wanted = {
        "count": "a whole number, 0 or more",
        "text": "a text that is not empty",
        "language": "a language code",
        "texts": "a list of texts, none empty",
        "number": "a number or its digits",
        "letter": "one letter",
        "relation": f"one of {', '.join(RELATIONS)}",
    }[kind]
    try:
        return _converted(kind, value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"parameter `{name}` is {str(value)[:80]!r}, needed is {wanted}", where=instruction_id
        ) from None


def _converted(kind: Kind, value: Any) -> Any:
    match kind:
        case "count":
            number = int(ascii_digits(value)) if isinstance(value, str) else int(value)
            if isinstance(value, bool) or number != (number if isinstance(value, str) else value):
                raise ValueError
            if number < 0:
                raise ValueError
            return number
        case "texts":
            texts = [value] if isinstance(value, str) else list(value)
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError
            return texts
        case "relation":
            if value not in RELATIONS:
                raise ValueError
            return value
        case "letter":
            if not isinstance(value, str) or len(graphemes(value.strip())) != 1:
                raise ValueError
            return value.strip()
        case "number":
            if isinstance(value, bool) or not any(sign.isdigit() for sign in str(value)):
                raise ValueError
            return str(value)
        case _:
            if not isinstance(value, str) or not value.strip():
                raise ValueError
            return value


def _refuse_impossible(instruction_id: str, parameters: Mapping[str, Any]) -> None:
    """Refuse what no response, or every response, could satisfy."""
    for prefix in ("", "let_", "capital_"):
        count = parameters.get(f"{prefix}frequency")
        count = parameters.get("num_words", parameters.get("num_sentences", count))
        relation = parameters.get(f"{prefix}relation")
        if count == 0 and relation == "less than":
            raise DataError("fewer than 0 is impossible", where=instruction_id)
    if parameters.get("nth_paragraph", 0) > parameters.get("num_paragraphs", 0) > 0:
        nth, of = parameters["nth_paragraph"], parameters["num_paragraphs"]
        raise DataError(f"there is no paragraph {nth} of {of}", where=instruction_id)
    if parameters.get("nth_paragraph") == 0:
        raise DataError("paragraphs are counted from 1", where=instruction_id)
    for name in ("num_paragraphs", "num_sections"):
        if parameters.get(name) == 0:
            raise DataError(f"`{name}` is 0, which no response has", where=instruction_id)
