from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.errors import DataError, RecipeError
from singalaut.text.languages import LANGUAGES
from singalaut.verify.constraints.check import (
    Constraint,
    answer_language,
    check,
    check_all,
    constraints_of,
    in_language,
    validate,
)
from singalaut.verify.constraints.matching import find, starts_with
from singalaut.verify.constraints.table import INSTRUCTIONS

TITLE = Constraint("detectable_format:title")
NO_COMMA = Constraint("punctuation:no_comma")


def test_loose_tries_without_first_and_last_line_and_asterisks():
    given = {"first_word": "ikan"}
    for response in (
        "Tentu saja!\nikan segar",
        "**ikan** segar",
        "Tentu!\n**ikan** segar\nSemoga membantu",
    ):
        assert check("startend:first_word", given, response, "id", loose=True).ok
    ending = {"end_phrase": "Ada lagi?"}
    assert not check("startend:end_checker", ending, "Baik. Ada lagi?\nSalam", "id").ok
    assert check("startend:end_checker", ending, "Baik. Ada lagi?\nSalam", "id", loose=True).ok
    two_before = "Satu\nDua\nikan"
    assert not check("startend:first_word", given, two_before, "id", loose=True).ok


def test_each_constraint_is_checked_by_itself():
    bad_name = Constraint("keywords:existance", {"keywords": ["a"]})
    bad_parameters = Constraint("keywords:existence", {"keyword": "a"})
    results = check_all([TITLE, bad_name, NO_COMMA, bad_parameters], "<<Judul>> a, b", "id")
    assert [result.strict.ok for result in results] == [True, None, False, None]
    assert [result.loose.ok for result in results] == [True, None, False, None]
    assert "unknown instruction `keywords:existance`" in results[1].strict.reason
    assert "keyword" in results[3].strict.reason


@pytest.mark.parametrize(
    ("name", "parameters", "language", "message"),
    [
        ("keywords:existance", {}, "th", "did you mean `keywords:existence`"),
        ("keywords:existence", {}, "th", "`keywords` is missing"),
        ("keywords:existence", {"keywords": []}, "th", "a list of texts"),
        ("keywords:existence", {"keywords": ["a", " "]}, "th", "a list of texts"),
        ("keywords:existence", {"keywrods": ["a"]}, "th", "did you mean `keywords`"),
        ("length_constraints:number_words", {"num_words": 3}, "th", "`relation` is missing"),
        *(
            (
                "length_constraints:number_words",
                {"num_words": count, "relation": relation},
                "th",
                message,
            )
            for count, relation, message in (
                (-1, "at least", "whole number"),
                (1.5, "at least", "whole number"),
                (True, "at least", "whole number"),
                ("many", "at least", "whole number"),
                (3, "about", "one of at least"),
                (0, "less than", "impossible"),
            )
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "en",
            "no paragraph 3 of 2",
        ),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 0}, "en", "is 0"),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            "en",
            "one letter",
        ),
        ("change_case:english_capital", {}, "km", "Khmer script has no case"),
    ],
)
def test_what_cannot_be_checked_is_refused(name, parameters, language, message):
    with pytest.raises(DataError) as error:
        check(name, parameters, "text", language)
    assert message in str(error.value)


def test_parameters_come_in_many_shapes():
    row = {"keywords": None, "num_words": "๓", "relation": "at least", "letter": None}
    assert check("length_constraints:number_words", row, "หนึ่ง สอง สาม", "th").ok
    assert check("length_constraints:number_words", {**row, "num_words": 3.0}, "a b c", "en").ok
    for name in ("section_spliter", "section_title"):
        given = {name: "Bab", "num_sections": 1}
        assert check("detectable_format:multiple_sections", given, "Bab 1\nx", "id").ok


def test_an_unknown_language_is_refused():
    with pytest.raises(RecipeError, match="did you mean `th`"):
        check("punctuation:no_comma", {}, "x", "tha")


CONTRADICTIONS = [
    ("th", [("keywords:existence", {"keywords": ["ปลา"]})] * 1, False),
    (
        "th",
        [
            ("keywords:existence", {"keywords": ["ปลา"]}),
            ("keywords:forbidden_words", {"forbidden_words": ["ปลา"]}),
        ],
        True,
    ),
    (
        "id",
        [
            ("startend:end_checker", {"end_phrase": "Selamat makan ikan"}),
            ("keywords:forbidden_words", {"forbidden_words": ["ikan"]}),
        ],
        True,
    ),
    (
        "en",
        [
            ("length_constraints:number_words", {"num_words": 10, "relation": "less than"}),
            ("length_constraints:number_words", {"num_words": 10, "relation": "at least"}),
        ],
        True,
    ),
    (
        "en",
        [
            ("length_constraints:number_words", {"num_words": 11, "relation": "less than"}),
            ("length_constraints:number_words", {"num_words": 10, "relation": "at least"}),
        ],
        False,
    ),
    ("en", [("detectable_format:json_format", {}), ("startend:quotation", {})], True),
    ("en", [("change_case:english_capital", {}), ("change_case:english_lowercase", {})], True),
    (
        "en",
        [
            ("change_case:english_lowercase", {}),
            (
                "change_case:capital_word_frequency",
                {"capital_frequency": 1, "capital_relation": "at least"},
            ),
        ],
        True,
    ),
    (
        "en",
        [
            ("combination:repeat_prompt", {"prompt_to_repeat": "Write a poem."}),
            ("startend:first_word", {"first_word": "Hello"}),
        ],
        True,
    ),
    (
        "id",
        [
            ("combination:repeat_prompt", {"prompt_to_repeat": "Ikan apa itu, ikan besar?"}),
            ("keywords:frequency", {"keyword": "ikan", "frequency": 2, "relation": "less than"}),
        ],
        True,
    ),
    (
        "zh",
        [("startend:end_checker", {"end_phrase": "好，再见"}), ("punctuation:no_comma", {})],
        True,
    ),
]


