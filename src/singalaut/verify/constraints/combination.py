"""Constraints on the response as a whole: the prompt said again, two responses in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from singalaut.verify.constraints.matching import plain
from singalaut.verify.verdict import Verdict

_SEPARATOR = "******"


def repeat_prompt(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """The request is repeated word for word before anything else, and an answer follows.

    Case and the width of spaces do not matter; a quotation mark before it does.
    """
    wanted = _spaced(parameters["prompt_to_repeat"])
    text = _spaced(response)
    if not text.startswith(wanted):
        return Verdict(False, "the request is not repeated at the beginning")
    rest = text[len(wanted) :]
    if not any(character.isalnum() for character in rest):
        return Verdict(False, "the request is repeated, but no answer follows")
    return Verdict(True, "the request is repeated, and an answer follows")


def two_responses(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """Exactly two responses, not the same, between them a row of six asterisks."""
    parts = [part.strip() for part in response.split(_SEPARATOR)]
    if not all(parts[1:-1]):
        return Verdict(False, "nothing between two rows of asterisks")
    said = [part for part in parts if any(character.isalnum() for character in part)]
    if len(said) != 2:
        return Verdict(False, f"{len(said)} responses separated by {_SEPARATOR}, wanted 2")
    if plain(said[0]) == plain(said[1]):
        return Verdict(False, "the two responses are the same")
    return Verdict(True, "two different responses")


def _spaced(text: str) -> str:
    return " ".join(plain(text).split())
