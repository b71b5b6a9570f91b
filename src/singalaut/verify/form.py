"""The form of an answer, whatever it says: its place, its length, how much it repeats itself."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from singalaut.text.languages import language as known_language
from singalaut.text.marks import canonical
from singalaut.text.segmentation import graphemes, is_unspaced, sentences, words
from singalaut.verify.answers import How, find_answer
from singalaut.verify.verdict import Verdict

Form = Literal["box", "element", "tag"]
Unit = Literal["words", "sentences", "characters"]

_MARKS = {"box": re.compile(r"\\boxed\s*\{"), "element": re.compile(r"<answer>", re.IGNORECASE)}
_REASONING = re.compile(r"\s*<think>(.*?)</think>\s*(?=\S)", re.DOTALL)
_PIECE = re.compile(r"[^\W\d_]+|\d|\S")
_LONGEST_TAIL_CHARACTERS = 4000


def answer_form(response: str, form: Form, language: str) -> Verdict:
    """One final answer, in the form asked for, with something in it.

    A box is `\\boxed{…}`, an element `<answer>…</answer>`, a tag the language's own, `Jawaban: …`.
    """
    pattern = _MARKS.get(form) or _tag_pattern(language)
    text = canonical(response) if form == "tag" else response
    found = len(pattern.findall(text))
    if found != 1:
        return Verdict(False, f"{found} answers as {form}, wanted 1")
    answer = find_answer(response)
    wanted: How = form
    if answer is None or answer.how != wanted or not any(map(str.isalnum, answer.text)):
        return Verdict(False, f"the {form} is empty or not closed")
    return Verdict(True, f"one answer as {form}")


def reasoning_form(response: str) -> Verdict:
    """The response opens with one block `<think>…</think>` that says something; text follows."""
    match = _REASONING.match(response)
    ok = (
        match is not None
        and any(map(str.isalnum, match[1]))
        and response.count("<think>") == response.count("</think>") == 1
    )
    return Verdict(ok, "one block of reasoning, then text" if ok else "no single opening block")


def length(response: str, unit: Unit, language: str) -> int:
    """How many words, sentences or characters (grapheme clusters) a response has."""
    if unit == "words":
        return len(words(response))
    if unit == "sentences":
        return len(sentences(response, language))
    return len(graphemes(response))


def repeated_share(response: str, size: int = 4) -> float:
    """Share (0 to 1) of the n-grams that were there before: 1 - distinct / all.

    Of words, or of characters where the script has no spaces and of twice the size. 0 for a text
    shorter than one n-gram.
    """
    pieces: list[str] = []
    unspaced = 0
    for piece in _PIECE.findall(response):
        if is_unspaced(piece[0]):
            pieces.extend(piece)
            unspaced += len(piece)
        else:
            pieces.append(piece.casefold())
    if 2 * unspaced > len(pieces):
        size *= 2
    total = len(pieces) - size + 1
    if total < 1:
        return 0.0
    grams = Counter(tuple(pieces[start : start + size]) for start in range(total))
    return 1.0 - len(grams) / total


def looping_tail(response: str, least_characters: int = 2) -> tuple[str, int]:
    """What a response repeats at its end without a break, and how many times; ("", 1) for nothing.

    Of all periods of the last 4,000 characters, the one that covers most of them.
    """
    tail = response[-_LONGEST_TAIL_CHARACTERS:][::-1]
    matched = _matches_with_start(tail)
    best, covered = ("", 1), 0
    for period in range(max(1, least_characters), len(tail) // 2 + 1):
        times = 1 + matched[period] // period
        if times > 1 and times * period > covered:
            best, covered = (tail[:period][::-1], times), times * period
    return best


def _matches_with_start(text: str) -> list[int]:
    """For each place, how many characters from there on equal those from the start (Z function)."""
    lengths = [0] * len(text)
    left = right = 0
    for place in range(1, len(text)):
        if place < right:
            lengths[place] = min(right - place, lengths[place - left])
        while (
            place + lengths[place] < len(text)
            and text[lengths[place]] == text[place + lengths[place]]
        ):
            lengths[place] += 1
        if place + lengths[place] > right:
            left, right = place, place + lengths[place]
    return lengths


def _tag_pattern(language: str) -> re.Pattern[str]:
    tag = canonical(known_language(language).answer_tag).rstrip(":：៖-")
    return re.compile(rf"(?<![^\W\d_]){re.escape(tag)}\**\s?\**[:：៖-]", re.IGNORECASE)
