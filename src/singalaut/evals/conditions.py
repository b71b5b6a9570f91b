"""What is odd about a response, whatever it answers: each oddity has its own counter.

An odd response is scored like any other; the counts say what a score is made of.
"""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\u200f\u202b\u202e\u2067\ufb1d-\ufdff\ufe70-\ufefc]")
LETTER = re.compile(r"[^\W_]")
OVERSIZED_CHARACTERS = 100_000
LOOP_CHARACTERS, LOOP_TIMES = 32, 4
ENOUGH_LETTERS = 20  # to tell a language by

CONDITIONS = (
    "empty",  # nothing but white space
    "wordless",  # no letter and no digit: emoji, punctuation
    "control_characters",  # NUL and the like, or what could not be decoded
    "right_to_left",  # Hebrew or Arabic letters, or marks that turn the direction
    "oversized",  # over 100,000 characters
    "truncated",  # cut at the longest answer allowed
    "looping",  # cut, and its end stands in it four times
    "untagged",  # an answer, but not after the tag
    "echoed",  # the placeholder of the prompt after the tag
    "contradictory",  # several answers
    "unextractable",  # no answer
    "wrong_language",
    "unchecked",  # instructions whose check does not apply or failed
)


def conditions(text: str, finish_reason: str) -> list[str]:
    """The oddities that the text alone shows."""
    found = []
    if not LETTER.search(text):
        found.append("empty" if not text or text.isspace() else "wordless")
    if CONTROL.search(text):
        found.append("control_characters")
    if not text.isascii() and RIGHT_TO_LEFT.search(text):
        found.append("right_to_left")
    if len(text) > OVERSIZED_CHARACTERS:
        found.append("oversized")
    if finish_reason == "length":
        found.append("truncated")
        tail = text[-LOOP_CHARACTERS:]
        if len(tail) == LOOP_CHARACTERS and text.count(tail) >= LOOP_TIMES:
            found.append("looping")
    return found


def enough_letters(text: str) -> bool:
    """Whether the text is long enough to tell its language."""
    if len(text) < ENOUGH_LETTERS:
        return False
    return sum(map(str.isalpha, text[: 10 * ENOUGH_LETTERS])) >= ENOUGH_LETTERS // 2
