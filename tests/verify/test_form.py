from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.text.languages import LANGUAGES
from singalaut.verify.form import (
    answer_form,
    length,
    looping_tail,
    reasoning_form,
    repeated_share,
)


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_in_form(language):
    tag = LANGUAGES[language].answer_tag
    assert answer_form(f"12\n{tag} 7", "tag", language).ok
    assert answer_form(f"12\n**{tag}** 7", "tag", language).ok
    assert not answer_form(f"{tag} 7\n{tag} 8", "tag", language).ok
    assert not answer_form(f"12\n{tag}", "tag", language).ok
    assert not answer_form("12", "tag", language).ok


def test_boxes_and_elements():
    assert answer_form("so \\boxed{7}", "box", "en").ok
    assert not answer_form("so \\boxed{7} or \\boxed{8}", "box", "en").ok
    assert not answer_form("so \\boxed{7", "box", "en").ok
    assert not answer_form("so \\boxed{}", "box", "en").ok
    assert answer_form("<answer>7</answer>", "element", "en").ok
    assert not answer_form("<answer> </answer>", "element", "en").ok


def test_reasoning_comes_first_and_once():
    assert reasoning_form("<think>hm, 7</think>\n7").ok
    for text in ("7", "<think></think>7", "<think>a</think>", "a<think>b</think>c"):
        assert not reasoning_form(text).ok
    assert not reasoning_form("<think>a</think>b<think>c</think>d").ok


def test_length_in_units():
    assert length("แม่ไปตลาด", "words", "th") == 3
    assert length("น้ำ", "characters", "th") == 1
    assert length("One. Two.", "sentences", "en") == 2


def test_repetition():
    fresh = "the cat sat on the mat while rain fell over hills far away from our old house"
    assert repeated_share(fresh) == 0.0
    assert repeated_share("again and again " * 50) > 0.9
    assert repeated_share("ไปตลาดซื้อปลา" * 30) > 0.9
    assert repeated_share("แม่ไปตลาดซื้อปลาวันนี้อากาศดีมากเด็กกินข้าวที่บ้าน") == 0.0
    assert repeated_share("") == 0.0


def test_looping_tails():
    assert looping_tail("a b c " + "xyz" * 10) == ("xyz", 10)
    assert looping_tail("ตอบ " + "ครับ" * 7) == ("ครับ", 7)
    assert looping_tail("no loop here") == ("", 1)
    assert looping_tail("") == ("", 1)
    assert looping_tail("a" * 1_000_000)[1] >= 2000


@given(st.text(max_size=20), st.text(min_size=2, max_size=8), st.integers(3, 20))
def test_a_loop_is_found_whole(start, piece, times):
    tail, found = looping_tail(start + piece * times)
    assert len(tail) * found >= len(piece) * times - len(piece)
    assert (start + piece * times).endswith(tail * found)
    assert 0.0 <= repeated_share(start + piece * times) <= 1.0
