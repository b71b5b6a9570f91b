"""Every instruction by name: its check and what it must be told.

The names are those of IFEval (arXiv 2311.07911) and, for two more, of SEA-IFEval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from singalaut.verify.constraints import (
    case,
    combination,
    content,
    ends,
    keywords,
    layout,
    length,
    punctuation,
    response_language,
)
from singalaut.verify.verdict import Verdict

Check = Callable[[str, Mapping[str, Any], str], Verdict]
Kind = Literal["count", "text", "texts", "number", "letter", "relation", "language"]
RELATIONS = ("at least", "less than", "exactly", "at most", "more than")


@dataclass(frozen=True)
class Instruction:
    """`needs` and `may_have` name parameters and their kind; `needs_case`: upper and lower."""

    check: Check
    needs: Mapping[str, Kind]
    may_have: Mapping[str, Kind]
    needs_case: bool = False


# Other names under which data sets give the same parameter.
PARAMETER_ALIASES = {
    "response_language": "language",
    "section_spliter": "section_title",
    "section_splitter": "section_title",
}


def _instruction(
    check: Check,
    needs: Mapping[str, Kind] | None = None,
    may_have: Mapping[str, Kind] | None = None,
    *,
    needs_case: bool = False,
) -> Instruction:
    return Instruction(check, needs or {}, may_have or {}, needs_case)


INSTRUCTIONS: dict[str, Instruction] = {
    "keywords:existence": _instruction(keywords.existence, {"keywords": "texts"}),
    "keywords:frequency": _instruction(
        keywords.frequency, {"keyword": "text", "frequency": "count", "relation": "relation"}
    ),
    "keywords:forbidden_words": _instruction(
        keywords.forbidden_words, {"forbidden_words": "texts"}
    ),
    "keywords:letter_frequency": _instruction(
        keywords.letter_frequency,
        {"letter": "letter", "let_frequency": "count", "let_relation": "relation"},
    ),
    "keywords:number_frequency": _instruction(
        keywords.number_frequency,
        {"number": "number", "frequency": "count", "relation": "relation"},
    ),
    "language:response_language": _instruction(
        response_language.response_language, {"language": "language"}
    ),
    "length_constraints:number_words": _instruction(
        length.number_words, {"num_words": "count", "relation": "relation"}
    ),
    "length_constraints:number_sentences": _instruction(
        length.number_sentences, {"num_sentences": "count", "relation": "relation"}
    ),
    "length_constraints:number_paragraphs": _instruction(
        length.number_paragraphs, {"num_paragraphs": "count"}
    ),
    "length_constraints:nth_paragraph_first_word": _instruction(
        length.nth_paragraph_first_word,
        {"num_paragraphs": "count", "nth_paragraph": "count", "first_word": "text"},
    ),
    "detectable_content:number_placeholders": _instruction(
        content.number_placeholders, {"num_placeholders": "count"}
    ),
    "detectable_content:postscript": _instruction(
        content.postscript, {"postscript_marker": "text"}
    ),
    "detectable_format:number_bullet_lists": _instruction(
        layout.number_bullet_lists, {"num_bullets": "count"}
    ),
    "detectable_format:constrained_response": _instruction(
        layout.constrained_response, may_have={"options": "texts"}
    ),
    "detectable_format:number_highlighted_sections": _instruction(
        layout.number_highlighted_sections, {"num_highlights": "count"}
    ),
    "detectable_format:multiple_sections": _instruction(
        layout.multiple_sections, {"section_title": "text", "num_sections": "count"}
    ),
    "detectable_format:json_format": _instruction(layout.json_format),
    "detectable_format:title": _instruction(layout.title),
    "combination:two_responses": _instruction(combination.two_responses),
    "combination:repeat_prompt": _instruction(
        combination.repeat_prompt, {"prompt_to_repeat": "text"}
    ),
    "startend:first_word": _instruction(ends.first_word, {"first_word": "text"}),
    "startend:end_checker": _instruction(ends.end_checker, {"end_phrase": "text"}),
    "startend:quotation": _instruction(ends.quotation),
    "change_case:capital_word_frequency": _instruction(
        case.capital_word_frequency,
        {"capital_frequency": "count", "capital_relation": "relation"},
        needs_case=True,
    ),
    "change_case:english_capital": _instruction(case.english_capital, needs_case=True),
    "change_case:english_lowercase": _instruction(case.english_lowercase, needs_case=True),
    "punctuation:no_comma": _instruction(punctuation.no_comma),
}
