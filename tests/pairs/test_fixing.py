"""Rules that mend answers, held to the verifier; filters, each shown to refuse and to pass."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.pairs.config import FilterConfig
from singalaut.pairs.filters import (
    difference,
    has_control,
    num_faults,
    refusal_of,
    repetition,
)
from singalaut.pairs.fixing import FIXES, fix, is_kept
from singalaut.text.languages import LANGUAGES
from singalaut.verify.constraints.check import Constraint
from singalaut.verify.constraints.table import INSTRUCTIONS
from singalaut.verify.generate import prompts

TEXTS = {
    "en": "The river is long. People fish there, every day. In the morning it is cold. The market "
    "opens early. Children walk to school. We eat rice.",
    "id": "Sungai itu panjang. Orang memancing di sana, setiap hari. Pada pagi hari udaranya "
    "dingin. Pasar buka pagi. Anak-anak berjalan ke sekolah. Kami makan nasi.",
    "zh": "这条河很长。人们每天在那里钓鱼，很开心。早上很冷。"
    "市场很早开门。孩子们走路上学。我们吃米饭。",
    "th": "แม่น้ำยาวมาก ผู้คนตกปลาที่นั่นทุกวัน ตอนเช้าอากาศหนาว ตลาดเปิดเช้า เด็กเดินไปโรงเรียน เรากินข้าว",
}


def constraint(name, **parameters):
    return Constraint(name, parameters)


MENDED = [
    constraint("keywords:existence", keywords=["bridge", "song"]),
    constraint("keywords:forbidden_words", forbidden_words=["river"]),
    constraint("keywords:frequency", keyword="market", frequency=3, relation="at least"),
    constraint("keywords:frequency", keyword="market", frequency=1, relation="less than"),
    constraint("keywords:number_frequency", number=7, frequency=2, relation="at least"),
    constraint("length_constraints:number_sentences", num_sentences=3, relation="exactly"),
    constraint("length_constraints:number_words", num_words=12, relation="less than"),
    constraint("length_constraints:number_paragraphs", num_paragraphs=3),
    constraint(
        "length_constraints:nth_paragraph_first_word",
        **{"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Today"},
    ),
    constraint("detectable_content:number_placeholders", num_placeholders=3),
    constraint("detectable_content:postscript", postscript_marker="P.S."),
    constraint("detectable_format:number_bullet_lists", num_bullets=4),
    constraint("detectable_format:constrained_response"),
    constraint("detectable_format:number_highlighted_sections", num_highlights=2),
    constraint("detectable_format:multiple_sections", section_title="SECTION", num_sections=3),
    constraint("detectable_format:json_format"),
    constraint("detectable_format:title"),
    constraint("combination:repeat_prompt", prompt_to_repeat="Tell me about the river."),
    constraint("startend:end_checker", end_phrase="That is all."),
    constraint("startend:quotation"),
    constraint("change_case:english_capital"),
    constraint("change_case:english_lowercase"),
    constraint(
        "change_case:capital_word_frequency", capital_relation="at least", capital_frequency=3
    ),
    constraint("punctuation:no_comma"),
]


@pytest.mark.parametrize("wanted", MENDED, ids=lambda c: c.instruction_id)
def test_a_rule_mends_its_constraint(wanted):
    assert not is_kept(TEXTS["en"], [wanted], "en", "Tell me about the river.")
    fixed = fix(TEXTS["en"], [wanted], "en", "Tell me about the river.")
    assert fixed is not None and is_kept(fixed, [wanted], "en", "Tell me about the river.")


def test_every_rule_belongs_to_an_instruction():
    assert set(FIXES) <= {name.rpartition(":")[2] for name in INSTRUCTIONS}


@pytest.mark.parametrize("language", TEXTS)
def test_composed_prompts_are_mostly_within_reach(language):
    """What is said to be fixed is fixed by the verifier's word; the reach is measured."""
    reached = 0
    for made in islice(prompts(language, seed=4), 40):
        fixed = fix(TEXTS[language], made.constraints, language, made.prompt)
        if fixed is not None:
            reached += 1
            assert is_kept(fixed, made.constraints, language, made.prompt)
    assert reached >= 16, reached


def test_what_rules_cannot_mend_is_told():
    more = constraint("length_constraints:number_words", num_words=900, relation="at least")
    assert fix(TEXTS["en"], [more], "en", "q") is None
    both = [constraint("combination:two_responses"), constraint("punctuation:no_comma")]
    assert fix(TEXTS["en"], both, "en", "q") is None


