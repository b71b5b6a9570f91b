"""Finds the answer in a response with care: what a person would say that the response answers.

Differs from the published rules where these misread: the last tag counts and not the first; the
tag may have another colon or a space before it; quotes, brackets and markdown around an answer
are no part of it; a label counts only where it ends; a placeholder that the prompt shows after
the tag is no answer; two labels at once are none; a text may be longer than a line. Text is
compared after canonical composition (NFC), never compatibility composition.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from singalaut.evals.extraction import Extraction, Extractor

PLACEHOLDERS = frozenset(
    {"answer", "option", "translation", "summary", "$answer", "$option", "$translation", "$summary"}
)
COLON = ":：៖-–—="
# bounded, so that a megabyte of spaces is read in linear time
SEPARATOR = rf"[^\S\n]{{0,8}}[*_`\"']{{0,4}}[^\S\n]{{0,8}}[{re.escape(COLON)}]"
DECORATION = r"[\s*_`\"'“”‘’«»「」『』《》()\[\]{}<>#$\\]*"
EDGES = string.punctuation + string.whitespace + "“”‘’«»「」『』《》。၊။"
JOINED = re.compile(r"[\s/,،、;|&+]+|\b(?:or|and|atau|dan|o|at|hoặc|và|utawa)\b|หรือ|หลื|ຫຼື|ឬ|或|和")
OPENING = re.compile(r"^[*_]+\s*")  # ends markdown around the tag, or opens it around the answer
LONGEST_LINE = 60  # in which several labels are a list of them rather than an explanation
Length = Literal["line", "paragraph", "all"]


def echoes(prompt: str, tag: str) -> frozenset[str]:
    """What the prompt's template writes after the tag on the same line, and usual placeholders."""
    if not tag:
        return PLACEHOLDERS
    pattern = re.compile(_tag(tag) + r"([^\n]*)", re.IGNORECASE)
    shown = {plain(match[1]) for match in pattern.finditer(nfc(prompt))}
    return PLACEHOLDERS | (shown - {""})


def robust_label_extractor(
    tag: str,
    labels: Mapping[str, str],
    synonyms: Mapping[str, Sequence[str]] | None = None,
    echoed: Collection[str] = PLACEHOLDERS,
) -> Extractor:
    """The careful rule for choices.

    Without a tag that a label follows, the whole response or its last line may be a label.
    """
    written = {nfc(text.strip()).casefold(): gold for gold, text in labels.items()}
    for gold, others in (synonyms or {}).items():
        written |= {nfc(text.strip()).casefold(): gold for text in others}
    longest_first = sorted(written, key=lambda text: (-len(text), text))
    alternatives = "|".join(map(re.escape, longest_first))
    tag_pattern = re.compile(_tag(tag), re.IGNORECASE)
    label_pattern = re.compile(rf"{DECORATION}({alternatives})", re.IGNORECASE)
    anywhere = re.compile(f"(?:{alternatives})", re.IGNORECASE)
    bare = {plain(text): gold for text, gold in written.items()} | written

    def extract(response: str) -> Extraction:
        response = nfc(response)
        found: list[str] = []
        echo = several = False
        for match in tag_pattern.finditer(response):
            line = _line(response, match.end())
            label = label_pattern.match(response, match.end())
            if label is None or not _ends(response, label.end()):
                echo = echo or plain(line) in echoed
                continue
            if len(line) <= LONGEST_LINE and _several(line, anywhere, written):
                several = True
                continue
            found.append(written[label[1].casefold()])
        if found:
            return Extraction(found[-1], True, echo, several or len(set(found)) > 1)
        for candidate in (response, response.rstrip().rpartition("\n")[2]):
            if (gold := bare.get(plain(candidate))) is not None:
                return Extraction(gold, False, echo, several)
        return Extraction(None, False, echo, several)

    return extract


