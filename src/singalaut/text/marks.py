"""Punctuation of the eleven languages as data: what ends a sentence, what is a comma, a quote.

Also `canonical`, the one spelling in which texts are compared. What the marks divide is found in
`segmentation`.
"""

from __future__ import annotations

import re
import unicodedata

COMMAS = ",，、،؛၊﹐﹑､︐︑՝߸"
FULL_STOPS = ".。．｡။។៕।॥"
SENTENCE_ENDS = FULL_STOPS + "!?！？…‼⁇⁈⁉؟"
# Opening and closing double quotation marks; the same mark may do both.
DOUBLE_QUOTES = (
    ('"', '"'),
    ("“", "”"),
    ("„", "“"),
    ("„", "”"),
    ("”", "”"),
    ("«", "»"),
    ("「", "」"),
    ("『", "』"),
    ("＂", "＂"),
    ("〝", "〞"),
    ("《", "》"),
)
REPETITION_SIGNS = "ๆໆៗ々"

_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
# Vowel am, written as one sign or as two: Thai ำ, Lao ຳ; a tone mark may stand between the two.
_SPLIT_AM = (
    (re.compile("\u0e4d([\u0e48-\u0e4b]?)\u0e32"), "\\1\u0e33"),
    (re.compile("\u0ecd([\u0ec8-\u0ecb]?)\u0eb2"), "\\1\u0eb3"),
)


def canonical(text: str) -> str:
    """One spelling of what looks alike: NFC, no invisible break marks, vowel am as one sign."""
    if text.isascii():
        return text
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    for split, joined in _SPLIT_AM:
        text = split.sub(joined, text)
    return text
