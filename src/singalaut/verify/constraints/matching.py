"""Where a word or phrase stands in a text, by the rules of the language.

In scripts with spaces a word ends where its letters end; Indonesian and Malay clitics (`suhunya`),
the Filipino linker (`umagang`), Tamil endings and, where `inflected`, the English -s may follow.
In Thai, Lao, Khmer and Burmese a word also counts inside a longer one if what is left is words
again: `เช้า` in `ตอนเช้า`, not `ตา` in `ตาม`. That cannot tell compounds from chance: `ตา` counts in
`ตาราง` too. In Chinese every occurrence counts. Case, invisible characters and two spellings of
the same vowel do not matter.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from functools import lru_cache

from singalaut.text.marks import REPETITION_SIGNS, canonical
from singalaut.text.segmentation import is_unspaced, tokens

_SUFFIX = {
    "id": r"(?:nya|ku|mu|lah|kah|pun)?",
    "ms": r"(?:nya|ku|mu|lah|kah|pun)?",
    "tl": r"(?:ng|g|['’][ty])?",
}
_SPACED_LETTER = (
    r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)
_MARK = r"[\u0300-\u036f\u0b82\u0bbe-\u0bcd\u0bd7]"
_NO_LETTER_BEFORE = f"(?<!{_SPACED_LETTER})(?<!{_MARK})"
_NO_LETTER_AFTER = f"(?!{_SPACED_LETTER})"
_LEADING_VOWELS = frozenset("เแโใไເແໂໃໄ")
# What cannot be a word of its own: one consonant without a vowel, or with a sign that silences it.
_BARE = re.compile("[ກ-ໝ]|[ក-អ](?:\u17d2[ក-អ])*[\u17c6-\u17d1]?|[က-အ]|[ก-ฮ]\u0e4c?")
_BURMESE_FINAL = re.compile("[က-အ]\u1037?[\u103a\u1039]")  # closes the syllable before it


def find(
    text: str, keyword: str, language: str, *, inflected: bool = False
) -> list[tuple[int, int]]:
    """The places of `keyword` in `plain(text)`, from left to right, without overlap."""
    text, keyword = plain(text), plain(keyword).strip()
    if not keyword or keyword not in text:
        return []
    if not is_unspaced(keyword[0]) and not is_unspaced(keyword[-1]):
        pattern = _spaced_pattern(keyword, language, inflected)
        return [match.span() for match in pattern.finditer(text)]
    spans = _substrings(text, keyword)
    if language == "zh" or _is_chinese(keyword[0]):
        return spans
    spans = [span for span in spans if _between_letters(text, *span)]
    if not spans:
        return []
    edges = _edges(text)
    return [span for span in spans if _leaves_words(text, edges, *span)]


def appears(text: str, keyword: str, language: str, *, inflected: bool = False) -> bool:
    """Whether `keyword` is anywhere in `text`: the first place is enough."""
    body, wanted = plain(text), plain(keyword).strip()
    if not wanted or wanted not in body:
        return False
    if is_unspaced(wanted[0]) or is_unspaced(wanted[-1]):
        return bool(find(text, keyword, language))
    return _spaced_pattern(wanted, language, inflected).search(body) is not None


def starts_with(text: str, phrase: str, language: str) -> bool:
    """Whether `text` begins with `phrase`, quotation and markdown marks before it set aside."""
    body = plain(text).lstrip("\"'“”‘’«»「『*_#>` \n\t([")
    phrase = plain(phrase).strip()
    if not phrase or not body.startswith(phrase):
        return False
    if not is_unspaced(phrase[-1]):
        return re.compile(re.escape(phrase) + _NO_LETTER_AFTER).match(body) is not None
    return (0, len(phrase)) in find(body[: len(phrase) + 200], phrase, language)


@lru_cache(maxsize=64)
def plain(text: str) -> str:
    """`text` as it is compared: one spelling, no case."""
    return canonical(text).casefold()


@lru_cache(maxsize=4096)
def _spaced_pattern(keyword: str, language: str, inflected: bool) -> re.Pattern[str]:
    first, last = keyword[0], keyword[-1]
    before = _NO_LETTER_BEFORE if first.isalnum() else ""
    if not (last.isalnum() or unicodedata.category(last)[0] == "M"):
        after = ""
    elif "\u0b80" <= last <= "\u0bff":
        after = f"(?!{_MARK})"
    else:
        suffix = "(?:e?s)?" if inflected and language == "en" else _SUFFIX.get(language, "")
        after = f"{suffix}{_NO_LETTER_AFTER}(?!{_MARK})"
    return re.compile(before + re.escape(keyword).replace(r"\ ", r"\s+") + after)


def _substrings(text: str, keyword: str) -> list[tuple[int, int]]:
    spans, start = [], text.find(keyword)
    while start >= 0:
        spans.append((start, start + len(keyword)))
        start = text.find(keyword, start + len(keyword))
    return spans


def _between_letters(text: str, start: int, end: int) -> bool:
    """Whether neither edge cuts a letter from its signs or a vowel from its consonant."""
    if end < len(text) and unicodedata.category(text[end])[0] == "M":
        return False
    if start == 0:
        return True
    stacks = text[start - 1] in "\u17d2\u1039"
    return not stacks and text[start - 1] not in _LEADING_VOWELS


@lru_cache(maxsize=8)
def _edges(text: str) -> list[int]:
    """Where the words of `text` begin and end."""
    edges, end = [0], 0
    for token in tokens(text):
        end += len(token)
        edges.append(end)
    return edges


def _leaves_words(text: str, edges: list[int], start: int, end: int) -> bool:
    first = edges[bisect_right(edges, start) - 1]
    last = edges[min(bisect_left(edges, end), len(edges) - 1)]
    return _is_made_of_words(text[first:start]) and _is_made_of_words(text[end:last])


def _is_made_of_words(rest: str) -> bool:
    rest = rest.strip(REPETITION_SIGNS)
    if not rest:
        return True
    if _BARE.fullmatch(rest) or _BURMESE_FINAL.match(rest):
        return False
    if "\u0e00" <= rest[0] <= "\u0e7f":
        known = _thai_dictionary()
        return all(len(token) > 1 and token in known for token in tokens(rest))
    return True


@lru_cache(maxsize=1)
def _thai_dictionary() -> frozenset[str]:
    from pythainlp.corpus import thai_words

    return frozenset(thai_words())


def _is_chinese(character: str) -> bool:
    return "\u3005" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff"