@pytest.mark.parametrize(("language", "pairs", "contradictory"), CONTRADICTIONS)
def test_contradictions(language, pairs, contradictory):
    constraints = [Constraint(*pair) for pair in pairs]
    if contradictory:
        with pytest.raises(DataError, match="cannot be followed"):
            validate(constraints, language)
    else:
        validate(constraints, language)


def test_rows_of_ifeval():
    constraints = constraints_of(
        ["punctuation:no_comma", "language:response_language"], [{}, {"language": "fil"}]
    )
    assert answer_language(constraints, "en") == "tl"
    assert answer_language(constraints[:1], "th") == "th"
    with pytest.raises(DataError, match="2 instructions but 1 sets"):
        constraints_of(["a:b", "c:d"], [{}])


def test_language_normalisation():
    malay = "Pagi ini saya pergi ke pasar kerana emak mahu membeli ikan, sahaja."
    assert in_language(malay, "ms").ok
    assert not in_language(malay, "id").ok
    assert in_language(malay, "id", semantics="sea-helm").ok
    assert not in_language("This is an English sentence.", "th").ok


def test_language_of_a_response_that_quotes_its_prompt():
    prompt = "Please write one short sentence about the market in the Thai language."
    response = f"{prompt}\n\nตลาดเช้าวันนี้คนเยอะ"
    given = {"language": "th"}
    assert check("language:response_language", given, response, "en", prompt=prompt).ok
    assert not check("language:response_language", given, response, "en").ok


def test_matching_follows_the_script():
    assert len(find("ikan, ikannya, ikan-ikan dan mengikan", "ikan", "id")) == 4
    assert len(find("sneakers and a sneaker", "sneaker", "en")) == 1
    assert len(find("sneakers and a sneaker", "sneaker", "en", inflected=True)) == 2
    assert len(find("umagang maganda, umaga na", "umaga", "tl")) == 2
    assert len(find("ใช้iPhoneของฉัน", "iphone", "th")) == 1
    assert find("iPhones", "iphone", "th") == []
    assert len(find("ກໍາລັງ ກຳລັງ", "ກຳລັງ", "lo")) == 2
    assert len(find("C++ and c++", "C++", "en")) == 2
    assert starts_with("ปลาสดมาก", "ปลา", "th") and not starts_with("ปลายทาง", "ปลา", "th")


TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from([*"ปลາត្រីငါးமீ鱼*[]<>{}\"'.,\n\x00", " ", "***", "P.S.", "a1"])).map(
        "".join
    ),
)
PARAMETERS = {
    "count": 2,
    "text": "ปลา",
    "texts": ["ปลา", "a"],
    "number": "3",
    "letter": "a",
    "relation": "at least",
    "language": "th",
}


@settings(max_examples=60)
@given(TEXTS, st.sampled_from(sorted(LANGUAGES)))
def test_any_response_gets_a_verdict(response, language):
    for name, known in INSTRUCTIONS.items():
        if known.needs_case and LANGUAGES[language].script != "Latin":
            continue
        parameters = {key: PARAMETERS[kind] for key, kind in known.needs.items()}
        strict = check(name, parameters, response, language)
        loose = check(name, parameters, response, language, loose=True)
        assert strict.ok in (True, False) and strict.reason
        assert loose.ok or not strict.ok, "loose accepts what strict accepts"
        for semantics in ("sea-helm", "ifeval"):
            check(name, parameters, response, language, semantics=semantics)


LONG = ["[", "<", "*", "\n-", "- ", "\\[", "$$ ", "a.", "P.", "# ", "`"]
AFTER_A_CLOSER = ["<<", "[", "\n", "- -\n", "***", "<<a", " ", "\n\n \n"]


@pytest.mark.parametrize(
    "response",
    [
        *("", " \n", "\x00", "😀" * 100, "مرحبا بالعالم", "{" * 100_000, "a" * 300_000),
        *(mark * 50_000 for mark in LONG),
        *(f">>]{mark * 30_000}x" for mark in AFTER_A_CLOSER),
    ],
    ids=lambda response: repr(response[:4]),
)
def test_hostile_responses(response):
    for name, known in INSTRUCTIONS.items():
        parameters = {key: PARAMETERS[kind] for key, kind in known.needs.items()}
        for semantics in ("native", "sea-helm", "ifeval"):
            verdict = check(name, parameters, response, "en", semantics=semantics)
            assert verdict.ok is not True or response.strip() or semantics != "native"
