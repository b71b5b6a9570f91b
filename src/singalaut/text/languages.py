"""The eleven languages as data: names, scripts, and the tags that introduce an answer.

Which language a text is written in is not decided here; `script_share` only counts letters.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches

from singalaut.errors import RecipeError


@dataclass(frozen=True)
class Language:
    """One language; `script` is the Unicode name of the script it is mainly written in.

    `answer_tag` stands before the answer to a question, `translation_tag` before a translation.
    """

    code: str
    name: str
    native_name: str
    script: str
    answer_tag: str
    translation_tag: str


_ALL = (
    Language("en", "English", "English", "Latin", "Answer:", "Translation:"),
    Language("id", "Indonesian", "Bahasa Indonesia", "Latin", "Jawaban:", "Terjemahan:"),
    Language("km", "Khmer", "ភាសាខ្មែរ", "Khmer", "ចម្លើយ៖", "ការបរប្រែ៖"),
    Language("lo", "Lao", "ພາສາລາວ", "Lao", "ຄຳຕອບ:", "ຄຳແປ:"),
    Language("ms", "Malay", "Bahasa Melayu", "Latin", "Jawapan:", "Terjemahan:"),
    Language("my", "Burmese", "မြန်မာဘာသာ", "Myanmar", "အဖြေ-", "ဘာသာပြန်ချက်-"),
    Language("ta", "Tamil", "தமிழ்", "Tamil", "பதில்:", "மொழிபெயர்ப்பு:"),
    Language("th", "Thai", "ภาษาไทย", "Thai", "คำตอบ:", "คำแปล:"),
    Language("tl", "Filipino", "Filipino", "Latin", "Sagot:", "Salin:"),
    Language("vi", "Vietnamese", "Tiếng Việt", "Latin", "Câu trả lời:", "Bản dịch:"),
    Language("zh", "Chinese", "中文", "Han", "答案：", "翻译："),
)
LANGUAGES: dict[str, Language] = {entry.code: entry for entry in _ALL}

# First and last code point of the blocks that hold a script's letters and marks.
SCRIPT_RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": (
        (0x0041, 0x005A),
        (0x0061, 0x007A),
        (0x00AA, 0x00AA),
        (0x00BA, 0x00BA),
        (0x00C0, 0x02AF),
        (0x1E00, 0x1EFF),
        (0x2C60, 0x2C7F),
        (0xA720, 0xA7FF),
        (0xFF21, 0xFF3A),
        (0xFF41, 0xFF5A),
    ),
    "Tamil": ((0x0B80, 0x0BFF),),
    "Thai": ((0x0E00, 0x0E7F),),
    "Lao": ((0x0E80, 0x0EFF),),
    "Myanmar": ((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),
    "Khmer": ((0x1780, 0x17FF),),
    "Han": (
        (0x3005, 0x3005),
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x323AF),
    ),
}
_SHARED_MARKS = (0x0300, 0x036F)  # accents that belong to whichever letter they follow


def language(code: str) -> Language:
    """The language of a code such as `th`.

    Raises: RecipeError, naming the nearest known code.
    """
    if code in LANGUAGES:
        return LANGUAGES[code]
    raise RecipeError(f"unknown language `{code}`", hint=_nearest_hint(code))


def script_share(text: str, script: str) -> float:
    """Share (0 to 1) of the letters and vowel signs of `text` that belong to `script`.

    Digits, punctuation and spaces do not count; a text without letters has share 0.
    Raises: RecipeError for a script that is not in SCRIPT_RANGES.
    """
    if script not in SCRIPT_RANGES:
        raise RecipeError(f"unknown script `{script}`", hint="known: " + ", ".join(SCRIPT_RANGES))
    letters = [ord(character) for character in text if _is_letter(character)]
    if not letters:
        return 0.0
    ranges = SCRIPT_RANGES[script]
    found = sum(any(first <= point <= last for first, last in ranges) for point in letters)
    return found / len(letters)


def _is_letter(character: str) -> bool:
    if _SHARED_MARKS[0] <= ord(character) <= _SHARED_MARKS[1]:
        return False
    return unicodedata.category(character)[0] in "LM"


def _nearest_hint(code: str) -> str:
    known = "known: " + " ".join(LANGUAGES)
    by_word = {w.lower(): c for c, x in LANGUAGES.items() for w in (c, x.name, x.native_name)}
    near = get_close_matches(code.lower(), by_word, n=1, cutoff=0.5)
    return f"did you mean `{by_word[near[0]]}`? {known}" if near else known
