"""Finds the answer in a response, by the rules of SEA-HELM, made safe against echoes.

Pure functions of text: whether the answer is right is for the caller to say. Two things differ
from SEA-HELM. A label counts only where it ends: `Jawaban: ANSWER` does not answer `A`. And a
placeholder that the prompt itself shows after the tag is no answer. Text is compared after NFC.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass

PLACEHOLDERS = frozenset({"answer", "option", "translation", "summary"})
EDGES = string.punctuation + string.whitespace


@dataclass(frozen=True)
class Extraction:
    """`answer` is a gold label or a text; `extracted`: it stood after the tag as asked."""

    answer: str | None
    extracted: bool


def echoes(template: str, tag: str) -> frozenset[str]:
    """What the prompt's template writes after the tag on the same line, and usual placeholders."""
    pattern = re.compile(re.escape(nfc(tag)) + r"[^\S\n]*([^\n]*)")
    shown = {plain(match[1]) for match in pattern.finditer(nfc(template))}
    return PLACEHOLDERS | (shown - {""})


def extract_label(
    response: str, tag: str, labels: Mapping[str, str], echoed: Collection[str] = PLACEHOLDERS
) -> Extraction:
    """The gold label that the response gives: the first label right after a tag.

    Tag, then whitespace or `*`, then a label, in any case. Without one, the whole response counts
    if it is a label, save for case and outer ASCII punctuation; `answer` is None otherwise.
    """
    response = nfc(response)
    gold = {nfc(text.strip()).casefold(): label for label, text in labels.items()}
    longest_first = sorted(
        (nfc(text.strip()) for text in labels.values()), key=lambda t: (-len(t), t)
    )
    alternatives = "|".join(map(re.escape, longest_first))
    pattern = re.compile(rf"{re.escape(nfc(tag))}[\s*]*({alternatives})", re.IGNORECASE)
    for match in pattern.finditer(response):
        line = response[match.start(1) :].partition("\n")[0]
        echo = plain(line) in echoed and plain(line) != plain(match[1])
        label = gold.get(match[1].casefold())
        if label is not None and not echo and _ends(response, match.end()):
            return Extraction(label, True)
    whole = {plain(text): label for label, text in labels.items()}
    return Extraction(whole.get(plain(response) or response), False)


def extract_text(response: str, tag: str, echoed: Collection[str] = PLACEHOLDERS) -> Extraction:
    """The text that the response gives: the rest of the line after the first tag.

    Tag, then whitespace, backticks or `*`, then the text. Without a tag the whole response counts.
    """
    response, tag = nfc(response), nfc(tag)
    empty = False
    for match in re.finditer(re.escape(tag), response):
        rest = response[match.end() :].lstrip(string.whitespace + "`*")
        text = rest.partition("\n")[0].strip()
        if text and not text.startswith(tag) and plain(text) not in echoed:
            return Extraction(text, True)
        empty = empty or not text
    return Extraction("" if empty else response.strip(), False)


def nfc(text: str) -> str:
    """Canonical composition: one spelling of each Thai, Vietnamese or Burmese syllable."""
    return unicodedata.normalize("NFC", text)


def plain(text: str) -> str:
    """Lower case without outer ASCII punctuation, single spaces."""
    return " ".join(nfc(text).lower().strip(EDGES).split())


def _ends(text: str, end: int) -> bool:
    """Whether a label that ends at `end` is not the beginning of a longer word.

    Scripts without spaces allow any letter to follow, but not a vowel sign or tone mark.
    """
    if end >= len(text):
        return True
    if unicodedata.category(text[end]).startswith("M"):
        return False
    return not (_latin(text[end - 1]) and _latin(text[end]))


def _latin(character: str) -> bool:
    return character.isdigit() or (
        character.isalpha() and unicodedata.name(character, "").startswith("LATIN")
    )
