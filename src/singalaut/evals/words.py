"""Words of a text as the official metrics count them: for token F1 and for ROUGE-L.

Both are kept as the published scores have them, with their oddities: F1 knows words by spaces
alone and drops ASCII punctuation; ROUGE-L splits by kinds of characters, Burmese by syllables.
Thai and Chinese need a dictionary.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from singalaut.text.segmentation import tokens

Words = Callable[[str], list[str]]
# characters cut at once: time grows with their square, and no answer within a task's limits has
# so many
LONGEST_THAI = 20_000
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
CJK = re.compile(
    "([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f])"
)
# letters with their marks, numbers with theirs, any other character by itself
ASCII_PIECES = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")
STAND_INS = {"\u2581": "_", "\uffe8": "│", "\uffed": "■"}  # that the reference tokenizer reserves
ASAT, DOT_BELOW, STACKER = "\u103a", "\u1037", "\u1039"
DEPENDENT = "\u102b-\u1032\u1036-\u1038\u103a-\u103e"
BURMESE_UNIT = re.compile(f"[\\s\\S][{DEPENDENT}]*")


def f1_words(language: str) -> Words:
    """Words for token F1 and exact match: small letters, no ASCII punctuation, split at spaces."""
    cut = {"th": _thai, "zh": _chinese}.get(language)

    def words(text: str) -> list[str]:
        if cut is not None:
            text = " ".join(cut(text))
        return text.lower().translate(NO_PUNCTUATION).split()

    return words


def rouge_words(language: str) -> Words:
    """Words for ROUGE-L: small letters, no punctuation; Thai by dictionary, Burmese by syllable."""
    cut = {"th": _thai, "my": burmese_syllables}.get(language)

    def words(text: str) -> list[str]:
        cleaned = " ".join(_clean(text.lower().strip()).split())
        found = cut(cleaned) if cut is not None else []
        if not found and cleaned:
            found = CJK.sub(r" \1 ", " ".join(pieces(cleaned))).split()
        return [word for word in found if word]

    return words


def pieces(text: str) -> list[str]:
    """Runs of letters, runs of numbers and single other characters, each with its marks."""
    if text.isascii():
        return ASCII_PIECES.findall(text)
    made: list[str] = []
    before = " "  # class of what the last piece holds; a space ends every piece
    for character in text:
        kind = _kind(character)
        if kind == " ":
            before = " "
        elif kind == "M":
            if made and before != " ":
                made[-1] += character
            else:  # a mark with nothing to stand on
                made.append(("％0020" if made else "") + character)
                before = "M"
        elif kind == before and kind in "LN":
            made[-1] += character
        else:
            made.append(STAND_INS.get(character, character))
            before = kind
    return made


def burmese_syllables(text: str) -> list[str]:
    """Syllables by their structure: a base with its signs, final consonants, stacked pairs.

    Source: Ding et al. 2019, 10.1145/3325885, as the multilingual ROUGE of XL-Sum applies it.
    """
    text = "".join(
        text.replace("\u200c", " ").replace(DOT_BELOW + ASAT, ASAT + DOT_BELOW).lower().split()
    )
    units = BURMESE_UNIT.findall(text)
    for place in range(1, len(units)):
        if ASAT in units[place] and len(units[place]) < 4:
            units[place - 1] += units[place]
            units[place] = ""
    kept = " ".join(unit for unit in units if unit)
    return kept.replace(f" {STACKER} ", STACKER).split()


def _clean(text: str) -> str:
    """Without control characters and punctuation; the latter ends a word."""
    made = []
    for character in text:
        kind = _kind(character)
        if kind == "P":
            made.append(" ")
        elif kind != "C":
            made.append(character if kind != " " else " ")
    return "".join(made)


@lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    """L letter, N number, M mark, P punctuation, C control or invalid, space, S anything else."""
    if character in " \t\n\r":
        return " "
    if character in string.punctuation:
        return "P"
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    if character == "\ufffd" or category[0] == "C":
        return "C"
    return category[0] if category[0] in "LNMP" else "S"


def words_used() -> dict[str, str]:
    """What cuts the languages without spaces, for results to name."""
    return {"th": "pythainlp newmm", "zh": "ICU" if _jieba() is None else "jieba"}


def _thai(text: str) -> list[str]:
    from pythainlp.tokenize import word_tokenize

    parts = [text[place : place + LONGEST_THAI] for place in range(0, len(text), LONGEST_THAI)]
    return [word for part in parts for word in word_tokenize(part, engine="newmm")]


def _chinese(text: str) -> list[str]:
    """The published scores use jieba; where it is not installed, ICU's dictionary stands in."""
    jieba = _jieba()
    return tokens(text) if jieba is None else list(jieba.cut(text))


@cache
def _jieba() -> Any:
    try:
        import jieba
    except ImportError:
        return None
    jieba.setLogLevel(60)
    return jieba
