"""New prompts with constraints that can be checked, in eleven languages, without end.

A request, from our own list or from any set of prompts, gets one to `most` constraints, each said
in a sentence of the request's language. The same seed gives the same prompt. Constraints are only
put together if a response could follow them all. The sentences, in `templates/`, are simple; they
are written for this repository and not checked by native speakers: a demonstration.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from singalaut.contracts import derive
from singalaut.errors import DataError
from singalaut.text.languages import LANGUAGES
from singalaut.text.languages import language as known_language
from singalaut.verify.constraints.check import Constraint
from singalaut.verify.constraints.contradictions import contradictions
from singalaut.verify.constraints.options import CONSTRAINED_OPTIONS
from singalaut.verify.constraints.parameters import instruction
from singalaut.verify.constraints.table import INSTRUCTIONS

# Of each group one at most: they fix the same thing, or make each other hard to tell apart.
_GROUPS = (
    {"number_words", "number_sentences", "two_responses", "repeat_prompt", "json_format"},
    {"number_paragraphs", "nth_paragraph_first_word", "multiple_sections", "two_responses"},
    {"json_format", "multiple_sections", "number_bullet_lists", "quotation"},
    {"json_format", "first_word", "nth_paragraph_first_word", "repeat_prompt", "title"},
    {"json_format", "end_checker", "postscript", "number_highlighted_sections"},
    {"quotation", "repeat_prompt", "two_responses", "nth_paragraph_first_word"},
    {"english_capital", "english_lowercase", "capital_word_frequency", "response_language"},
    {"english_lowercase", "multiple_sections", "postscript", "json_format"},
    {"english_capital", "json_format", "repeat_prompt", "letter_frequency"},
    {"english_lowercase", "repeat_prompt"},
    {"number_sentences", "number_bullet_lists"},
    {"number_sentences", "multiple_sections"},
    {"number_sentences", "number_paragraphs"},
)
# What is written in the language of the prompt cannot be asked of an answer in another.
_IN_THE_LANGUAGE = {
    *("existence", "frequency", "letter_frequency", "first_word", "end_checker", "postscript"),
    *("nth_paragraph_first_word", "multiple_sections", "repeat_prompt", "forbidden_words"),
}
_TRIES = 20


@dataclass(frozen=True)
class Generated:
    """A prompt, the request it was made from, and what an answer to it is checked for."""

    prompt: str
    request: str
    language: str
    constraints: tuple[Constraint, ...]


def generate(
    request: str,
    language: str,
    seed: int,
    *,
    most: int = 3,
    only: Sequence[str] | None = None,
) -> Generated:
    """The request with constraints chosen by the seed, `only` of the named instructions if given.

    Raises: DataError for an unknown instruction, one that needs letters with case in a script
    without, an empty request or `most` below 1; RecipeError for an unknown language.
    """
    names = _allowed(language, only)
    if most < 1 or not request.strip():
        raise DataError("needed is a request, and `most` of 1 or more", where=f"most {most}")
    chooser = random.Random(derive(seed, "constraints", language, request))
    wanted = chooser.randint(1, most)
    words = _Words(language, chooser)
    chosen: list[Constraint] = []
    for name in chooser.sample(names, len(names)):
        if len(chosen) == wanted:
            break
        if added := _fitting(name, chosen, request, words, chooser, language):
            chosen.append(added)
    if not chosen:
        raise DataError("none of the instructions fits this request", where=request[:80])
    chosen.sort(key=lambda constraint: constraint.instruction_id != "combination:repeat_prompt")
    sentences = [say(constraint, language) for constraint in chosen]
    prompt = "\n".join((request, "", *sentences))
    return Generated(prompt, request, language, tuple(chosen))


def prompts(language: str, seed: int, *, most: int = 3) -> Iterator[Generated]:
    """Prompts without end from our own requests, in an order the seed decides."""
    requests = _template(language)["tasks"]
    number = 0
    while True:
        request = random.Random(derive(seed, "request", language, number)).choice(requests)
        yield generate(request, language, derive(seed, "prompt", number), most=most)
        number += 1


def say(constraint: Constraint, language: str) -> str:
    """The sentence that asks for a constraint in a language.

    Raises: DataError for an instruction that has no sentence there.
    """
    template = _template(language)
    sentence = template["instructions"].get(constraint.instruction_id.split(":")[1])
    if sentence is None:
        raise DataError(
            f"`{constraint.instruction_id}` is not asked for in {LANGUAGES[language].name}"
        )
    given = dict(constraint.parameters)
    joiner, quote = template["joiner"], '"{}"'.format
    relation = given.get("relation") or given.get("let_relation") or given.get("capital_relation")
    numbers = [value for value in given.values() if isinstance(value, int)]
    if relation:
        given["amount"] = template["amount"][relation.replace(" ", "_")].format(n=numbers[0])
    words = given.get("keywords") or given.get("forbidden_words") or ()
    options = given.get("options") or CONSTRAINED_OPTIONS[language]
    phrase = given.get("end_phrase", "")
    code = given.get("language", "")
    named = template["languages"].get("own" if code == language else code, code)
    bare = language == "zh"  # whose sentences carry their own quotation marks
    word = given.get("keyword") or given.get("first_word") or ""
    return str(sentence).format(
        words=joiner.join(map(quote, words)),
        options=joiner.join(map(quote, options)),
        word=word if bare else quote(word),
        letter=given.get("letter", "") if bare else quote(given.get("letter", "")),
        number=given.get("number", ""),
        amount=given.get("amount", ""),
        count=given.get("num_paragraphs") or (numbers[0] if numbers else ""),
        nth=given.get("nth_paragraph", ""),
        marker=given.get("postscript_marker", ""),
        title=given.get("section_title", ""),
        phrase=phrase if bare else quote(phrase),
        language=named,
    )


class _Words:
    """The words of a language in random order, each given out once."""

    def __init__(self, language: str, chooser: random.Random) -> None:
        words = list(_template(language)["words"])
        chooser.shuffle(words)
        self._left = words

    def take(self, count: int = 1) -> list[str]:
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def _allowed(language: str, only: Sequence[str] | None) -> list[str]:
    latin = known_language(language).script == "Latin"
    names = sorted(INSTRUCTIONS)
    if only is not None:
        for name in only:
            if instruction(name).needs_case and not latin:
                raise DataError(f"`{name}` needs capital and small letters", where=language)
        names = sorted(only)
    return [name for name in names if latin or not INSTRUCTIONS[name].needs_case]


def _fitting(
    name: str,
    chosen: Sequence[Constraint],
    request: str,
    words: _Words,
    chooser: random.Random,
    language: str,
) -> Constraint | None:
    """A constraint of this name that goes with those chosen, None if none was found."""
    if not _together(name, [constraint.instruction_id for constraint in chosen]):
        return None
    for _ in range(_TRIES):
        parameters = _parameters(name, request, words, chooser, language)
        if parameters is None:
            return None
        added = Constraint(name, parameters)
        everything = [*chosen, added]
        foreign = any(
            constraint.parameters.get("language", language) != language for constraint in everything
        )
        if foreign and any(_short(one.instruction_id) in _IN_THE_LANGUAGE for one in everything):
            continue
        pairs = [(one.instruction_id, one.parameters) for one in everything]
        if not contradictions(pairs, language):
            return added
    return None


def _together(name: str, others: Sequence[str]) -> bool:
    shorts = {_short(other) for other in others}
    if "constrained_response" in (*shorts, _short(name)):
        return not others
    return not any(_short(name) in group and group & shorts for group in _GROUPS)


def _short(name: str) -> str:
    return name.split(":")[1]


def _parameters(
    name: str, request: str, words: _Words, chooser: random.Random, language: str
) -> dict[str, Any] | None:
    """Parameters of one instruction, None where the language has run out of words."""
    template = _template(language)
    pick, between = chooser.choice, chooser.randint
    relation = pick(("at least", "less than"))
    match _short(name):
        case "existence":
            return _if_any(keywords=words.take(between(1, 3)))
        case "forbidden_words":
            return _if_any(forbidden_words=words.take(between(1, 3)))
        case "frequency":
            relation = pick(("at least", "less than", "exactly"))
            taken = words.take()
            given = {"relation": relation, "frequency": between(2, 4)}
            return {"keyword": taken[0], **given} if taken else None
        case "number_frequency":
            relation = pick(("at least", "exactly"))
            return {
                "number": str(between(11, 99)),
                "relation": relation,
                "frequency": between(2, 4),
            }
        case "letter_frequency":
            given = {"let_relation": "at least", "let_frequency": between(4, 15)}
            return {"letter": pick(template["letters"]), **given}
        case "response_language":
            return {
                "language": pick([language if c == "own" else c for c in template["languages"]])
            }
        case "number_words":
            return {"num_words": 10 * between(5, 20), "relation": relation}
        case "number_sentences":
            return {"num_sentences": between(4, 12), "relation": relation}
        case "number_paragraphs":
            return {"num_paragraphs": between(2, 5)}
        case "nth_paragraph_first_word":
            count = between(2, 4)
            word = pick(template["first_words"])
            return {"num_paragraphs": count, "nth_paragraph": between(2, count), "first_word": word}
        case "number_placeholders":
            return {"num_placeholders": between(2, 5)}
        case "postscript":
            return {"postscript_marker": pick(template["markers"])}
        case "number_bullet_lists":
            return {"num_bullets": between(2, 6)}
        case "number_highlighted_sections":
            return {"num_highlights": between(2, 4)}
        case "multiple_sections":
            return {"section_title": pick(template["sections"]), "num_sections": between(2, 4)}
        case "repeat_prompt":
            return {"prompt_to_repeat": request}
        case "first_word":
            return {"first_word": pick(template["first_words"])}
        case "end_checker":
            return {"end_phrase": pick(template["end_phrases"])}
        case "capital_word_frequency":
            return {"capital_relation": relation, "capital_frequency": between(2, 6)}
        case _:
            return {}


def _if_any(**given: list[str]) -> dict[str, Any] | None:
    return given if all(given.values()) else None


@lru_cache(maxsize=len(LANGUAGES))
def _template(language: str) -> dict[str, Any]:
    known_language(language)
    path = files("singalaut.verify") / "templates" / f"{language}.toml"
    return tomllib.loads(path.read_text("utf-8"))
