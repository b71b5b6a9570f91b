from __future__ import annotations

from fractions import Fraction

import pytest

from singalaut.text.digits import ascii_digits, chinese_number, tamil_number


@pytest.mark.parametrize(
    "text",
    ["๐๑๒๓๔๕๖๗๘๙", "០១២៣៤៥៦៧៨៩", "໐໑໒໓໔໕໖໗໘໙", "၀၁၂၃၄၅၆၇၈၉", "௦௧௨௩௪௫௬௭௮௯", "０１２３４５６７８９"],
)
def test_ascii_digits(text):
    assert ascii_digits(f"a{text}.") == "a0123456789."


@pytest.mark.parametrize(
    ("text", "value"),
    [("௨௱௫௰", 250), ("௧௦", 10), ("௱௲", 100_000), ("௲௯௱", 1900), ("௰௫", 15), ("௲", 1000)],
)
def test_tamil_number(text, value):
    assert tamil_number(text) == value


def test_a_tamil_word_is_no_number():
    assert tamil_number("தமிழ்") is None
    assert tamil_number("") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("三百零五", 305), ("二〇二五", 2025), ("一亿二千万", 120_000_000), ("负五", -5)),
        *(("二百五", 250), ("三万五", 35_000), ("十五", 15), ("一百一十", 110), ("两千", 2000)),
        *(("一千零一万", 10_010_000), ("叁拾", 30), ("零", 0), ("三点一四", Fraction(157, 50))),
        *(("一百零五", 105), ("二十", 20), ("十万", 100_000), ("一万亿", 10**12)),
        *((word, None) for word in ("二五百", "万", "一个", "", "点五", "三点", "负")),
    ],
)
def test_chinese_number(text, value):
    assert chinese_number(text) == value


def test_every_number_up_to_ten_thousand_is_read_back():
    digits, units = "零一二三四五六七八九", ("千", "百", "十", "")

    def written(number: int) -> str:
        places = [int(place) for place in f"{number:04d}"]
        text = "".join(
            digits[place] + unit if place else "零"
            for place, unit in zip(places, units, strict=True)
        )
        while "零零" in text:
            text = text.replace("零零", "零")
        return text.strip("零") or "零"

    assert all(chinese_number(written(number)) == number for number in range(10_000))
