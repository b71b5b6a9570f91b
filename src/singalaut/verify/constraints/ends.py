"""Constraints on the first word, the last phrase, and quotation marks around it all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from singalaut.text.marks import DOUBLE_QUOTES
from singalaut.verify.constraints.matching import plain, starts_with
from singalaut.verify.verdict import Verdict

_CLOSING = "\"'”’»」』*_` \n\t)"


def first_word(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """The response begins with a given word or phrase, and the word ends there."""
    wanted = parameters["first_word"]
    ok = starts_with(response, wanted, language)
    return Verdict(ok, f"{'begins' if ok else 'does not begin'} with `{wanted}`")


def end_checker(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """The response ends with a given phrase; only quotation and markdown marks may follow."""
    wanted = plain(parameters["end_phrase"].strip())
    text = plain(response).rstrip()
    ok = text.endswith(wanted) or text.rstrip(_CLOSING).endswith(wanted.rstrip(_CLOSING))
    return Verdict(ok, f"{'ends' if ok else 'does not end'} with `{parameters['end_phrase']}`")


def quotation(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """Double quotation marks, of any kind that opens and closes, around the whole response."""
    text = response.strip()
    for opening, closing in DOUBLE_QUOTES:
        if text.startswith(opening) and text.endswith(closing) and len(text) > 1:
            if any(character.isalnum() for character in text):
                return Verdict(True, f"wrapped in {opening}{closing}")
            return Verdict(False, "nothing between the quotation marks")
    return Verdict(False, "not wrapped in double quotation marks")
