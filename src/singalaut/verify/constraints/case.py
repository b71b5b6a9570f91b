"""Constraints on capital and small letters; they exist only in scripts with case.

IFEval's two whole-text constraints ask for English; here the language is that of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from singalaut.text.segmentation import words
from singalaut.verify.language import is_language
from singalaut.verify.verdict import Verdict, compared


def capital_word_frequency(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """Words all in capitals, single letters included, appear so many times."""
    found = sum(word.isupper() for word in words(response))
    relation, wanted = parameters["capital_relation"], parameters["capital_frequency"]
    return compared(found, relation, wanted, "words in capitals")


def english_capital(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """All letters are capitals, and the language is right."""
    if not response.isupper():
        return Verdict(False, "not all letters are capitals")
    return Verdict(*is_language(response.lower(), language, _small(parameters)))


def english_lowercase(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """All letters are small, and the language is right."""
    if not response.islower():
        return Verdict(False, "not all letters are small")
    return Verdict(*is_language(response, language, _small(parameters)))


def _small(parameters: Mapping[str, Any]) -> str | None:
    prompt = parameters.get("prompt")
    return prompt.lower() if prompt else None
