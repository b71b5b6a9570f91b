"""Changes an answer by rules until it keeps to the constraints of its prompt.

The rules are plain: words that are missing are put before the sentences, sentences become bullet
points, a frame goes around the text. Whether a constraint is kept is `verify`'s word alone;
a fixed answer is used only if all of them are. What rules cannot mend (more words, another
language) is told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from singalaut.text.marks import COMMAS
from singalaut.text.segmentation import sentences, words
from singalaut.verify.constraints.check import Constraint, check_all
from singalaut.verify.constraints.options import CONSTRAINED_OPTIONS

Fix = Callable[[str, Mapping[str, Any], str], str | None]
MOST = ("at most", "less than", "exactly")  # relations that a shorter text can satisfy
ROUNDS = 2  # a later rule may undo an earlier one, once
MOST_ALIKE = 2  # equal additions in front of one sentence
LIST_MARK = re.compile(r"(?:(?:[*+•-]|#+|\d+[.)])\s+)?[\"'“‘«*_]*")  # stays in front of additions


def fix(text: str, constraints: Sequence[Constraint], language: str, prompt: str) -> str | None:
    """The text, changed so that it keeps to all constraints; None where the rules do not reach."""
    order = {name: place for place, name in enumerate(FIXES)}
    ordered = sorted(constraints, key=lambda c: order.get(_short(c), len(order)))
    for _ in range(ROUNDS):
        for constraint in ordered:
            if is_kept(text, [constraint], language, prompt):
                continue
            rule = FIXES.get(_short(constraint))
            changed = None if rule is None else rule(text, constraint.parameters, language)
            if changed is None:
                return None
            text = changed
        if is_kept(text, constraints, language, prompt):
            return text
    return None


def is_kept(text: str, constraints: Sequence[Constraint], language: str, prompt: str) -> bool:
    """Whether the text keeps to all constraints that can be checked."""
    return num_broken(text, constraints, language, prompt) == 0


def num_broken(text: str, constraints: Sequence[Constraint], language: str, prompt: str) -> int:
    """How many constraints the text does not keep to; what cannot be checked does not count."""
    results = check_all(constraints, text, language, prompt=prompt)
    return sum(result.strict.ok is False for result in results)


def _short(constraint: Constraint) -> str:
    return constraint.instruction_id.rpartition(":")[2]


def _pieces(text: str, language: str, count: int) -> list[str] | None:
    """The sentences put together into `count` pieces; None where there are too few."""
    found = [s.strip() for s in sentences(text, language) if s.strip()]
    if len(found) < count:
        found = [piece for s in found for piece in re.split(rf"(?<=[{COMMAS}])\s*|\n+", s)]
        found = [piece.strip() for piece in found if any(c.isalnum() for c in piece)]
    if len(found) < count or count < 1:
        return None
    bounds = [len(found) * i // count for i in range(count + 1)]
    return [" ".join(found[a:b]) for a, b in pairwise(bounds)]


def _put_in(text: str, additions: Sequence[str], language: str, frame: str = "({})") -> str | None:
    """Additions in front of the sentences, in turns; None where one would stand there often.

    Behind the text they would teach that answers go on where they end; many alike in one place,
    that answers repeat themselves.
    """
    if not additions:
        return None
    found = [s.strip() for s in sentences(text, language) if any(c.isalnum() for c in s)]
    found = found[: len(additions)] or [text.strip()]
    end = 0
    parts = []
    for number, sentence in enumerate(found):
        own = additions[number :: len(found)]
        if max(map(own.count, own)) > MOST_ALIKE:
            return None
        begin = text.index(sentence, end)
        mark = LIST_MARK.match(sentence)
        assert mark is not None  # it may be empty
        place = begin + mark.end()
        parts += [text[end:place], frame.format(", ".join(own)), " "]
        end = place
    return "".join(parts) + text[end:]


def _existence(text: str, given: Mapping[str, Any], language: str) -> str | None:
    missing = [word for word in given["keywords"] if word.lower() not in text.lower()]
    return _put_in(text, missing or given["keywords"], language)


def _frequency(text: str, given: Mapping[str, Any], language: str) -> str | None:
    word, wanted = given["keyword"], given["frequency"]
    found = len(re.findall(re.escape(word), text, re.IGNORECASE))
    if given["relation"] in ("at least", "exactly", "more than") and found < wanted:
        return _put_in(text, [word] * (wanted - found), language)
    return _without(text, [word], language)


def _forbidden(text: str, given: Mapping[str, Any], language: str) -> str | None:
    return _without(text, given["forbidden_words"], language)


def _without(text: str, unwanted: Sequence[str], language: str) -> str | None:
    kept = [
        sentence
        for sentence in sentences(text, language)
        if not any(word.lower() in sentence.lower() for word in unwanted)
    ]
    return " ".join(part.strip() for part in kept) or None


def _number(text: str, given: Mapping[str, Any], language: str) -> str | None:
    if given["relation"] not in ("at least", "exactly"):
        return None
    return _put_in(text, [str(given["number"])] * given["frequency"], language)


def _no_comma(text: str, given: Mapping[str, Any], language: str) -> str | None:
    return re.sub(rf"[{COMMAS}][^\S\n]*", " ", text)


def _number_sentences(text: str, given: Mapping[str, Any], language: str) -> str | None:
    if given["relation"] not in MOST:
        return None
    count = given["num_sentences"] - (given["relation"] == "less than")
    found = sentences(text, language)
    return " ".join(s.strip() for s in found[:count]) if 0 < count <= len(found) else None


def _number_words(text: str, given: Mapping[str, Any], language: str) -> str | None:
    """Whole sentences as long as they fit."""
    if given["relation"] not in ("at most", "less than"):
        return None
    kept = ""
    for sentence in sentences(text, language):
        longer = f"{kept} {sentence.strip()}".strip()
        if len(words(longer)) >= given["num_words"]:
            break
        kept = longer
    return kept or None


def _paragraphs(text: str, given: Mapping[str, Any], language: str) -> str | None:
    pieces = _pieces(text.replace("***", " "), language, given["num_paragraphs"])
    return None if pieces is None else "\n\n***\n\n".join(pieces)


def _nth_paragraph(text: str, given: Mapping[str, Any], language: str) -> str | None:
    pieces = _pieces(re.sub(r"\n\s*\n", "\n", text), language, given["num_paragraphs"])
    if pieces is None:
        return None
    place = given["nth_paragraph"] - 1
    pieces[place] = f"{given['first_word']} {pieces[place]}"
    return "\n\n".join(" ".join(piece.split()) for piece in pieces)


def _bullets(text: str, given: Mapping[str, Any], language: str) -> str | None:
    bare = re.sub(r"^[^\S\n]*[*+-][^\S\n]+", "", text, flags=re.MULTILINE)
    pieces = _pieces(bare, language, given["num_bullets"])
    return None if pieces is None else "\n".join(f"* {' '.join(p.split())}" for p in pieces)


def _sections(text: str, given: Mapping[str, Any], language: str) -> str | None:
    pieces = _pieces(text, language, given["num_sections"])
    if pieces is None:
        return None
    title = given["section_title"]
    return "\n\n".join(f"{title} {number}\n{p}" for number, p in enumerate(pieces, start=1))


def _highlights(text: str, given: Mapping[str, Any], language: str) -> str | None:
    pieces = _pieces(text.replace("*", ""), language, given["num_highlights"])
    return None if pieces is None else " ".join(f"*{' '.join(p.split())}*" for p in pieces)


def _placeholders(text: str, given: Mapping[str, Any], language: str) -> str | None:
    numbers = [f"[{number}]" for number in range(1, given["num_placeholders"] + 1)]
    return _put_in(text, numbers, language, "{}")


def _postscript(text: str, given: Mapping[str, Any], language: str) -> str | None:
    pieces = _pieces(text, language, 2)
    marker = given["postscript_marker"]
    return None if pieces is None else f"{pieces[0]}\n\n{marker} {pieces[1]}"


def _title(text: str, given: Mapping[str, Any], language: str) -> str | None:
    first = re.sub(r"[<>«»*#]", "", text.strip().split("\n")[0])
    start = " ".join(words(first)[:6]) if " " in first else first[:24]
    return f"<<{start.strip()}>>\n\n{text.lstrip()}" if start.strip() else None


def _json(text: str, given: Mapping[str, Any], language: str) -> str | None:
    return json.dumps({"answer": text.strip()}, ensure_ascii=False)


def _constrained(text: str, given: Mapping[str, Any], language: str) -> str | None:
    """The allowed answer that comes first in the text, else the first one."""
    options = given.get("options") or CONSTRAINED_OPTIONS[language]
    said = [option for option in options if option in text]
    return min(said, key=text.index) if said else options[0]


def _upper(text: str, given: Mapping[str, Any], language: str) -> str | None:
    return text.upper()


def _lower(text: str, given: Mapping[str, Any], language: str) -> str | None:
    return text.lower()


def _capital_words(text: str, given: Mapping[str, Any], language: str) -> str | None:
    relation, wanted = given["capital_relation"], given["capital_frequency"]
    if relation not in ("at least", "exactly"):
        return text.lower()
    left = [wanted]

    def raised(match: re.Match[str]) -> str:
        if left[0] and len(match[0]) > 1:
            left[0] -= 1
            return match[0].upper()
        return match[0]

    return re.sub(r"[^\W\d_]+", raised, text.lower())


def _first_word(text: str, given: Mapping[str, Any], language: str) -> str | None:
    return f"{given['first_word']} {text.lstrip()}"


def _end(text: str, given: Mapping[str, Any], language: str) -> str | None:
    return f"{text.rstrip()} {given['end_phrase']}"


def _quotation(text: str, given: Mapping[str, Any], language: str) -> str | None:
    return '"' + text.strip().strip('"') + '"'


def _repeat(text: str, given: Mapping[str, Any], language: str) -> str | None:
    return f"{given['prompt_to_repeat']}\n\n{text.lstrip()}"


# by the name of an instruction without its group, in the order in which they are applied
FIXES: dict[str, Fix] = {
    "constrained_response": _constrained,
    "forbidden_words": _forbidden,
    "number_words": _number_words,
    "number_sentences": _number_sentences,
    "no_comma": _no_comma,
    "existence": _existence,
    "frequency": _frequency,
    "number_frequency": _number,
    "number_placeholders": _placeholders,
    "number_bullet_lists": _bullets,
    "number_paragraphs": _paragraphs,
    "nth_paragraph_first_word": _nth_paragraph,
    "multiple_sections": _sections,
    "number_highlighted_sections": _highlights,
    "postscript": _postscript,
    "title": _title,
    "english_capital": _upper,
    "english_lowercase": _lower,
    "capital_word_frequency": _capital_words,
    "end_checker": _end,
    "first_word": _first_word,
    "repeat_prompt": _repeat,
    "json_format": _json,
    "quotation": _quotation,
}
