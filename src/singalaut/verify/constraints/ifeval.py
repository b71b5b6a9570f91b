"""The rules of the original English IFEval, for figures that compare with published ones.

They are looser than the native ones: a keyword counts inside any word, a request repeated without
an answer passes, there may be more sections than asked for. Two parts stand in for libraries that
IFEval uses: fastText for `langdetect`, and our sentences, with the numbers of a list counted as
Punkt does, for NLTK. Only English is scored, and only the 25 instructions of IFEval.
Source: arXiv 2311.07911.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from singalaut.text.segmentation import words
from singalaut.verify.constraints.content import square_brackets
from singalaut.verify.constraints.layout import angle_titles
from singalaut.verify.constraints.length import count_sentences
from singalaut.verify.constraints.options import CONSTRAINED_OPTIONS
from singalaut.verify.constraints.table import Check
from singalaut.verify.language import fasttext_language
from singalaut.verify.verdict import Verdict, compared

_LIST_NUMBER = re.compile(r"^[^\S\n]*\d+\.(?=\s)", re.MULTILINE)


def ifeval_check(
    instruction_id: str, parameters: Mapping[str, Any], response: str, language: str
) -> Verdict:
    """The verdict of IFEval on one instruction; None where it has no rule or its rule fails."""
    rule = _RULES.get(instruction_id)
    if rule is None or language != "en":
        return Verdict(None, f"IFEval has no rule for `{instruction_id}` in {language}")
    try:
        return rule(response, parameters, language)
    except re.error as error:
        return Verdict(None, f"the rule of IFEval fails: {error}")


def _existence(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    missing = [word for word in given["keywords"] if not _pattern(word).search(response)]
    return Verdict(not missing, f"missing: {', '.join(missing)}" if missing else "all appear")


def _frequency(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = len(_pattern(given["keyword"].strip()).findall(response))
    return compared(found, given["relation"], given["frequency"], "times")


def _forbidden(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = [word for word in given["forbidden_words"] if _bounded(word).search(response)]
    return Verdict(not found, f"forbidden: {', '.join(found)}" if found else "none appears")


def _letters(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = response.lower().count(given["letter"].lower())
    return compared(found, given["let_relation"], given["let_frequency"], "times")


def _language(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = fasttext_language(response)
    return Verdict(found == given["language"], f"fastText says {found}")


def _words(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = len(re.findall(r"\w+", response))
    return compared(found, given["relation"], given["num_words"], "words")


def _sentences(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = count_sentences(response, "en") + len(_LIST_NUMBER.findall(response))
    return compared(found, given["relation"], given["num_sentences"], "sentences")


def _paragraphs(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    pieces = re.split(r"\s?\*\*\*\s?", response)
    if not all(piece.strip() for piece in pieces[1:-1]):
        return Verdict(False, "an empty paragraph between dividers")
    found = sum(bool(piece.strip()) for piece in pieces)
    return compared(found, "exactly", given["num_paragraphs"], "paragraphs")


def _nth_paragraph(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    pieces = response.split("\n\n")
    found = sum(bool(piece.strip()) for piece in pieces)
    nth = given["nth_paragraph"]
    if found != given["num_paragraphs"] or nth > found or not pieces[nth - 1].strip():
        return compared(found, "exactly", given["num_paragraphs"], "paragraphs")
    first = pieces[nth - 1].split()[0].lstrip("'").lstrip('"').lower()
    first = re.split(r"[.,?!'\"]", first)[0]
    return Verdict(first == given["first_word"].lower(), f"the first word is `{first}`")


def _placeholders(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = len(square_brackets(response))
    return compared(found, "at least", given["num_placeholders"], "placeholders")


def _postscript(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    marker = given["postscript_marker"].strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, marker.lower())
    found = re.search(pattern, response.lower())
    return Verdict(found is not None, f"`{marker}` {'found' if found else 'not found'}")


def _bullets(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = len(re.findall(r"^[^\S\n]*\*[^\*].*$", response, re.MULTILINE))
    found += len(re.findall(r"^[^\S\n]*-.*$", response, re.MULTILINE))
    return compared(found, "exactly", given["num_bullets"], "bullet points")


def _options(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = any(option in response for option in CONSTRAINED_OPTIONS["en"])
    return Verdict(found, f"{'one' if found else 'none'} of the allowed answers appears")


def _highlights(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    single = re.findall(r"\*([^\n\*]*)\*", response)
    double = re.findall(r"\*\*([^\n\*]*)\*\*", response)
    found = sum(bool(text.strip()) for text in (*single, *double))
    return compared(found, "at least", given["num_highlights"], "highlights")


def _sections(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = len(re.findall(given["section_title"].strip() + r"\s?\d+", response))
    return compared(found, "at least", given["num_sections"], "sections")


def _json(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return Verdict(False, "not JSON")
    return Verdict(True, "JSON")


def _title(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = any(angle_titles(response))
    return Verdict(found, "title found" if found else "no title")


def _two(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    pieces = [piece.strip() for piece in response.split("******")]
    said = [piece for piece in pieces if piece]
    ok = all(pieces[1:-1]) and len(said) == 2 and said[0] != said[1]
    return Verdict(ok, f"{len(said)} responses")


def _repeat(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    ok = response.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())
    return Verdict(ok, "repeated" if ok else "not repeated")


def _end(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    ok = response.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())
    return Verdict(ok, f"{'ends' if ok else 'does not end'} so")


def _quotation(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    text = response.strip()
    ok = len(text) > 1 and text[0] == '"' == text[-1]
    return Verdict(ok, "wrapped" if ok else "not wrapped in quotation marks")


def _capital_words(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    found = sum(word.partition("'")[0].isupper() for word in words(response))
    return compared(found, given["capital_relation"], given["capital_frequency"], "capital words")


def _capital(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    ok = response.isupper() and fasttext_language(response) == "en"
    return Verdict(ok, "English capitals" if ok else "not English capitals")


def _lowercase(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    ok = response.islower() and fasttext_language(response) == "en"
    return Verdict(ok, "small English letters" if ok else "not small English letters")


def _comma(response: str, given: Mapping[str, Any], language: str) -> Verdict:
    return Verdict("," not in response, f"{response.count(',')} commas")


@lru_cache(maxsize=4096)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


def _bounded(word: str) -> re.Pattern[str]:
    return _pattern(rf"\b{word}\b")


_RULES: dict[str, Check] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_words": _words,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _options,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capital,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _comma,
}
