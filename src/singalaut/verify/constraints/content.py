"""Constraints on placeholders and postscripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from singalaut.verify.constraints.matching import plain
from singalaut.verify.verdict import Verdict, compared

_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]|［[^［］\n]*］|【[^【】\n]*】")


def number_placeholders(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """Placeholders in square brackets, full-width ones included, with something inside."""
    found = sum(
        any(character.isalnum() for character in placeholder)
        for placeholder in _PLACEHOLDER.findall(response)
    )
    return compared(found, "at least", parameters["num_placeholders"], "placeholders")


def postscript(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """A postscript: the marker opens a line or follows a sentence, and something follows it."""
    marker = parameters["postscript_marker"].strip()
    for match in _marker_pattern(plain(marker)).finditer(plain(response)):
        if any(character.isalnum() for character in match[1]):
            return Verdict(True, f"a postscript begins with `{marker}`")
    return Verdict(False, f"no postscript begins with `{marker}`")


def square_brackets(text: str) -> list[str]:
    """What stands between `[` and the next `]` on the same line, as `\\[.*?\\]` finds it.

    The pattern itself takes quadratic time on a row of opening brackets.
    """
    found = []
    for line in text.split("\n"):
        start = line.find("[")
        while start >= 0 and (end := line.find("]", start + 1)) >= 0:
            found.append(line[start + 1 : end])
            start = line.find("[", end + 1)
    return found


@lru_cache(maxsize=256)
def _marker_pattern(marker: str) -> re.Pattern[str]:
    letters = [re.escape(piece.strip()) for piece in marker.split(".") if piece.strip()]
    spelled = r"\.\s?".join(letters) + (r"\.?" if "." in marker else "")
    return re.compile(rf"(?:^|(?<=\s))[*_#>\"'“(\[]*{spelled}(?![^\W_])(.*(?:\n.*)?)", re.MULTILINE)
