from __future__ import annotations

import subprocess
import sys
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.errors import DataError, RecipeError
from singalaut.text.languages import LANGUAGES, script_share
from singalaut.verify.constraints.check import check_all, validate
from singalaut.verify.constraints.matching import find
from singalaut.verify.constraints.table import INSTRUCTIONS
from singalaut.verify.generate import Generated, _template, generate, prompts, say

LATIN = [code for code, known in LANGUAGES.items() if known.script == "Latin"]
NEED_TEXT = {  # what a made-up answer of single words cannot show
    *("length_constraints:number_words", "length_constraints:number_sentences"),
    *("language:response_language", "change_case:english_capital"),
    *("change_case:english_lowercase", "change_case:capital_word_frequency"),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_instruction_has_a_sentence(language):
    template = _template(language)
    wanted = {
        name.split(":")[1]
        for name, known in INSTRUCTIONS.items()
        if language in LATIN or not known.needs_case
    }
    assert set(template["instructions"]) == wanted
    script = LANGUAGES[language].script
    for text in (*template["words"], *template["first_words"], *template["end_phrases"]):
        assert script_share(text, script) == 1.0, text
    for text in template["tasks"]:
        assert script_share(text, script) == 1.0, text
    assert len(set(template["tasks"])) == 12 and len(set(template["words"])) == 16
    for word in template["words"]:
        assert find(f"x {word} x", word, language), word


@settings(max_examples=150)
@given(st.sampled_from(sorted(LANGUAGES)), st.integers(0, 2**31), st.integers(1, 6))
def test_generated_constraints_can_be_followed(language, seed, most):
    made = next(prompts(language, seed, most=most))
    again = next(prompts(language, seed, most=most))
    assert made == again
    assert 1 <= len(made.constraints) <= most
    assert made.prompt.startswith(made.request)
    assert "{" not in made.prompt
    validate(made.constraints, language)
    names = [constraint.instruction_id for constraint in made.constraints]
    assert len(set(names)) == len(names)
    if not NEED_TEXT.intersection(names):
        for result in check_all(made.constraints, answer(made), language, prompt=made.prompt):
            assert result.strict.ok, (made.prompt, answer(made), result)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_instruction_is_asked_for(language):
    asked = {
        constraint.instruction_id
        for made in islice(prompts(language, 3), 600)
        for constraint in made.constraints
    }
    assert asked == {
        name for name, known in INSTRUCTIONS.items() if language in LATIN or not known.needs_case
    }


def answer(made: Generated) -> str:
    """A response put together from what the constraints ask for, and one neutral word."""
    language = made.language
    given = {c.instruction_id.split(":")[1]: dict(c.parameters) for c in made.constraints}
    if "constrained_response" in given:
        from singalaut.verify.constraints.options import CONSTRAINED_OPTIONS

        return CONSTRAINED_OPTIONS[language][0]
    used = str(made.constraints)
    neutral = next(word for word in _template(language)["words"] if word not in used)
    body = [neutral, *given.get("existence", {}).get("keywords", ())]
    if "frequency" in given and given["frequency"]["relation"] != "less than":
        keyword, wanted = given["frequency"]["keyword"], given["frequency"]["frequency"]
        said = made.request if "repeat_prompt" in given else ""
        body += [keyword] * (wanted - len(find(said, keyword, language, inflected=True)))
    if "number_frequency" in given:
        body += [given["number_frequency"]["number"]] * given["number_frequency"]["frequency"]
    if "letter_frequency" in given:
        body += [given["letter_frequency"]["letter"]] * given["letter_frequency"]["let_frequency"]
    body += [f"[{neutral}]"] * given.get("number_placeholders", {}).get("num_placeholders", 0)
    body += [f"*{neutral}*"] * given.get("number_highlighted_sections", {}).get("num_highlights", 0)
    if "json_format" in given:
        return '{"a": "' + " ".join(body) + '"}'
    lines = [" ".join(body)]
    if "title" in given:
        lines.append(f"<<{neutral}>>")
    lines += [f"* {neutral}"] * given.get("number_bullet_lists", {}).get("num_bullets", 0)
    sections = given.get("multiple_sections", {"num_sections": 0})
    for number in range(sections["num_sections"]):
        lines += [f"{sections['section_title']} {number + 1}", neutral]
    text = "\n".join(lines)
    if "first_word" in given:
        text = f"{given['first_word']['first_word']} {text}"
    if "repeat_prompt" in given:
        text = f"{made.request}\n{text}"
    if "number_paragraphs" in given:
        text += f"\n***\n{neutral}" * (given["number_paragraphs"]["num_paragraphs"] - 1)
    if "nth_paragraph_first_word" in given:
        nth = given["nth_paragraph_first_word"]
        for number in range(2, nth["num_paragraphs"] + 1):
            first = nth["first_word"] if number == nth["nth_paragraph"] else neutral
            text += f"\n\n{first} {neutral}"
    if "two_responses" in given:
        text += f"\n******\n{neutral} {neutral}"
    if "postscript" in given:
        text += f"\n{given['postscript']['postscript_marker']} {neutral}"
    if "end_checker" in given:
        text += f" {given['end_checker']['end_phrase']}"
    return f'"{text}"' if "quotation" in given else text


def test_any_prompt_set_and_chosen_instructions():
    made = generate("Apa ibu kota Laos?", "id", 5, most=2, only=["keywords:existence"])
    assert [c.instruction_id for c in made.constraints] == ["keywords:existence"]
    assert made.prompt.startswith("Apa ibu kota Laos?\n\nGunakan kata-kata ini")
    assert generate("Apa ibu kota Laos?", "id", 6, only=["keywords:existence"]) != made


def test_what_cannot_be_generated_is_refused():
    with pytest.raises(DataError, match="unknown instruction"):
        generate("x", "id", 1, only=["keywords:existance"])
    with pytest.raises(DataError, match="capital and small"):
        generate("x", "th", 1, only=["change_case:english_capital"])
    with pytest.raises(DataError, match="most"):
        generate("x", "th", 1, most=0)
    with pytest.raises(DataError, match="request"):
        generate(" ", "th", 1)
    with pytest.raises(RecipeError, match="unknown language"):
        generate("x", "xx", 1)
    with pytest.raises(DataError, match="not asked for"):
        from singalaut.verify.constraints.check import Constraint

        say(Constraint("change_case:english_capital"), "th")


def test_prompts_are_the_same_in_every_process():
    code = "from singalaut.verify.generate import prompts; print(next(prompts('th', 9)).prompt)"
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1
