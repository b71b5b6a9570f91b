"""Which constraints no single response could follow together.

Only sure contradictions are reported; what is merely hard passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from singalaut.errors import DataError
from singalaut.text.marks import COMMAS
from singalaut.verify.constraints.matching import find, plain, starts_with
from singalaut.verify.constraints.parameters import valid_parameters
from singalaut.verify.constraints.table import INSTRUCTIONS

# Instructions of which two different ones, or the same with other parameters, exclude each other.
_ONE_ONLY = {
    "startend:first_word": "first_word",
    "combination:repeat_prompt": "prompt_to_repeat",
    "language:response_language": "language",
    "length_constraints:number_paragraphs": "num_paragraphs",
    "detectable_format:number_bullet_lists": "num_bullets",
}
# What cannot stand beside it: JSON as the whole response, quotation marks around it, and so on.
_EXCLUDES = {
    "detectable_format:json_format": {
        *("startend:quotation", "startend:first_word", "startend:end_checker"),
        *("combination:two_responses", "combination:repeat_prompt"),
        *("detectable_content:postscript", "detectable_format:number_bullet_lists"),
        *("detectable_format:multiple_sections", "length_constraints:nth_paragraph_first_word"),
        *("length_constraints:number_paragraphs", "punctuation:no_comma"),
    },
    "combination:two_responses": {"length_constraints:number_paragraphs"},
    "change_case:english_capital": {"change_case:english_lowercase"},
    "detectable_format:constrained_response": {
        *("change_case:english_capital", "change_case:english_lowercase"),
    },
}
_COUNTS = {
    "length_constraints:number_words": ("num_words", "relation", None),
    "length_constraints:number_sentences": ("num_sentences", "relation", None),
    "keywords:frequency": ("frequency", "relation", "keyword"),
    "keywords:number_frequency": ("frequency", "relation", "number"),
    "keywords:letter_frequency": ("let_frequency", "let_relation", "letter"),
    "change_case:capital_word_frequency": ("capital_frequency", "capital_relation", None),
}
Given = tuple[str, Mapping[str, Any]]


def contradictions(constraints: Sequence[Given], language: str) -> list[str]:
    """Each contradiction in a sentence; constraints that are invalid by themselves are skipped."""
    given: list[Given] = []
    for name, parameters in constraints:
        try:
            given.append((name, valid_parameters(name, parameters, language)))
        except DataError:
            continue
    found = [fault for one, other in combinations(given, 2) for fault in _between(one, other)]
    found += _ranges(given, language)
    found += _required_texts(given, language)
    return found


def _between(one: Given, other: Given) -> list[str]:
    for first, second in ((one, other), (other, one)):
        if second[0] in _EXCLUDES.get(first[0], ()):
            return [f"`{first[0]}` and `{second[0]}` exclude each other"]
    name = one[0]
    key = _ONE_ONLY.get(name)
    if key and other[0] == name and plain(str(one[1][key])) != plain(str(other[1][key])):
        return [f"`{name}` is asked for twice, differently"]
    return []


def _ranges(given: Sequence[Given], language: str) -> list[str]:
    """Counts of the same thing whose bounds leave no number between them."""
    bounds: dict[tuple[str, str], list[float]] = {}
    for name, parameters in given:
        for key, lowest, highest in _bounds(name, parameters):
            bound = bounds.setdefault((name.split(":")[0], key), [0, float("inf")])
            bound[0], bound[1] = max(bound[0], lowest), min(bound[1], highest)
    return [
        f"no number is at least {low:g} and at most {high:g} ({key})"
        for (_, key), (low, high) in bounds.items()
        if low > high
    ]


def _bounds(name: str, parameters: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    no_limit = float("inf")
    if name == "keywords:existence":
        return [(plain(word), 1, no_limit) for word in parameters["keywords"]]
    if name == "keywords:forbidden_words":
        return [(plain(word), 0, 0) for word in parameters["forbidden_words"]]
    if name == "change_case:english_lowercase":
        return [("change_case:capital_word_frequency", 0, 0)]
    if name not in _COUNTS:
        return []
    count_name, relation_name, about = _COUNTS[name]
    count = parameters[count_name]
    lowest, highest = {
        "at least": (count, no_limit),
        "more than": (count + 1, no_limit),
        "less than": (0, count - 1),
        "at most": (0, count),
    }.get(parameters[relation_name], (count, count))
    return [(plain(str(parameters[about])) if about else name, lowest, highest)]


def _required_texts(given: Sequence[Given], language: str) -> list[str]:
    """Texts that must be written, against what must not be."""
    required = [(name, text) for name, parameters in given for text in _texts(name, parameters)]
    found = []
    for name, parameters in given:
        for word in parameters.get("forbidden_words", ()):
            found += [
                f"`{other}` needs the forbidden word `{word}`"
                for other, text in required
                if find(text, word, language)
            ]
        found += _too_often(name, parameters, [text for _, text in required], language)
        if name == "punctuation:no_comma":
            found += [
                f"`{other}` needs a comma"
                for other, text in required
                if any(mark in text for mark in COMMAS)
            ]
    repeated = [text for name, text in required if name == "combination:repeat_prompt"]
    for name, parameters in given:
        begins = name == "startend:first_word" and repeated
        if begins and not starts_with(repeated[0], parameters["first_word"], language):
            found.append(f"`{name}` and `combination:repeat_prompt` want different beginnings")
    return found


def _too_often(
    name: str, parameters: Mapping[str, Any], required: Sequence[str], language: str
) -> list[str]:
    """A word or letter that the texts which must be written hold more often than is allowed."""
    if name not in ("keywords:frequency", "keywords:letter_frequency"):
        return []
    _, _, highest = _bounds(name, parameters)[0]
    check = INSTRUCTIONS[name].check
    most = {**parameters, "relation": "at most", "let_relation": "at most"}
    if highest == float("inf"):
        return []
    most |= {"frequency": int(highest), "let_frequency": int(highest)}
    verdict = check("\n".join(required), most, language)
    return [] if verdict.ok else [f"`{name}` against what must be written: {verdict.reason}"]


def _texts(name: str, parameters: Mapping[str, Any]) -> list[str]:
    if name == "keywords:existence":
        return list(parameters["keywords"])
    if name == "keywords:frequency" and _bounds(name, parameters)[0][1] > 0:
        return [parameters["keyword"]]
    keys = ("first_word", "end_phrase", "postscript_marker", "prompt_to_repeat", "section_title")
    return [parameters[key] for key in keys if key in parameters]
