"""Constraints on words, numbers and letters that must, or must not, appear."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from singalaut.text.digits import ascii_digits
from singalaut.text.marks import canonical
from singalaut.text.segmentation import graphemes
from singalaut.verify.constraints.matching import appears, find
from singalaut.verify.verdict import Verdict, compared

# Where a bare consonant is the same letter whatever vowel or tone is written on it.
_LETTER_CARRIES_SIGNS = frozenset({"th", "lo", "km", "my"})


def existence(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """Every keyword appears."""
    missing = [
        word
        for word in parameters["keywords"]
        if not appears(response, word, language, inflected=True)
    ]
    return Verdict(not missing, f"missing: {', '.join(missing)}" if missing else "all appear")


def forbidden_words(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """No forbidden word appears."""
    found = [word for word in parameters["forbidden_words"] if appears(response, word, language)]
    return Verdict(not found, f"forbidden: {', '.join(found)}" if found else "none appears")


def frequency(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """A keyword appears at least, less than or exactly so many times."""
    keyword = parameters["keyword"]
    found = len(find(response, keyword, language, inflected=True))
    return compared(found, parameters["relation"], parameters["frequency"], f"times `{keyword}`")


def number_frequency(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """A number, in any digits, stands alone (not in a longer number) so many times."""
    number = ascii_digits(str(parameters["number"])).strip()
    found = len(_number_pattern(number).findall(ascii_digits(response)))
    return compared(found, parameters["relation"], parameters["frequency"], f"times `{number}`")


def letter_frequency(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """A letter, in either case, appears so many times: a letter is what a reader calls one.

    In Tamil and Latin script a letter with a sign on it is another letter. In Thai, Lao, Khmer and
    Burmese a consonant counts under every vowel and tone, and a vowel or tone sign by itself.
    """
    letter = canonical(parameters["letter"]).strip().casefold()
    text = canonical(response).casefold()
    if len(letter) == 1 and (text.isascii() or not letter.isalpha()):
        found = text.count(letter)
    elif len(letter) == 1 and language in _LETTER_CARRIES_SIGNS:
        found = sum(cluster[0] == letter for cluster in graphemes(text))
    else:
        found = sum(cluster == letter for cluster in graphemes(text))
    relation, wanted = parameters["let_relation"], parameters["let_frequency"]
    return compared(found, relation, wanted, f"times the letter `{letter}`")


@lru_cache(maxsize=1024)
def _number_pattern(number: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\d)(?<!\d[.,]){re.escape(number)}(?!\d)(?![.,]\d)")
