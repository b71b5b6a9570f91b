"""Constraints on format: lists, highlights, sections, titles, JSON, an answer out of a few."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from singalaut.text.digits import CHINESE_NUMERAL
from singalaut.text.marks import canonical
from singalaut.verify.constraints.options import CONSTRAINED_OPTIONS, POLITE_ENDINGS
from singalaut.verify.verdict import Verdict, compared

_BULLET = re.compile(r"^[^\S\n]*[*+-][^\S\n]+(?=\S)(?![*_ \t-]*$).", re.MULTILINE)
_HIGHLIGHT = re.compile(r"(?<![*\w])(\*{1,3})(?![\s*])([^*\n]*[^*\s])\1(?!\*)")
_TITLE = re.compile(r"<<((?:[^\n<>]|<(?!<)|>(?!>))+)>>|＜＜([^\n＜＞]+)＞＞|«([^\n«»]+)»")
_CHINESE_TITLE = re.compile(r"《([^《》\n]+)》")
_FENCE = re.compile(r"```[ \t]*(?:json)?[ \t]*\n?(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
_COUNTER = rf"(?:\d+|[IVXLC]+|[A-Z]|{CHINESE_NUMERAL}+)"


def number_bullet_lists(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """Lines that begin with a markdown bullet (`*`, `-`, `+`), a space and some text."""
    found = len(_BULLET.findall(response))
    return compared(found, "exactly", parameters["num_bullets"], "bullet points")


def number_highlighted_sections(
    response: str, parameters: Mapping[str, Any], language: str
) -> Verdict:
    """Texts between asterisks, `*so*` or `**so**`, on one line."""
    found = sum(
        any(character.isalnum() for character in text) for _, text in _HIGHLIGHT.findall(response)
    )
    return compared(found, "at least", parameters["num_highlights"], "highlights")


def multiple_sections(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """Sections, each opened at the start of a line by the given word and a number or letter.

    The same number twice, as in two versions of one plan, is one section, unless all are the same.
    """
    pattern = _section_pattern(canonical(parameters["section_title"]))
    labels = pattern.findall(canonical(response))
    found = len(set(labels)) if len(set(labels)) > 1 else len(labels)
    return compared(found, "exactly", parameters["num_sections"], "sections")


def title(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """A title in double angular brackets; in Chinese `《》` are such brackets."""
    titles = [group for match in _TITLE.finditer(response) for group in match.groups() if group]
    if language == "zh":
        titles += _CHINESE_TITLE.findall(response)
    for text in titles:
        if any(character.isalnum() for character in text):
            return Verdict(True, f"the title is `{text.strip()[:80]}`")
    return Verdict(False, "no title in double angular brackets")


def json_format(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """The whole response is one JSON object or array, with or without a code fence around it."""
    text = response.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return Verdict(False, f"not JSON: {str(error)[:120] or 'nested too deeply'}")
    if not isinstance(value, dict | list):
        return Verdict(False, "JSON, but neither an object nor an array")
    return Verdict(True, "JSON")


def constrained_response(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """Exactly one of the allowed answers appears, word for word."""
    text = canonical(response)
    options = parameters.get("options") or CONSTRAINED_OPTIONS[language]
    found = []
    for option in sorted(map(canonical, options), key=len, reverse=True):
        pattern = _option_pattern(option)
        if pattern.search(text):
            found.append(option)
            text = pattern.sub(" ", text)
    if len(found) == 1:
        return Verdict(True, f"answers `{found[0]}`")
    return Verdict(False, f"gives {len(found)} of the allowed answers")


def angle_titles(text: str) -> list[str]:
    """The text from the first `<<` of a line to its last `>>`, as `<<[^\\n]+>>` finds it."""
    found = []
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2:
            found.append(line[start : end + 2].lstrip("<").rstrip(">").strip())
    return found


@lru_cache(maxsize=1024)
def _section_pattern(section_title: str) -> re.Pattern[str]:
    opened = rf"^[ \t#*_>\"'“(\[<-]*{re.escape(section_title.strip())}[\s:.#-]*"
    return re.compile(rf"{opened}({_COUNTER}|(?i:one|two|three|four|five))\b", re.MULTILINE)


@lru_cache(maxsize=1024)
def _option_pattern(option: str) -> re.Pattern[str]:
    """The option where it ends: `คือไม่` does not answer where `คือไม่แน่ใจ` is said."""
    in_a_word = unicodedata.category(option[-1])[0] in "LMN"
    ends = rf"(?:(?![^\W_])|(?={POLITE_ENDINGS}))" if in_a_word else ""
    return re.compile(re.escape(option) + ends)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
