"""Finds the final answer in a response to a mathematical problem.

Strict looks for a box, an answer element or an answer tag in any of the eleven languages; lenient
also takes the last number there is. Whether the answer is right is decided in `maths`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from singalaut.text.languages import LANGUAGES
from singalaut.text.marks import canonical
from singalaut.verify.numbers import NUMBER, plain

Mode = Literal["strict", "lenient"]
How = Literal["box", "element", "tag", "last number"]

_LONGEST_RESPONSE_CHARACTERS = 200_000
_LONGEST_ANSWER_CHARACTERS = 2_000
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ELEMENT = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_MORE_TAGS = (
    *("####", "Final answer:", "The answer is", "The final answer is", "Jawaban akhir:"),
    *("Jawabannya adalah", "Jawapan akhir:", "Đáp án:", "Đáp số:", "Kết quả:", "คำตอบคือ"),
    *("Ang sagot ay", "答案是", "答案为", "答案:", "答：", "ຄຳຕອບແມ່ນ", "ចម្លើយគឺ", "အဖြေမှာ"),
    *("விடை:", "အဖြေ:"),
)
_HEDGES = re.compile(
    r"(?<![^\W\d_])(?:or|atau|hoặc|hay là)(?![^\W\d_])|\d\s+o\s+\d"
    r"|หรือ|或|ຫຼື|ឬ|သို့မဟုတ်|அல்லது",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """The text of an answer and where it stood."""

    text: str
    how: How


def find_answer(response: str, mode: Mode = "strict") -> Answer | None:
    """The last box, else the last answer element, else what follows the last answer tag.

    A box counts wherever it stands, a tag for the rest of its line or the next line with text.
    Lenient falls back on the last number. None if there is no answer.
    """
    if len(response) > _LONGEST_RESPONSE_CHARACTERS:
        response = response[-_LONGEST_RESPONSE_CHARACTERS:]
    if (boxed := _last_box(response)) is not None:
        return Answer(boxed, "box")
    if elements := _ELEMENT.findall(response):
        return Answer(elements[-1].strip()[:_LONGEST_ANSWER_CHARACTERS], "element")
    if tagged := _after_last_tag(canonical(response)):
        return Answer(tagged, "tag")
    if mode == "lenient":
        found = [match[0] for match in NUMBER.finditer(plain(response[-20_000:]))]
        if found:
            return Answer(found[-1].strip(), "last number")
    return None


def hedged(text: str) -> bool:
    """Whether an answer offers alternatives, `72 or 73`, in one of the eleven languages."""
    return _HEDGES.search(text) is not None


def _last_box(text: str) -> str | None:
    for match in reversed(list(_BOX.finditer(text))):
        depth = 1
        for place in range(match.end(), min(len(text), match.end() + _LONGEST_ANSWER_CHARACTERS)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[match.end() : place].strip()
    return None


def _after_last_tag(text: str) -> str | None:
    matches = list(_tags().finditer(text))
    for match in reversed(matches):
        rest = text[match.end() :].lstrip(" \t*_`:：-—=\n")
        line = rest.partition("\n")[0].strip().strip("*_`! ")
        if line:
            return line[:_LONGEST_ANSWER_CHARACTERS]
    return None


@lru_cache(maxsize=1)
def _tags() -> re.Pattern[str]:
    tags = {canonical(tag) for tag in (*(x.answer_tag for x in LANGUAGES.values()), *_MORE_TAGS)}
    longest_first = sorted(tags, key=lambda tag: (-len(tag), tag))
    return re.compile(
        r"(?<![^\W\d_])(?:" + "|".join(map(_loosely, longest_first)) + ")", re.IGNORECASE
    )


def _loosely(tag: str) -> str:
    """A tag with any colon, and markdown around it: `**Jawaban** :`, `答案:`."""
    body = tag.rstrip(":：៖-")
    colon = r"\**\s?\**[:：៖-]" if body != tag else ""
    return re.escape(body).replace(r"\ ", r"\s+") + colon
