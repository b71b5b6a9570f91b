"""Extraction: the rules, their agreement with a plain reading of them, and the guards."""

from __future__ import annotations

import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.evals.extraction import Extraction, echoes, extract_label, extract_text

LETTERS = {"a": "A", "b": "B", "c": "C"}
MOODS = {"positive": "Positif", "negative": "Negatif", "neutral": "Netral"}
BURMESE = {"a": "က", "b": "ခ"}
THAI = {"positive": "แง่บวก", "negative": "แง่ลบ", "neutral": "เฉยๆ"}


@pytest.mark.parametrize(
    ("response", "tag", "labels", "answer", "extracted"),
    [
        ("Jawaban: Positif", "Jawaban:", MOODS, "positive", True),
        ("jawaban:negatif.", "Jawaban:", MOODS, "negative", True),
        ("**Jawaban:** **Netral**", "Jawaban:", MOODS, "neutral", True),
        ("Menurut saya…\nJawaban: \n\n Positif karena", "Jawaban:", MOODS, "positive", True),
        ("Jawaban: A. Jawaban: B", "Jawaban:", LETTERS, "a", True),
        ("Jawaban: entah. Jawaban: B", "Jawaban:", LETTERS, "b", True),
        ("คำตอบ: แง่บวกครับ", "คำตอบ:", THAI, "positive", True),
        ("คำตอบ:Aครับ", "คำตอบ:", LETTERS, "a", True),
        ("အဖြေ- က။", "အဖြေ-", BURMESE, "a", True),
        # without a tag the whole response must be a label
        ("Positif", "Jawaban:", MOODS, "positive", False),
        ("  (Positif).\n", "Jawaban:", MOODS, "positive", False),
        ("Saya rasa Positif", "Jawaban:", MOODS, None, False),
        ("", "Jawaban:", MOODS, None, False),
        # what only looks like an answer
        ("Jawaban: ANSWER", "Jawaban:", LETTERS, None, False),
        ("Jawaban: Berdasarkan teks", "Jawaban:", LETTERS, None, False),
        ("Jawaban: AB", "Jawaban:", LETTERS, None, False),
        ("Jawaban: ANSWER\nJawaban: C", "Jawaban:", LETTERS, "c", True),
        ("အဖြေ- ကျွန်တော်", "အဖြေ-", BURMESE, None, False),
        ("Jawaban: (C)", "Jawaban:", LETTERS, None, False),
    ],
)
def test_labels(response, tag, labels, answer, extracted):
    assert extract_label(response, tag, labels) == Extraction(answer, extracted)


def test_the_longest_label_wins_whatever_the_order():
    labels = {"no": "Không", "unsure": "Không chắc"}
    for order in (labels, dict(reversed(labels.items()))):
        assert extract_label("Đáp án: Không chắc", "Đáp án:", order).answer == "unsure"
        assert extract_label("Đáp án: Không", "Đáp án:", order).answer == "no"


def test_a_decomposed_spelling_of_tag_and_label_is_the_same():
    response = unicodedata.normalize("NFD", "Câu trả lời: Tích cực")
    assert extract_label(response, "Câu trả lời:", {"p": "Tích cực", "n": "Tiêu cực"}).answer == "p"
    assert (
        extract_label(
            "Câu trả lời: Tích cực",
            unicodedata.normalize("NFD", "Câu trả lời:"),
            {"p": unicodedata.normalize("NFD", "Tích cực"), "n": "x"},
        ).answer
        == "p"
    )


def test_what_the_prompt_shows_after_the_tag_is_no_answer():
    template = 'Jawablah dengan "Jawaban: Positif/Negatif".\n\n{text}'
    echoed = echoes(template, "Jawaban:")
    assert "positif/negatif" in echoed
    assert extract_label("Jawaban: Positif/Negatif", "Jawaban:", MOODS, echoed).answer is None
    assert extract_label("Jawaban: Positif", "Jawaban:", MOODS, echoed).extracted
    only = echoes('Contoh: "Jawaban: Positif"', "Jawaban:")
    assert extract_label("Jawaban: Positif", "Jawaban:", MOODS, only).answer == "positive"


@pytest.mark.parametrize(
    ("response", "answer", "extracted"),
    [
        ("Terjemahan: Selamat pagi.\nCatatan: x", "Selamat pagi.", True),
        ("Tentu!\n**Terjemahan:**\n```\nSelamat pagi.\n```", "Selamat pagi.", True),
        ("Terjemahan: satu\nTerjemahan: dua", "satu", True),
        ("Terjemahan: TRANSLATION\nTerjemahan: dua", "dua", True),
        ("Tulis Terjemahan:\nTerjemahan: dua", "dua", True),
        ("Terjemahan: [TRANSLATION]", "Terjemahan: [TRANSLATION]", False),
        (" Selamat pagi.\nApa kabar? ", "Selamat pagi.\nApa kabar?", False),
        ("terjemahan: x", "terjemahan: x", False),
        ("Terjemahan: ", "", False),
        ("", "", False),
    ],
)
def test_texts(response, answer, extracted):
    assert extract_text(response, "Terjemahan:") == Extraction(answer, extracted)


LABELS = st.sampled_from([LETTERS, MOODS, BURMESE, THAI])
PIECES = st.sampled_from(
    ["Jawaban:", "jawaban:", " ", "\n", "*", "`", "A", "B", "Positif", "က", "ျ", "แง่บวก"]
)
TEXT = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=3))).map("".join))


@given(TEXT, st.one_of(st.just("Jawaban:"), st.text(min_size=1)), LABELS)
def test_any_text_is_handled(response, tag, labels):
    found = extract_label(response, tag, labels)
    assert found.answer in (*labels, None)
    assert found.answer is not None or not found.extracted
    text = extract_text(response, tag)
    assert text.answer is not None
    assert text.answer or not text.extracted
    echoes(response, tag)


def rule(response: str, tag: str, labels: dict[str, str]) -> str | None:
    """The rule as written: tag, whitespace or `*`, labels; else the whole response."""
    match = re.search(tag + r"[\s*]*(" + "|".join(labels.values()) + ")", response, re.IGNORECASE)
    answer = match[1] if match else response.strip(string.punctuation + string.whitespace)
    return {text.lower(): label for label, text in labels.items()}.get(answer.lower())


@given(
    st.text("xyz .\n", max_size=6),
    st.sampled_from(["Jawaban:", "jawaban:", "", "Answer:"]),
    st.text(" \n*", max_size=3),
    st.sampled_from(["Positif", "NEGATIF", "netral", "Entah", ""]),
    st.text(" .\n*", max_size=3).map(lambda text: text and "." + text + "x"),
)
def test_ordinary_responses_are_read_as_the_rule_says(before, tag, gap, label, after):
    response = before + tag + gap + label + after
    assert extract_label(response, "Jawaban:", MOODS).answer == rule(response, "Jawaban:", MOODS)


def test_the_rule_itself_reads_echoes_as_answers():
    assert rule("Jawaban: ANSWER", "Jawaban:", LETTERS) == "a"  # why the guard is there
    assert extract_label("Jawaban: ANSWER", "Jawaban:", LETTERS, ()).answer is None
