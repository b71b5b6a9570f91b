from __future__ import annotations

import pytest

from singalaut.errors import RecipeError
from singalaut.text.languages import LANGUAGES, SCRIPT_RANGES, language, script_share


def test_the_eleven_languages():
    assert " ".join(LANGUAGES) == "en id km lo ms my ta th tl vi zh"
    for code, entry in LANGUAGES.items():
        assert language(code) is entry
        assert entry.script in SCRIPT_RANGES
        assert all((entry.name, entry.native_name, entry.answer_tag, entry.translation_tag))


@pytest.mark.parametrize("code", LANGUAGES)
def test_native_words_are_in_the_script_of_their_language(code):
    entry = LANGUAGES[code]
    for text in (entry.native_name, entry.answer_tag, entry.translation_tag):
        assert script_share(text, entry.script) == 1.0
        others = [script for script in SCRIPT_RANGES if script != entry.script]
        assert all(script_share(text, script) == 0.0 for script in others)


def test_script_share_counts_letters_and_vowel_signs_only():
    assert script_share("ภาษา abcd 1234, ...", "Thai") == 0.5
    assert script_share("กำ่", "Thai") == 1.0
    assert script_share("e\u0301", "Latin") == 1.0
    assert script_share("12 + 30 = 42!", "Latin") == 0.0
    assert script_share("", "Han") == 0.0


@pytest.mark.parametrize(
    "code, nearest", [("tH", "th"), ("thai", "th"), ("Malay", "ms"), ("vn", "vi"), ("burmes", "my")]
)
def test_an_unknown_code_names_the_nearest(code, nearest):
    with pytest.raises(RecipeError, match=f"did you mean `{nearest}`"):
        language(code)


def test_an_unknown_script_is_refused():
    with pytest.raises(RecipeError, match="unknown script `Klingon`"):
        script_share("nuqneH", "Klingon")
