"""Numbers as the eleven languages write them: native digits, Tamil and Chinese numerals.

`ascii_digits` changes positional digits one for one. `tamil_number` and `chinese_number` read the
numerals that multiply and add, `௨௱௫௰` or `二百五十`. Separators, units and signs are the caller's.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_OTHER_DIGIT = re.compile(r"(?![0-9])\d")

_TAMIL_UNITS = {"௰": 10, "௱": 100, "௲": 1000}
TAMIL_NUMERAL = "[௦-௯௰-௲]"

_CHINESE_DIGITS = {
    **dict(zip("〇一二三四五六七八九", range(10), strict=True)),
    **dict(zip("零壹贰叁肆伍陆柒捌玖", range(10), strict=True)),
    **{"○": 0, "两": 2, "兩": 2, "貳": 2, "參": 3, "陸": 6, "幺": 1},
}
_CHINESE_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_CHINESE_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "兆": 10**12}
CHINESE_NUMERAL = "[" + "".join((*_CHINESE_DIGITS, *_CHINESE_UNITS, *_CHINESE_MYRIADS)) + "]"


def ascii_digits(text: str) -> str:
    """`text` with the decimal digits of every script, full width included, as 0 to 9."""
    if text.isascii():
        return text
    return _OTHER_DIGIT.sub(lambda match: str(unicodedata.digit(match[0])), text)


def tamil_number(text: str) -> int | None:
    """The value of Tamil numerals, positional (`௧௦`) or with signs for 10, 100, 1000 (`௨௱௫௰`)."""
    if not re.fullmatch(TAMIL_NUMERAL + "+", text):
        return None
    if not any(sign in text for sign in _TAMIL_UNITS):
        return int(ascii_digits(text))
    total, digit = 0, 0
    for character in text:
        if (unit := _TAMIL_UNITS.get(character)) is None:
            digit = digit * 10 + unicodedata.digit(character)
        elif unit == 1000:  # everything before it counts thousands: ௱௲ is 100,000
            total, digit = (total + digit or 1) * 1000, 0
        else:
            total, digit = total + (digit or 1) * unit, 0
    return total + digit


def chinese_number(text: str) -> Fraction | None:
    """The value of Chinese numerals: `三百零五`, `二〇二五`, `一亿二千万`, `三点一四`, `负五`.

    Also `二百五` (250) and `三万五` (35,000), where the last unit is left unsaid. Financial forms
    and traditional characters count. None if `text` is not wholly such a number.
    """
    negative = text[:1] in ("负", "負")
    whole, point, part = text.removeprefix(text[0] if negative else "").partition("点")
    if not point:
        whole, point, part = whole.partition("點")
    value = _chinese_whole(whole)
    if value is None or (point and not part):
        return None
    result = Fraction(value)
    if point:
        if any(character not in _CHINESE_DIGITS for character in part):
            return None
        digits = "".join(str(_CHINESE_DIGITS[character]) for character in part)
        result += Fraction(int(digits), 10 ** len(digits))
    return -result if negative else result


def _chinese_whole(text: str) -> int | None:
    if not text or not re.fullmatch(CHINESE_NUMERAL + "+", text):
        return None
    if all(character in _CHINESE_DIGITS for character in text):
        return int("".join(str(_CHINESE_DIGITS[character]) for character in text))
    total, section, digit, last_unit = 0, 0, None, 1
    for character in text:
        if character in _CHINESE_DIGITS:
            if digit:  # two digits in a row, as in 二五百: not a number
                return None
            digit = _CHINESE_DIGITS[character]
            last_unit = 1 if digit == 0 else last_unit
        elif unit := _CHINESE_UNITS.get(character):
            section += (1 if digit is None else digit) * unit
            digit, last_unit = None, unit
        else:
            myriad = _CHINESE_MYRIADS[character]
            section += digit or 0
            if section == 0 and total == 0:
                return None
            total = (total + section) * myriad if total % myriad else total + section * myriad
            section, digit, last_unit = 0, None, myriad
    return total + section + (digit or 0) * (last_unit // 10 or 1)