PROMPT, REJECTED = "Tell me something about the river near the old town.", TEXTS["en"]
CHOSEN = "The river is long and people fish there. In the morning it is cold, and children walk."


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (CHOSEN, None),
        (" ", "is empty"),
        (REJECTED + " ", "is the rejected one"),
        ("I'm sorry, but I cannot help with that question about the river today.", "a refusal"),
        ("抱歉，我无法回答这个问题，因为我不知道这条河在哪里，也不知道它有多长。", "a refusal"),
        ("ขออภัย ฉันไม่สามารถตอบคำถามนี้ได้ในตอนนี้ เพราะไม่มีข้อมูลเกี่ยวกับแม่น้ำ", "a refusal"),
        (PROMPT, "repeats the prompt"),
        ("Here are a request and an answer. Improve the answer, changing as little as possible. "
         "Write only the improved answer, in English. The river is long.", "the instruction"),
        (CHOSEN + "<end_of_turn>", "control tokens"),
        (CHOSEN + "\x07", "control tokens"),
        (TEXTS["th"], "another language"),
        (CHOSEN * 8, "too long"),
        ("The river is long, yes.", "too short"),
        ("Permintaan:\n" + CHOSEN, "the instruction"),
        (REJECTED.replace("cold", "cool"), "hardly differ"),
    ],
)  # fmt: skip
def test_each_filter_refuses_what_it_names(chosen, reason):
    config = FilterConfig(min_difference=0.05)
    found = refusal_of(chosen, REJECTED, PROMPT, [], "en", config)
    assert found == reason if reason is None else reason in (found or ""), found


@pytest.mark.parametrize(
    ("language", "text", "wanted"),
    [
        ("en", "It is long. It is cold!", "(wind) It is long. (rain) It is cold!"),
        ("th", "แม่น้ำยาว อากาศเย็น", "(wind) แม่น้ำยาว (rain) อากาศเย็น"),
        ("zh", "河很长。天气很冷。", "(wind) 河很长。(rain) 天气很冷。"),
        ("my", "မြစ်ရှည်သည်။", "(wind, rain) မြစ်ရှည်သည်။"),
        ("en", "* one.\n2. two", "* (wind) one.\n2. (rain) two"),
        ("en", "-5 degrees. .NET", "(wind) -5 degrees. (rain) .NET"),
        ("th", "“แม่น้ำยาว”", "“(wind, rain) แม่น้ำยาว”"),
        ("en", "...", "(wind, rain) ..."),
    ],
)
def test_what_is_missing_is_put_before_the_sentences(language, text, wanted):
    """Additions behind the text teach a model not to end."""
    keywords = constraint("keywords:existence", keywords=["wind", "rain"])
    assert fix(text, [keywords], language, PROMPT) == wanted


def test_what_is_added_does_not_go_into_what_was():
    wanted = [
        constraint("keywords:existence", keywords=["wind"]),
        constraint("keywords:number_frequency", number=98, frequency=1, relation="at least"),
        constraint("detectable_content:number_placeholders", num_placeholders=1),
    ]
    assert fix("It is long.", wanted, "en", PROMPT) == "[1] (98) (wind) It is long."
    none = constraint("keywords:number_frequency", number=98, frequency=0, relation="exactly")
    assert fix("It has 98 fish.", [none], "en", PROMPT) is None


def test_rules_write_nothing_often_in_one_place():
    often = constraint("keywords:frequency", keyword="wind", frequency=5, relation="at least")
    assert fix("It is cold. It is long.", [often], "en", PROMPT) is None
    fixed = fix("It is cold. It is long. It is wide.", [often], "en", PROMPT)
    assert fixed == "(wind, wind) It is cold. (wind, wind) It is long. (wind) It is wide."


@pytest.mark.parametrize("language", TEXTS)
def test_repetition_is_a_share_of_runs_of_words(language):
    assert repetition(TEXTS[language]) < 0.1 < 0.6 < repetition(TEXTS[language] * 4)
    assert repetition("98 " * 40) > 0.9 and repetition("98 98 98") == 0


def test_an_answer_that_repeats_itself_has_a_fault_and_is_not_chosen():
    loop = CHOSEN + " The river is long, and it is long," * 9
    config = FilterConfig(max_length=9)
    assert num_faults(loop, PROMPT, [], "en", config) == 1
    reason = refusal_of(loop, REJECTED, PROMPT, [], "en", config)
    assert reason == "the chosen answer repeats itself"
    config = FilterConfig(max_length=9, max_repetition=1)
    assert refusal_of(loop, REJECTED, PROMPT, [], "en", config) is None


