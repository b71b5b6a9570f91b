"""Finds the answer in a response by the published rules of SEA-HELM, each version's own.

Pure functions of text, kept exactly as lenient and as strict as the rules are, so that scores can
be compared: the first tag counts, a label may be the beginning of a longer word, without a tag
the whole response is the answer. What a more careful reading finds is `robust`'s work.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import NamedTuple

from singalaut.evals.profiles import Version

EDGES = string.punctuation + " \n"
COLONS = {"km": "[:|៖]", "zh": "[:|：]"}  # either may end the tag in v1.0


class Extraction(NamedTuple):
    """`answer` is a gold label or a text, None where there is none; `tagged`: it followed a tag.

    `echoed`: the placeholder of the prompt stood after the tag; `contradictory`: several tags
    gave different answers, or one gave several.
    """

    answer: str | None
    tagged: bool
    echoed: bool = False
    contradictory: bool = False


Extractor = Callable[[str], Extraction]


def label_extractor(
    version: Version,
    tag: str,
    labels: Mapping[str, str],
    language: str = "",
    case_sensitive: bool = False,
) -> Extractor:
    """The rule for choices: the gold label that a response gives, by the version's rules.

    v1.2: the first tag that white space, `*` and then a label follow, in any case; the last of
    several labels in a row counts. With `case_sensitive` (LINDSEA) the first tag decides, and
    case matters. v1.0: the line after the first tag, in any case, has to be a label.
    """
    named = {_normal(text): gold for gold, text in labels.items()}
    if version == "v1.0":
        return _line_label(_old_tag(tag.lower(), language), named)
    alternatives = "|".join(map(re.escape, labels.values()))
    many = "*" if case_sensitive else "+"
    flags = re.NOFLAG if case_sensitive else re.IGNORECASE
    pattern = re.compile(rf"{re.escape(tag)}[\s\*]*({alternatives}){many}", flags)

    def extract(response: str) -> Extraction:
        match = pattern.search(response)
        found = match[1] if match else None
        return Extraction(named.get(_normal(found or response)), found is not None)

    return extract


def _line_label(tag: str, named: Mapping[str, str]) -> Extractor:
    pattern = re.compile(rf"(?<={tag})\s*.*")

    def extract(response: str) -> Extraction:
        response = response.lower()
        match = pattern.search(response)
        line = match[0].strip("$") if match else response
        return Extraction(named.get(_normal(line.strip())), match is not None)

    return extract


def text_extractor(version: Version, tag: str, language: str = "") -> Extractor:
    """The rule for texts: the rest of the line after the first tag, else the whole response.

    v1.2 skips white space, backticks and `*` after the tag; v1.0 only white space, but takes the
    tag with a small or capital first letter and strips `$`.
    """
    if version == "v1.0":
        first = f"[{tag[:1].upper()}|{tag[:1].lower()}]" if tag[:1].isascii() and tag else tag[:1]
        tag_pattern = first + _old_tag(tag[1:], "")
        old = re.compile(rf"(?<={tag_pattern})\s*.*")

        def extract_old(response: str) -> Extraction:
            match = old.search(response)
            text = match[0].strip("$") if match else response
            return Extraction(text.strip(), match is not None)

        return extract_old
    pattern = re.compile(re.escape(tag) + r"[\s`*]*(.*)")

    def extract(response: str) -> Extraction:
        match = pattern.search(response)
        return Extraction((match[1] if match else response).strip(), match is not None)

    return extract


def _old_tag(tag: str, language: str) -> str:
    """The tag as a pattern of v1.0, which takes two kinds of colons in Khmer and Chinese."""
    if language in COLONS and tag[-1:] in (":", "៖", "："):
        return re.escape(tag[:-1]) + COLONS[language]
    return re.escape(tag)


def _normal(text: str) -> str:
    """Lower case, without outer ASCII punctuation, spaces and line ends; single spaces."""
    return " ".join(text.strip().lower().strip(EDGES).split())
