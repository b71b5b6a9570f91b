"""Reads a plain number out of an answer, whatever the script, separators, units and scale words.

Exact: values are fractions. A text that can be read in two ways, `1.000` in Indonesian, has both
readings. What is no plain number (`2x+1`, `\\sqrt{2}`) is for `maths` to hand to computer algebra.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from singalaut.text.digits import (
    CHINESE_NUMERAL,
    TAMIL_NUMERAL,
    ascii_digits,
    chinese_number,
    tamil_number,
)
from singalaut.text.marks import canonical

# Languages that write 1.000,5 for a thousand and a half (Unicode CLDR); 1,000.5 is read there too.
DECIMAL_COMMA = frozenset({"id", "vi", "km", "lo"})
LONGEST_NUMBER_CHARACTERS = 200

SCALES: dict[str, int] = {
    **{"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
    **{"ratus": 100, "ribu": 10**3, "juta": 10**6, "miliar": 10**9, "bilion": 10**9},
    **{"triliun": 10**12, "trilion": 10**12, "nghìn": 10**3, "ngàn": 10**3, "triệu": 10**6},
    **{"tỷ": 10**9, "tỉ": 10**9, "libo": 10**3, "milyon": 10**6, "bilyon": 10**9},
    **{"ร้อย": 100, "พัน": 10**3, "หมื่น": 10**4, "แสน": 10**5, "ล้าน": 10**6},
    **{"ຮ້ອຍ": 100, "ພັນ": 10**3, "ໝື່ນ": 10**4, "ແສນ": 10**5, "ລ້ານ": 10**6},
    **{"រយ": 100, "ពាន់": 10**3, "ម៉ឺន": 10**4, "សែន": 10**5, "លាន": 10**6},
    **{"ရာ": 100, "ထောင်": 10**3, "သောင်း": 10**4, "သိန်း": 10**5, "သန်း": 10**6},
    **{"நூறு": 100, "ஆயிரம்": 10**3, "லட்சம்": 10**5, "கோடி": 10**7},
    **{"百": 100, "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8},
}
_SCALE = "|".join(sorted(map(re.escape, SCALES), key=len, reverse=True))
_UNSIGNED = (
    r"(?:\d{1,3}(?:[ \u00a0\u2009\u202f'’]\d{3})+(?:[.,]\d+)?"  # 1 000 000,5
    r"|\d+(?:[.,]\d+)*|[.,]\d+)"
    r"(?:[eE][+-]?\d{1,3}(?![\d.]))?"
)
NUMBER = re.compile(
    rf"(?P<sign>(?<![\d)\]}}])[-+]\s?)?(?P<whole>{_UNSIGNED})"
    rf"(?:\s?(?P<over>/)\s?(?P<bottom>\d+(?![\d.,]*\d))|\s(?P<top>\d+)/(?P<under>\d+))?"
    rf"(?:\s?(?P<scale>{_SCALE})(?![a-z\u00c0-\u024f\u1e00-\u1eff]))?(?:\s?(?P<percent>%|\\%|per\s?cent|persen|peratus))?",
    re.IGNORECASE,
)
_LATEX_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))"
)
_LATEX_POWER = re.compile(
    r"(?<![\d.,])(-?\d{1,40}(?:[.,]\d{1,40})?)\s*(?:\\times|\\cdot|×|·|\*)\s*10\s*(?:\^|\*\*)\s*\{?\s*(-?\d{1,3})\s*\}?"
)
_LATEX_WRAPPER = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|boxed|mbox|operatorname)\s*\{([^{}]*)\}"
)
_LATEX_SPACE = re.compile(r"\\[,;:!>]|\\q?quad|~|\{,\}|\\left|\\right|\\displaystyle|\$|\\\(|\\\)")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_CHINESE_FRACTION = re.compile(rf"({CHINESE_NUMERAL}{{1,20}})分之({CHINESE_NUMERAL}{{1,20}})")
_CHINESE_RUN = re.compile(rf"[负負]?{CHINESE_NUMERAL}+(?:[点點]{CHINESE_NUMERAL}+)?")
_TAMIL_RUN = re.compile(f"{TAMIL_NUMERAL}*[௰-௲]{TAMIL_NUMERAL}*")
_BURMESE_ZERO = re.compile("(?<=[၀-၉])ဝ|ဝ(?=[၀-၉])")  # the letter wa, often typed for zero
_OPERATOR = re.compile(
    r"[\^=<>√∫∑π*×÷+±∞:]|\\(?:sqrt|pi|[dt]?frac|pm|cdot|times|infty|log|ln|sin|cos)"
    r"|(?<![A-Za-z])[xyzn](?![A-Za-z])|[²³¹⁰-⁹]"
)
_LIST = re.compile(r"[(\[{][^()\[\]{}]*,[^()\[\]{}]*[)\]}]|\d\s?!")  # (1,2) and 3! are no number
_FULL_WIDTH = {point: point - 0xFEE0 for point in range(0xFF01, 0xFF5F)}


def plain(text: str) -> str:
    """`text` as `in_ascii` has it, LaTeX spacing left out and fractions of numbers as a/b."""
    text = in_ascii(text)
    if "\\" in text or "$" in text or "{" in text:
        text = text.replace("{,}", ",").replace("\\%", "%")
        text = re.sub(r"(?<=\d)\\[,;: ](?=\d{3})", " ", text)
        text = _LATEX_FRACTION.sub(_latex_fraction, _LATEX_SPACE.sub(" ", text))
    return text


def in_ascii(text: str) -> str:
    """`text` with ASCII digits and signs, native numerals as digits, `\\text{}` and such undone."""
    text = _VULGAR.sub(_vulgar, canonical(text).translate(_FULL_WIDTH))
    text = _BURMESE_ZERO.sub("၀", text)
    text = _TAMIL_RUN.sub(lambda match: str(tamil_number(match[0])), text)
    text = _CHINESE_FRACTION.sub(_chinese_fraction, text)
    text = ascii_digits(text).replace("−", "-").replace("–", "-").replace("⁄", "/")
    for _ in range(2 if "\\" in text else 0):
        text = _LATEX_WRAPPER.sub(r" \1 ", text)
    return text


def numbers(text: str, language: str = "en") -> list[frozenset[Fraction]]:
    """The readings of each number in `text`, from left to right."""
    text = _LATEX_POWER.sub(_power, plain(text))
    matches = (_readings(match, language) for match in NUMBER.finditer(text))
    found = [readings for readings in matches if readings]
    if not found:
        values = map(chinese_number, _CHINESE_RUN.findall(text))
        found = [frozenset({value}) for value in values if value is not None]
    return found


def single_number(text: str, language: str = "en") -> frozenset[Fraction]:
    """The readings of `text` if it is one number with words or units around it, else none."""
    if len(text) > LONGEST_NUMBER_CHARACTERS:
        return frozenset()
    if _LIST.search(text.replace("{,}", ",")):
        return frozenset()
    body = _LATEX_POWER.sub(_power, plain(text)).lstrip("*_`\"'“”( \n").rstrip("*_`\"'“”). 。\n")
    found = list(NUMBER.finditer(body))
    if not found:
        runs = _CHINESE_RUN.findall(body)
        value = chinese_number(runs[0]) if len(runs) == 1 else None
        return frozenset() if value is None else frozenset({value})
    if len(found) > 1:
        return frozenset()
    around = body[: found[0].start()] + " " + body[found[0].end() :]
    if _OPERATOR.search(around) or any(character.isdigit() for character in around):
        return frozenset()
    return _readings(found[0], language)


def _readings(match: re.Match[str], language: str) -> frozenset[Fraction]:
    values = _whole_readings(match["whole"], language)
    if match["bottom"] or match["under"]:
        bottom = int(match["bottom"] or match["under"])
        if bottom == 0:
            return frozenset()
        if match["bottom"]:
            values = {value / bottom for value in values}
        else:
            values = {value + Fraction(int(match["top"]), bottom) for value in values}
    if scale := match["scale"]:
        values = {value * SCALES[scale.lower()] for value in values}
    if match["sign"] and match["sign"].startswith("-"):
        values = {-value for value in values}
    if match["percent"]:
        values |= {value / 100 for value in values}
    return frozenset(values)


def _whole_readings(text: str, language: str) -> set[Fraction]:
    text = re.sub("[ \u00a0\u2009\u202f'’]", "", text)
    if len(text) > LONGEST_NUMBER_CHARACTERS:
        return set()
    mantissa, _, exponent = text.lower().partition("e")
    power = Fraction(10) ** int(exponent) if exponent else Fraction(1)
    points, commas = mantissa.count("."), mantissa.count(",")
    if points and commas:
        decimal = max(".,", key=mantissa.rfind)
        return {_decimal(mantissa, decimal) * power}
    mark = "." if points else ","
    groups = mantissa.split(mark)
    if points + commas == 0:
        return {Fraction(int(mantissa)) * power}
    grouped = bool(groups[0]) and len(groups[-1]) == 3 and all(2 <= len(g) <= 3 for g in groups[1:])
    if points + commas > 1:
        return {Fraction(int("".join(groups))) * power}
    one_decimal = _decimal(mantissa, mark) * power
    thousand = Fraction(int("".join(groups))) * power
    if not grouped or len(groups[0]) > 3 or groups[0].startswith("0"):
        return {one_decimal}
    if language in DECIMAL_COMMA:
        return {one_decimal, thousand}
    return {thousand} if mark == "," else {one_decimal}


def _decimal(text: str, mark: str) -> Fraction:
    other = "," if mark == "." else "."
    whole, _, part = text.replace(other, "").rpartition(mark)
    return Fraction(int((whole or "0") + part), 10 ** len(part))


def _latex_fraction(match: re.Match[str]) -> str:
    return f" {match[1] or match[2]}/{match[3] or match[4]} "


def _chinese_fraction(match: re.Match[str]) -> str:
    bottom, top = chinese_number(match[1]), chinese_number(match[2])
    return f" {top}/{bottom} " if top is not None and bottom else match[0]


def _vulgar(match: re.Match[str]) -> str:
    value = Fraction(unicodedata.numeric(match[0])).limit_denominator(10)
    return f" {value.numerator}/{value.denominator} "


def _power(match: re.Match[str]) -> str:
    return f"{match[1]}e{match[2]}"