def test_an_answer_may_quote_a_prompt_that_does_not_forbid_it():
    text = "Correct this: the river is long and it are cold there in the morning."
    corrected = "The river is long and it is cold there in the morning."
    comma = [constraint("punctuation:no_comma")]
    assert num_faults(corrected, text, comma, "en", FilterConfig()) == 1
    assert num_faults(corrected, text, comma, "en", FilterConfig(max_echo=1)) == 0
    assert num_faults(corrected, text, [], "en", FilterConfig()) == 0
    reason = refusal_of(text, REJECTED, text, [], "en", FilterConfig(max_echo=1))
    assert reason == "the chosen answer repeats the prompt"
    repeat = [constraint("combination:repeat_prompt", prompt_to_repeat=text)]
    assert num_faults(f"{text} {CHOSEN}", text, repeat, "en", FilterConfig()) == 0


@given(st.text(max_size=60), st.sampled_from(sorted(LANGUAGES)))
def test_rules_take_any_text(text, language):
    keywords = constraint("keywords:existence", keywords=["wind", "rain"])
    fixed = fix(text, [keywords], language, PROMPT)
    assert fixed is None or ("wind" in fixed and "rain" in fixed)


@pytest.mark.parametrize(
    ("chosen", "is_refused"),
    [
        ("[1] [2] (98 98) one 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12", True),
        ("北京是中国的首都。", False),
    ],
)
def test_a_chosen_answer_is_more_than_signs(chosen, is_refused):
    config = FilterConfig(min_length=0, constraints="any")
    reason = refusal_of(chosen, REJECTED, PROMPT, [], "zh", config)
    assert reason == ("the chosen answer has hardly a letter" if is_refused else None)
    assert refusal_of(chosen, "[9] " * 20, PROMPT, [], "zh", config) is None


@pytest.mark.parametrize("text", ["!" * 40, "| " * 40, "* * " * 9, "*|" * 20, "[name] " * 12])
def test_signs_repeat_themselves_too(text):
    assert repetition(text) > 0.8 and repetition("ha" * 5) == 0


def test_an_answer_without_end_has_no_length_to_compare_with():
    config = FilterConfig(min_length=0.9)
    assert "too short" in refusal_of(CHOSEN, REJECTED * 9, PROMPT, [], "en", config)
    assert refusal_of(CHOSEN, REJECTED * 9, PROMPT, [], "en", config, is_cut=True) is None
    comma = [constraint("punctuation:no_comma")]
    more = FilterConfig(constraints="more", min_length=0)
    both = (CHOSEN, REJECTED, PROMPT, comma, "en", more)
    assert "no fewer faults" in refusal_of(*both) and refusal_of(*both, is_cut=True) is None


def test_another_language_is_one_fault():
    malay = "Sungai itu panjang, dan orang memancing di sana. Airnya sejuk pada waktu pagi."
    comma = constraint("punctuation:no_comma")
    english = constraint("language:response_language", language="en")

    def faults(text, *constraints, **settings):
        return num_faults(text, PROMPT, constraints, "en", FilterConfig(**settings))

    assert [faults(malay), faults(malay, comma), faults(malay, comma, language=False)] == [1, 2, 1]
    assert faults(malay, english) == 1  # which the constraint has counted
    assert faults("Sungai itu.") == 0  # too short to tell
    assert faults(malay, comma, constraints="any") == 2


def test_constraints_have_to_be_kept():
    wanted = [constraint("punctuation:no_comma"), constraint("detectable_format:title")]
    titled = "<<River>> " + CHOSEN
    names = ("all", "more", "any")
    found = {
        name: refusal_of(titled, REJECTED, PROMPT, wanted, "en", FilterConfig(constraints=name))
        for name in names
    }
    assert "all constraints" in (found["all"] or "") and found["more"] is found["any"] is None
    plain = refusal_of(CHOSEN, REJECTED, PROMPT, wanted, "en", FilterConfig(constraints="more"))
    assert plain is not None and "no fewer faults" in plain


@given(st.text(max_size=40), st.text(max_size=40))
def test_difference_is_a_share(first, second):
    assert 0 <= difference(first, second) <= 1
    assert difference(first, first) == 0


def test_spelling_marks_are_no_control_characters():
    assert not has_control("ကျွန်\u200bုပ် ព្រះ\u200b \u200c\u200d\n\t" + "".join(TEXTS.values()))
    assert has_control("\ufffd") and has_control("<unused12>") and has_control("<|im_end|>")
    assert len(LANGUAGES) == 11