def robust_text_extractor(
    tag: str, length: Length = "line", echoed: Collection[str] = PLACEHOLDERS
) -> Extractor:
    """The careful rule for texts: what follows the last tag that more than a placeholder follows.

    `length` says how much: a line, the lines up to an empty one joined by spaces, or all.
    """
    tag_pattern = re.compile(_tag(tag), re.IGNORECASE)

    def extract(response: str) -> Extraction:
        response = nfc(response)
        matches = list(tag_pattern.finditer(response))
        ends = [*(match.start() for match in matches[1:]), len(response)][: len(matches)]
        found: list[str] = []
        echo = False
        for match, end in zip(matches, ends, strict=True):
            text = _text(response[match.end() : end], length)
            if plain(text) in echoed:
                echo = True
            elif text:
                found.append(text)
        if found:
            return Extraction(found[-1], True, echo, len(set(found)) > 1)
        if matches:
            return Extraction("", False, echo)
        return Extraction(_text(response, "all" if length == "all" else "paragraph"), False)

    return extract


def nfc(text: str) -> str:
    """Canonical composition: one spelling of each Thai, Vietnamese or Burmese syllable."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def plain(text: str) -> str:
    """Folded case without outer punctuation, single spaces."""
    return " ".join(nfc(text).casefold().strip(EDGES).split())


def _tag(tag: str) -> str:
    """A pattern for the tag with any colon; an empty tag is the beginning of the response."""
    tag = nfc(tag).strip()
    if not tag:
        return r"\A"
    core = tag.rstrip(COLON + " ")
    words = r"\s+".join(map(re.escape, core.split()))
    return rf"{words}{SEPARATOR}" if core != tag else rf"{words}(?:{SEPARATOR})?"


def _line(response: str, start: int) -> str:
    """What follows `start` on its line or, where nothing does, on the next; cut if it is long."""
    piece = response[start : start + 2 * LONGEST_LINE].lstrip()
    return piece.partition("\n")[0][: LONGEST_LINE + 1]


def _several(line: str, anywhere: re.Pattern[str], written: Mapping[str, str]) -> bool:
    """Whether the line lists labels: different ones, with nothing but joining words between."""
    golds: set[str] = set()

    def take(match: re.Match[str]) -> str:
        if not (_begins(line, match.start()) and _ends(line, match.end())):
            return match[0]
        golds.add(written[match[0].casefold()])
        return " "

    rest = anywhere.sub(take, line)
    return len(golds) > 1 and not plain(JOINED.sub("", rest))


def _text(text: str, length: Length) -> str:
    """The answer without fences, quotes and markdown around it."""
    text = OPENING.sub("", text.strip())
    if text.startswith("```"):
        inner = text[3:].partition("```")[0]
        first, newline, rest = inner.partition("\n")
        text = (rest if newline and " " not in first.strip() else inner).strip()
    if length == "line":
        text = text.partition("\n")[0]
    elif length == "paragraph":
        text = " ".join(re.split(r"\n[^\S\n]*\n", text, maxsplit=1)[0].split("\n"))
    text = text.strip().strip("*").strip()
    for opening, closing in ("``", '""', "“”", "«»", "「」", "『』", "‘’"):
        if len(text) > 2 and text[0] == opening and text[-1] == closing:
            inner = text[1:-1]
            if opening not in inner and closing not in inner:
                text = inner.strip()
    return text


def _ends(text: str, end: int) -> bool:
    """Whether a label that ends at `end` is not the beginning of a longer word.

    Scripts without spaces allow any letter to follow, but not a vowel sign or tone mark.
    """
    if end >= len(text):
        return True
    if unicodedata.category(text[end]).startswith("M"):
        return False
    return not (_latin(text[end - 1]) and _latin(text[end]))


def _begins(text: str, start: int) -> bool:
    return start == 0 or not (_latin(text[start - 1]) and _latin(text[start]))


def _latin(character: str) -> bool:
    if character.isascii():
        return character.isalnum()
    return character.isdigit() or (
        character.isalpha() and unicodedata.name(character, "").startswith("LATIN")
    )
