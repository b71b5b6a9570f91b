from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.text.languages import LANGUAGES
from singalaut.verify.numbers import numbers, single_number

NUMBERS = [
    *(
        (text, "en", "72")
        for text in ("72", "72.", "**72**", "$72", "72 boxes", "\\text{72 apples}")
    ),
    *(
        (text, "en", "1234")
        for text in ("1,234", "1 234", "1'234", "1{,}234", "1\\,234", "1,234.0")
    ),
    *((text, "en", "3/4") for text in ("3/4", "\\frac{3}{4}", "\\dfrac34", "¾", "0.75", ".75")),
    *((text, "en", "3/2") for text in ("1 1/2", "1½", "1.5", "1,5", "$1.50")),
    *((text, "en", "120000") for text in ("1.2\\times 10^{5}", "1.2e5", "120,000", "120 thousand")),
    *((text, "en", "-7") for text in ("-7", "−7", "- 7", "\\$-7")),
    *((text, "id", "5000") for text in ("Rp 5.000", "5.000,00", "5000 rupiah", "5 ribu", "5,000")),
    *((text, "vi", "2500000") for text in ("2,5 triệu", "2.500.000 đồng", "2500000")),
    *((text, "ms", "1000000") for text in ("1 juta", "RM1,000,000", "1,000,000.00")),
    *((text, "tl", "2000") for text in ("₱2,000", "2 libo", "2000 piso")),
    *((text, "th", "1250") for text in ("๑๒๕๐", "๑,๒๕๐ บาท", "1,250 คน", "๑๒๕๐.๐")),
    *((text, "lo", "1250") for text in ("໑໒໕໐", "໑.໒໕໐ ກີບ", "1.250", "1250 ຄົນ")),
    *((text, "km", "1250") for text in ("១២៥០", "១.២៥០ រៀល", "1250 នាក់")),
    *((text, "my", "1250") for text in ("၁၂၅၀", "၁၂၅ဝ", "၁,၂၅၀ ကျပ်", "1250")),
    *((text, "ta", "1250") for text in ("௧௨௫௦", "௲௨௱௫௰", "1,250 ரூபாய்", "௧,௨௫௦")),
    *((text, "ta", "1234567") for text in ("12,34,567", "௧௨,௩௪,௫௬௭")),
    *((text, "zh", "1250") for text in ("一千二百五十", "１２５０", "1250个", "一千二百五十元")),
    *((text, "zh", "30000") for text in ("3万", "三万", "3万元", "30000")),
    *((text, "zh", "3/4") for text in ("四分之三", "0.75", "零点七五")),
    ("5 ล้านบาท", "th", "5000000"),
]


@pytest.mark.parametrize(("text", "language", "value"), NUMBERS)
def test_a_number_is_read(text, language, value):
    assert Fraction(value) in single_number(text, language)


def test_readings_are_no_more_than_the_language_allows():
    assert single_number("1.000", "id") == {Fraction(1), Fraction(1000)}
    assert single_number("1.000", "th") == {Fraction(1)}
    assert single_number("1,000", "th") == {Fraction(1000)}
    assert single_number("25%", "en") == {Fraction(25), Fraction(1, 4)}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "2x",
            "5²",
            "3+4",
            "3:4",
            "(3, 4)",
            "(3,4)",
            "\\{1,2\\}",
            "\\sqrt{2}",
            "x=5",
            "10/0",
            "3!",
        ),
        *("", "word", "between 3 and 4", "2^{10}", "2\\pi", "9" * 300, "1-2", "±3", "3!"),
    ],
)
def test_what_is_no_plain_number(text):
    assert single_number(text, "en") == frozenset()


def test_numbers_of_a_text_in_order():
    assert numbers("๓ บวก ๔ ได้ ๗", "th") == [{3}, {4}, {7}]
    assert numbers("7 + 5 = 12.", "en") == [{7}, {5}, {12}]
    assert numbers("七加五等于十二", "zh") == [{7}, {5}, {12}]
    assert numbers("9" * 10_000, "en") == []


@given(st.integers(-(10**12), 10**12), st.sampled_from(sorted(LANGUAGES)))
def test_integers_are_read_back_in_native_digits(value, language):
    zeros = {"th": "๐", "lo": "໐", "km": "០", "my": "၀", "ta": "௦", "zh": "０"}
    zero = ord(zeros.get(language, "0"))
    native = f"{value:,}".translate({48 + digit: zero + digit for digit in range(10)})
    if language in ("id", "vi", "km", "lo"):
        native = native.replace(",", ".")
    assert Fraction(value) in single_number(native, language)


@given(st.text(max_size=100), st.sampled_from(sorted(LANGUAGES)))
def test_any_text_can_be_read(text, language):
    assert isinstance(single_number(text, language), frozenset)
    assert isinstance(numbers(text, language), list)
