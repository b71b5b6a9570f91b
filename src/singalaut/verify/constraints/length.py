"""Constraints on how many words, sentences and paragraphs a response has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from singalaut.text.marks import SENTENCE_ENDS
from singalaut.text.segmentation import sentences, words
from singalaut.verify.constraints.matching import starts_with
from singalaut.verify.verdict import Verdict, compared

_BOLD_ITALIC = re.compile(r"(?<!\S)\*\*\*(?=\S)([^*\n]+)(?<=\S)\*\*\*(?![^\s.,!?:;])")
_DIVIDER = re.compile(r"(?<!\*)\*\*\*(?!\*)")
_ENDS_MARKED = re.compile(rf"[{re.escape(SENTENCE_ENDS)}][^\w\s]*$")
_INNER_HYPHEN = re.compile(r"(?<=\w)[-‐‑](?=\w)")
_UNMARKED_SENTENCES = frozenset({"th", "lo"})


def number_words(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """The number of words, found by a dictionary where the script has no spaces.

    In English the parts of a hyphenated compound count, as in IFEval; in languages that double
    words with a hyphen (`anak-anak`) the whole is one.
    """
    found = len(words(response))
    if language == "en":
        found += len(_INNER_HYPHEN.findall(response))
    return compared(found, parameters["relation"], parameters["num_words"], "words")


def number_sentences(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """The number of sentences, as `count_sentences` finds them."""
    found = count_sentences(response, language)
    return compared(found, parameters["relation"], parameters["num_sentences"], "sentences")


def count_sentences(text: str, language: str) -> int:
    """How many sentences `text` has.

    A heading or an item without a mark at its end is none by itself. In Thai and Lao, which need
    not mark where sentences end, every piece counts, and dividers `***` decide if there are any.
    """
    pieces = _divided(text)
    if language not in _UNMARKED_SENTENCES:
        return sum(_marked_sentences(sentences(piece, language)) for piece in pieces)
    if len(pieces) > 1:
        return sum(_says_something(piece) for piece in pieces)
    return len(sentences(text, language))


def number_paragraphs(response: str, parameters: Mapping[str, Any], language: str) -> Verdict:
    """The number of paragraphs that the divider `***` separates; empty ones do not count."""
    found = sum(bool(piece.strip()) for piece in _divided(response))
    return compared(found, "exactly", parameters["num_paragraphs"], "paragraphs")


def nth_paragraph_first_word(
    response: str, parameters: Mapping[str, Any], language: str
) -> Verdict:
    """Paragraphs between empty lines: so many of them, and one begins with a given word."""
    paragraphs = [piece for piece in re.split(r"\n\s*\n", response) if piece.strip()]
    wanted, nth = parameters["num_paragraphs"], parameters["nth_paragraph"]
    if len(paragraphs) != wanted:
        return compared(len(paragraphs), "exactly", wanted, "paragraphs")
    ok = starts_with(paragraphs[nth - 1], parameters["first_word"], language)
    said = "begins" if ok else "does not begin"
    return Verdict(ok, f"paragraph {nth} {said} with `{parameters['first_word']}`")


def _marked_sentences(found: list[str]) -> int:
    """Sentences that end in a mark, and the last one with or without."""
    marked = sum(_ENDS_MARKED.search(sentence) is not None for sentence in found)
    return marked + (bool(found) and _ENDS_MARKED.search(found[-1]) is None)


def _divided(text: str) -> list[str]:
    """The pieces between three asterisks, but not those that mark bold italics."""
    return _DIVIDER.split(_BOLD_ITALIC.sub(r"\1", text)) if "***" in text else [text]


def _says_something(piece: str) -> bool:
    return any(character.isalnum() for character in piece)
