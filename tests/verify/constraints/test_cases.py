"""Every constraint in seven scripts: at least thirty cases each, near misses among them."""

from __future__ import annotations

import pytest
from cases import CASES
from scripts import SCRIPTS

from singalaut.errors import DataError
from singalaut.verify.constraints.check import check
from singalaut.verify.constraints.table import INSTRUCTIONS

WITHOUT_CASE = [name for name, known in INSTRUCTIONS.items() if known.needs_case]


def test_every_instruction_has_cases():
    assert set(CASES) | set(WITHOUT_CASE) == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 27


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("instruction_id", CASES)
def test_cases(instruction_id, script):
    cases = list(CASES[instruction_id](SCRIPTS[script]))
    wrong = []
    for parameters, response, expected in cases:
        verdict = check(instruction_id, parameters, response, SCRIPTS[script].language)
        if verdict.ok is not expected:
            wrong.append((parameters, response, expected, verdict.reason))
    assert wrong == []
    assert len({(str(given), response) for given, response, _ in cases}) >= 30
    assert {expected for *_, expected in cases} == {True, False}


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "Latin"])
@pytest.mark.parametrize("instruction_id", WITHOUT_CASE)
def test_case_does_not_apply_where_there_is_none(instruction_id, script):
    with pytest.raises(DataError, match="needs capital and small letters"):
        check(instruction_id, {}, "x", SCRIPTS[script].language)


CAPITALS = {
    "en": "The cat is eating fish. We are going to the market this morning. It is raining!",
    "id": "Kucing makan ikan. Kami pergi ke pasar karena ibu butuh nasi. Hari ini hujan!",
    "tl": "Kumakain ng isda ang pusa. Pumunta kami sa palengke kaninang umaga. Umuulan!",
    "vi": "Con mèo đang ăn cá. Sáng nay chúng tôi đi chợ. Hôm nay trời mưa!",
}


@pytest.mark.parametrize("language", CAPITALS)
def test_whole_texts_in_capitals_or_small_letters(language):
    sentences = CAPITALS[language].split(". ")
    for number in range(10):
        body = ". ".join(sentences[number % 2 : number % 2 + 1 + number % 3])
        for instruction_id, right in (
            ("change_case:english_capital", body.upper()),
            ("change_case:english_lowercase", body.lower()),
        ):
            other = "en" if language != "en" else "vi"
            assert check(instruction_id, {}, right, language).ok is True
            assert check(instruction_id, {}, f"{right} 12 (!)", language).ok is True
            assert check(instruction_id, {}, body + "a", language).ok is False
            assert check(instruction_id, {}, right.swapcase(), language).ok is False
            assert check(instruction_id, {}, "12 34", language).ok is False
            assert check(instruction_id, {}, right, other).ok is False


@pytest.mark.parametrize("language", CAPITALS)
def test_words_in_capitals_are_counted(language):
    for number in range(10):
        words = CAPITALS[language].lower().split()
        words[:number] = [word.upper() for word in words[:number]]
        for wanted in (max(0, number - 1), number, number + 1):
            for relation, expected in (
                ("at least", number >= wanted),
                ("exactly", number == wanted),
                ("at most", number <= wanted),
            ):
                given = {"capital_frequency": wanted, "capital_relation": relation}
                name = "change_case:capital_word_frequency"
                assert check(name, given, " ".join(words), language).ok is expected
