"""The rules of SEA-IFEval as SEA-HELM v1.2.1 applies them, so that its figures can be reproduced.

They differ from the native ones on purpose: keywords are patterns, not escaped; words are `\\w+`,
which breaks Tamil at every vowel sign; sentences are what `***` separates; a language is fastText's
first guess. An instruction or a language they do not know is not scored, where SEA-HELM raises or,
for keywords in Chinese, passes everything. Source: github.com/aisingapore/SEA-HELM, MIT licence.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from singalaut.verify.constraints.content import square_brackets
from singalaut.verify.constraints.layout import angle_titles
from singalaut.verify.constraints.options import CONSTRAINED_OPTIONS
from singalaut.verify.constraints.table import Check
from singalaut.verify.language import fasttext_language
from singalaut.verify.verdict import Verdict, compared

_WORD_BOUNDED = frozenset({"en", "id", "vi", "ms"})
_RAW = frozenset({"my", "ta", "tl", "th", "lo", "km"})
_NO_WORD_COUNT = frozenset({"th", "lo", "km", "my"})
_LANGUAGES = _WORD_BOUNDED | _RAW
_RELATIONS = ("exactly", "at least", "less than")
_POSTSCRIPTS = ("P.S.", "P.P.S.", "ป.ล.", "ป.ป.ล.", "பி.கு.", "பி.பி.கு.", "ປ.ລ.")


def sea_helm_check(
    instruction_id: str, parameters: Mapping[str, Any], response: str, language: str
) -> Verdict:
    """The verdict of SEA-HELM on one instruction; None where it has no rule or its rule fails."""
    rule = _RULES.get(instruction_id)
    if rule is None or language not in _LANGUAGES:
        return Verdict(None, f"SEA-HELM has no rule for `{instruction_id}` in {language}")
    given = {name: value for name, value in parameters.items() if value is not None}
    if given.get("relation", "exactly") not in _RELATIONS:
        return Verdict(None, f"SEA-HELM does not know the relation `{given['relation']}`")
    try:
        return rule(response, given, language)
    except (KeyError, ValueError, TypeError, re.error) as error:
        return Verdict(None, f"the rule of SEA-HELM fails: {type(error).__name__} {error}")


def _number_words(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    if language in _NO_WORD_COUNT:
        return Verdict(None, f"SEA-HELM counts no words in {language}")
    return _count(len(re.findall(r"\w+", response)), given, "num_words", "words")


def _number_sentences(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = sum(bool(piece.strip()) for piece in response.strip("*").split("***"))
    return _count(found, given, "num_sentences", "sentences")


def _number_paragraphs(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = sum(bool(piece.strip()) for piece in re.split(r"\s?\*\*\*\s?", response))
    return compared(found, "exactly", int(given["num_paragraphs"]), "paragraphs")


def _placeholders(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = sum(bool(text.strip("[").strip("]").strip()) for text in square_brackets(response))
    return compared(found, "at least", int(given["num_placeholders"]), "placeholders")


def _postscript(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    marker = given["postscript_marker"]
    if marker not in _POSTSCRIPTS:
        raise KeyError(marker)
    letters = [re.escape(letter) for letter in marker.lower().rstrip(".").split(".")]
    found = re.search(r"\.\s?".join(letters) + r"\.", response.lower())
    return Verdict(found is not None, f"`{marker}` {'found' if found else 'not found'}")


def _highlights(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    texts = re.findall(r"\*[^\n\*]*\*", response) + re.findall(r"\*\*[^\n\*]*\*\*", response)
    found = sum(bool(text.strip("*").strip()) for text in texts)
    return compared(found, "at least", int(given["num_highlights"]), "highlights")


def _bullets(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = len(re.findall(r"^[^\S\n]*[*-] \*?\*?[^\*\n\s].*$", response, re.MULTILINE))
    return compared(found, "exactly", int(given["num_bullets"]), "bullet points")


def _sections(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    opened = _pattern(rf"\b{given['section_title']}\s+[\d|\w]+\b")
    found = len(opened.findall(response))
    return compared(found, "exactly", int(given["num_sections"]), "sections")


def _json(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        if text.startswith(fence):
            text = text.removeprefix(fence).removesuffix("```").strip()
            break
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return Verdict(False, "not JSON")
    return Verdict(True, "JSON")


def _options(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = any(option in response for option in CONSTRAINED_OPTIONS[language])
    return Verdict(found, f"{'one' if found else 'none'} of the allowed answers appears")


def _title(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = any(angle_titles(response))
    return Verdict(found, "title found" if found else "no title")


def _first_word(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = response.strip().lower().startswith(given["first_word"].lower())
    return Verdict(found, f"{'begins' if found else 'does not begin'} so")


def _end(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = response.strip().lower().endswith(given["end_phrase"].lower())
    return Verdict(found, f"{'ends' if found else 'does not end'} so")


def _quotation(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    text = response.strip()
    wrapped = text.startswith('"') and text.endswith('"') and bool(text.strip('"').strip())
    return Verdict(wrapped, "wrapped" if wrapped else "not wrapped in quotation marks")


def _existence(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    missing = [word for word in given["keywords"] if not _word(word, language).search(response)]
    return Verdict(not missing, f"missing: {', '.join(missing)}" if missing else "all appear")


def _forbidden(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = [word for word in given["forbidden_words"] if _word(word, language).search(response)]
    return Verdict(not found, f"forbidden: {', '.join(found)}" if found else "none appears")


def _frequency(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    bounded = language in _WORD_BOUNDED
    keyword = rf"\b{given['keyword']}\b" if bounded else given["keyword"]
    return _count(len(_pattern(keyword, re.IGNORECASE).findall(response)), given, "frequency", "")


def _number_frequency(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    return _count(len(_pattern(str(given["number"])).findall(response)), given, "frequency", "")


def _repeat(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    text, prompt = response.strip().lower(), given["prompt_to_repeat"].strip().lower()
    ok = text.startswith(prompt) and bool(text.removeprefix(prompt).strip())
    return Verdict(ok, "repeated and answered" if ok else "not repeated, or not answered")


def _two(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    pieces = response.strip().split("******")
    found = sum(bool(piece.strip().strip(string.punctuation)) for piece in pieces)
    return compared(found, "exactly", 2, "responses")


def _language(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    wanted = given["response_language"] if "response_language" in given else given["language"]
    found = fasttext_language(response)
    ok = found == wanted or (wanted == "id" and found == "ms")
    return Verdict(ok, f"fastText says {found}")


def _count(found: int, given: Mapping[str, Any], name: str, what: str) -> Verdict:
    return compared(found, given["relation"], int(given[name]), what or "times")


def _word(word: str, language: str) -> re.Pattern[str]:
    if language in _WORD_BOUNDED:
        return _pattern(rf"\b{word}\b", re.IGNORECASE)
    return _pattern(word)


@lru_cache(maxsize=4096)
def _pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(pattern, flags)


_RULES: dict[str, Check] = {
    "length_constraints:number_words": _number_words,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "detectable_content:postscript": _postscript,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_format:title": _title,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:json_format": _json,
    "detectable_format:constrained_response": _options,
    "startend:first_word": _first_word,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:number_frequency": _number_frequency,
    "combination:repeat_prompt": _repeat,
    "combination:two_responses": _two,
    "language:response_language": _language,
}
