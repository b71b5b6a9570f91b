"""Cases of every constraint in every script, near misses among them: parameters, response, verdict.

They are made from the words and sentences of `scripts`, so the right verdict is known from the way
each response is put together, not from the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from scripts import Script

from singalaut.verify.constraints.options import CONSTRAINED_OPTIONS

Case = tuple[dict[str, Any], str, bool]
HOLDS: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda found, wanted: found >= wanted,
    "less than": lambda found, wanted: found < wanted,
    "exactly": lambda found, wanted: found == wanted,
    "at most": lambda found, wanted: found <= wanted,
    "more than": lambda found, wanted: found > wanted,
}


def text(s: Script, *indices: int) -> str:
    """Sentences of the script, a space between them."""
    return " ".join(s.sentences[index % len(s.sentences)][0] for index in indices)


def counted(
    name: str, relation: str, found: int, response: str, about: dict[str, Any] | None = None
) -> Iterator[Case]:
    """One response against counts below, at and above what it holds, in every relation."""
    for wanted in sorted({max(0, found - 1), found, found + 1}):
        for said, holds in HOLDS.items():
            if not (said == "less than" and wanted == 0):
                given = {**(about or {}), name: wanted, relation: said}
                yield given, response, holds(found, wanted)


def existence(s: Script) -> Iterator[Case]:
    for number, word in enumerate(s.words):
        others = [other for other in s.words if other not in word and word not in other]
        filler = s.space.join([*others[:2]])
        yield {"keywords": [word]}, f"{filler}{s.space or ' '}{word}", True
        yield {"keywords": [word]}, f"“{word}” {filler}", True
        yield {"keywords": [word, others[0]]}, f"{word} {filler}", True
        yield {"keywords": [word, others[-1]]}, f"{word} {filler}", others[-1] in others[:2]
        yield {"keywords": [word]}, " ".join(others[:3]), False
        yield {"keywords": [word, s.words[number - 1]]}, word.upper(), s.words[number - 1] in word
    for word, trap in s.traps:
        yield {"keywords": [word]}, f"{trap} {trap}", False
        yield {"keywords": [word]}, f"{trap} {word}", True
    for word, compound in s.compounds:
        yield {"keywords": [word]}, f"({compound})", True


def forbidden_words(s: Script) -> Iterator[Case]:
    for given, response, ok in existence(s):
        if len(given["keywords"]) == 1:
            yield {"forbidden_words": given["keywords"]}, response, not ok


def frequency(s: Script) -> Iterator[Case]:
    word, other = s.words[0], s.words[1]
    for times in (1, 3):
        response = " ".join([word, other] * times)
        yield from counted("frequency", "relation", times, response, {"keyword": word})
    trapped, trap = s.traps[0]
    response = f"{trap}, {trapped} {trap}. {trapped}"
    yield from counted("frequency", "relation", 2, response, {"keyword": trapped})


def number_frequency(s: Script) -> Iterator[Case]:
    three = s.digits[3]
    for found, response in (
        (2, f"{three} {s.words[0]} {three}."),
        (1, f"1{three} {three} {three}0 2,00{three} {three}.5"),
        (0, f"{s.words[0]} 33 {s.digits[3] * 2}"),
    ):
        yield from counted("frequency", "relation", found, response, {"number": "3"})


def letter_frequency(s: Script) -> Iterator[Case]:
    for response, found in s.letter_counts:
        name, relation = "let_frequency", "let_relation"
        yield from counted(name, relation, found, response, {"letter": s.letter})


def number_words(s: Script) -> Iterator[Case]:
    for sentence, found in (*s.sentences[:3],):
        yield from counted("num_words", "relation", found, f"{sentence} 😀 —")


def number_sentences(s: Script) -> Iterator[Case]:
    for number in (1, 2, 3):
        if s.language == "th":  # which marks no ends: the divider says where they are
            response = " *** ".join(s.sentences[index][0] for index in range(number))
        else:
            response = text(s, *range(number))
        yield from counted("num_sentences", "relation", number, response)


def number_paragraphs(s: Script) -> Iterator[Case]:
    for number in range(1, 5):
        parts = [text(s, index, index + 1) for index in range(number)]
        for wanted in range(1, 6):
            ok = wanted == number
            yield {"num_paragraphs": wanted}, "\n***\n".join(parts), ok
            yield {"num_paragraphs": wanted}, " *** ".join(parts) + "\n***", ok
    yield {"num_paragraphs": 1}, f"***{s.words[0]}*** {s.words[1]}", True
    yield {"num_paragraphs": 2}, f"{text(s, 0)}\n\n{text(s, 1)}", False


def nth_paragraph_first_word(s: Script) -> Iterator[Case]:
    words = s.words[:4]
    paragraphs = [f"{word} {text(s, number)}" for number, word in enumerate(words)]
    response = "\n\n".join(paragraphs)
    for nth in range(1, 5):
        for word in words:
            given = {"num_paragraphs": 4, "nth_paragraph": nth, "first_word": word}
            yield given, response, word == words[nth - 1]
        given = {"num_paragraphs": 4, "nth_paragraph": nth, "first_word": words[nth - 1]}
        yield {**given, "num_paragraphs": 5}, response, False
        yield given, response.replace("\n\n", "\n \n\n"), True
        yield given, response.replace("\n\n", "\n"), False
        yield given, "\n\n".join(f'"{piece}"' for piece in paragraphs), True
    trapped, trap = s.traps[0]
    if s.language != "zh":
        given = {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": trapped}
        yield given, f"{trap} {trapped}", False


def number_placeholders(s: Script) -> Iterator[Case]:
    brackets = ["[{}]", "［{}］", "【{}】"]
    for number in range(4):
        places = [
            brackets[place % 3 if s.language == "zh" else 0].format(s.words[place])
            for place in range(number)
        ]
        for wanted in range(4):
            yield {"num_placeholders": wanted}, text(s, 0) + " ".join(places), number >= wanted
            yield (
                {"num_placeholders": wanted},
                " ".join([*places, "[]", "[ ]", f"({s.words[0]})"]),
                number >= wanted,
            )


def postscript(s: Script) -> Iterator[Case]:
    mark = s.postscript
    given = {"postscript_marker": mark}
    for index in range(5):
        body, last = text(s, index, index + 1), text(s, index + 2)
        yield given, f"{body}\n\n{mark} {last}", True
        yield given, f"{body}\n**{mark}** {last}", True
        yield given, f"{body} {mark} {last}", True
        yield given, f"{body}\n{last}", False
        yield given, f"{body}\n\n{mark}", False
        yield given, f"{body}\n\nx{mark} {last}", False
        yield given, f"{body}\n\n{mark}\n{last}", True


def number_bullet_lists(s: Script) -> Iterator[Case]:
    for number in range(1, 5):
        for mark in ("*", "-"):
            items = "\n".join(f"{mark} {s.words[item]}" for item in range(number))
            for wanted in range(1, 5):
                yield (
                    {"num_bullets": wanted},
                    f"{text(s, 0)}\n{items}\n{text(s, 1)}",
                    (number == wanted),
                )
        bold = "\n".join(f"* **{s.words[item]}** {s.words[0]}" for item in range(number))
        yield {"num_bullets": number}, bold, True
        yield {"num_bullets": number}, f"---\n{bold}\n* * *", True
        yield {"num_bullets": number}, bold.replace("* **", "**"), False


def highlights(s: Script) -> Iterator[Case]:
    for number in range(5):
        for mark in ("*", "**"):
            marked = " ".join(f"{mark}{s.words[index]}{mark}" for index in range(number))
            for wanted in range(1, 4):
                yield {"num_highlights": wanted}, f"{text(s, 0)} {marked}", number >= wanted
    yield {"num_highlights": 1}, f"* {s.words[0]}\n* {s.words[1]}", False
    yield {"num_highlights": 1}, f"*{s.words[0]}\n{s.words[1]}*", False
    yield {"num_highlights": 1}, "** ** * * ****", False
    yield {"num_highlights": 2}, f"*{s.words[0]} {s.words[1]}*", False
    yield {"num_highlights": 1}, f"* *{s.words[0]}*", True
    yield {"num_highlights": 1}, f"_{s.words[0]}_ `{s.words[1]}`", False


def multiple_sections(s: Script) -> Iterator[Case]:
    for number in range(1, 5):
        for digits in ("0123456789", s.digits):
            opened = [f"{s.section} {digits[place + 1]}" for place in range(number)]
            for wanted in range(1, 5):
                given = {"section_title": s.section, "num_sections": wanted}
                plain = "\n".join(f"{head}\n{text(s, 0)}" for head in opened)
                yield given, plain, number == wanted
                yield (
                    given,
                    "\n\n".join(f"## {head}: {text(s, 1)}" for head in opened),
                    (number == wanted),
                )
    given = {"section_title": s.section, "num_sections": 1}
    yield given, f"{s.section}\n{text(s, 0)}", False
    yield given, f"{text(s, 0)} {s.section} 1", False
    yield {**given, "num_sections": 2}, f"{s.section} 1\n{text(s, 0)} {s.section} 2", False


def title(s: Script) -> Iterator[Case]:
    for index, word in enumerate(s.words[:5]):
        body = text(s, index, index + 1)
        yield {}, f"<<{word}>>\n{body}", True
        yield {}, f"{body} << {word} {s.words[0]} >>", True
        yield {}, f"<{word}>\n{body}", False
        yield {}, f"<<>>\n{body}", False
        yield {}, f"<<{word}\n{body}", False
        yield {}, f"# {word}\n{body}", False
        yield {}, f"《{word}》{body}", s.language == "zh"


def json_format(s: Script) -> Iterator[Case]:
    for index, word in enumerate(s.words[:5]):
        good = json.dumps({word: [text(s, index), index]}, ensure_ascii=False)
        yield {}, good, True
        yield {}, f"```json\n{good}\n```", True
        yield {}, f"```\n{good}\n```\n", True
        yield {}, f"{word}: {good}", False
        yield {}, good[:-1], False
        yield {}, good.replace('"', "“"), False
        yield {}, json.dumps(word, ensure_ascii=False), False


def constrained_response(s: Script) -> Iterator[Case]:
    options = CONSTRAINED_OPTIONS[s.language]
    for index, option in enumerate(options):
        other = options[index - 1]
        yield {}, option, True
        yield {}, f"  {option}\n", True
        yield {}, f'"{option}"', True
        yield {}, f"{text(s, index)} {option}", True
        yield {}, f"{option} {text(s, index)}", True
        yield {}, f"{option} {other}", False
        yield {}, option[: len(option) // 2], False
        yield {}, text(s, index), False
        yield {}, f"{text(s, index)}\n\n**{option}**", True
        yield {}, f"{other} {text(s, index)} {option}", False
        mine = {"options": [s.words[0], s.words[1]]}
        yield mine, s.words[index % 2], True
        yield mine, f"{s.words[0]} {s.words[1]}", False


def repeat_prompt(s: Script) -> Iterator[Case]:
    for index in range(5):
        prompt, answer = text(s, index, index + 1), text(s, index + 2)
        given = {"prompt_to_repeat": prompt}
        yield given, f"{prompt}\n\n{answer}", True
        yield given, f"{prompt} {answer}", True
        yield given, f"{prompt.upper()}\n{answer}", True
        yield given, prompt, False
        yield given, answer, False
        yield given, f"{s.words[0]} {prompt} {answer}", False
        yield given, f"{prompt[1:]}\n{answer}", False


def two_responses(s: Script) -> Iterator[Case]:
    for index in range(5):
        one, two = text(s, index), text(s, index + 1)
        yield {}, f"{one}\n******\n{two}", True
        yield {}, f"{one} ****** {two}\n******", True
        yield {}, f"{one}\n******\n{one}", False
        yield {}, f"{one}\n*****\n{two}", False
        yield {}, f"{one}\n******\n{two}\n******\n{one}", False
        yield {}, f"{one}\n******", False
        yield {}, f"{one}\n\n{two}", False


def first_word(s: Script) -> Iterator[Case]:
    for index, word in enumerate(s.words[:6]):
        other = s.words[index + 1]
        given = {"first_word": word}
        yield given, f"{word} {text(s, index)}", True
        yield given, f'"{word}" {text(s, index)}', True
        yield given, f"**{word}**\n{text(s, index)}", True
        yield given, f"{other} {word}", other.startswith(word)
        yield given, f"x {word}", False
    for word, trap in s.traps:
        if s.language != "zh":
            yield {"first_word": word}, f"{trap} {word}", False


def end_checker(s: Script) -> Iterator[Case]:
    for index in range(5):
        phrase, body = text(s, index), text(s, index + 1)
        given = {"end_phrase": phrase}
        yield given, f"{body} {phrase}", True
        yield given, f"{body}\n{phrase}\n\n", True
        yield given, f'"{body} {phrase}"', True
        yield given, f"{body} **{phrase}**", True
        yield given, f"{phrase} {body}", False
        yield given, f"{body} {phrase} {s.words[0]}", False
        yield given, body, False


def quotation(s: Script) -> Iterator[Case]:
    for index in range(5):
        body = text(s, index, index + 1)
        for opening, closing in s.quotes:
            yield {}, f"{opening}{body}{closing}", True
            yield {}, f"{opening}{body}", False
            yield {}, f"{opening}{body}{closing} {s.words[0]}", False
        yield {}, f"'{body}'", False
        yield {}, '""', False
        yield {}, body, False


def no_comma(s: Script) -> Iterator[Case]:
    for index in range(5):
        body = text(s, index, index + 1, index + 2)
        yield {}, body, True
        yield {}, f"{body}; {s.words[0]}: {s.words[1]} ' ’ ·", True
        for comma in s.commas + ",،，、၊":
            yield {}, f"{s.words[0]}{comma} {s.words[1]} {body}", False
        yield {}, f"{body} 1,000", False


def response_language(s: Script) -> Iterator[Case]:
    for index in range(6):
        body = text(s, index, index + 1, index + 2, index + 3)
        yield {"language": s.language}, body, True
        yield {"language": s.language}, f"{body}\n```python\nprint('hello world')\n``` 123", True
        for other in ("en", "ja", "lo", "km"):
            yield {"response_language": other}, body, other == s.language
    yield {"language": s.language}, "This is an English sentence about a market and a cat.", False


CASES: dict[str, Callable[[Script], Iterator[Case]]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "keywords:number_frequency": number_frequency,
    "language:response_language": response_language,
    "length_constraints:number_words": number_words,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:first_word": first_word,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "punctuation:no_comma": no_comma,
}
