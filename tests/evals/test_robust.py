"""The careful reading: what a person would say that a response answers, and its guards."""

from __future__ import annotations

import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.evals.extraction import label_extractor
from singalaut.evals.robust import (
    PLACEHOLDERS,
    echoes,
    robust_label_extractor,
    robust_text_extractor,
)

LETTERS = {"a": "A", "b": "B", "c": "C"}
MOODS = {"positive": "Positif", "negative": "Negatif", "neutral": "Netral"}
BURMESE = {"a": "က", "b": "ခ"}
THAI = {"positive": "แง่บวก", "negative": "แง่ลบ", "neutral": "เฉยๆ"}
VIETNAMESE = {"p": "Tích cực", "n": "Tiêu cực"}


def read(response, tag, labels, echoed=PLACEHOLDERS, synonyms=None):
    return robust_label_extractor(tag, labels, synonyms, echoed)(response)


@pytest.mark.parametrize(
    ("response", "tag", "labels", "answer", "tagged"),
    [
        ("Jawaban: Positif", "Jawaban:", MOODS, "positive", True),
        ("jawaban:negatif.", "Jawaban:", MOODS, "negative", True),
        ("**Jawaban:** **Netral**", "Jawaban:", MOODS, "neutral", True),
        ("Menurut saya…\nJawaban: \n\n Positif karena", "Jawaban:", MOODS, "positive", True),
        ("Jawaban: A karena B salah", "Jawaban:", LETTERS, "a", True),
        ("Jawaban: A. Bukan, maaf.\nJawaban: B", "Jawaban:", LETTERS, "b", True),
        ("Jawaban: entah. Jawaban: B", "Jawaban:", LETTERS, "b", True),
        ("คำตอบ: แง่บวกครับ", "คำตอบ:", THAI, "positive", True),
        ("คำตอบ:Aครับ", "คำตอบ:", LETTERS, "a", True),
        ("အဖြေ- က။", "အဖြေ-", BURMESE, "a", True),
        # what the published rules miss
        ("Jawaban: (C)", "Jawaban:", LETTERS, "c", True),
        ('Jawaban: "C"', "Jawaban:", LETTERS, "c", True),
        ("Jawaban: `C`", "Jawaban:", LETTERS, "c", True),
        ("Jawaban : C", "Jawaban:", LETTERS, "c", True),
        ("အဖြေ - ခ", "အဖြေ-", BURMESE, "b", True),
        ("答案：A", "答案:", LETTERS, "a", True),
        ("ចម្លើយ: B", "ចម្លើយ៖", LETTERS, "b", True),
        ("Jawaban:\n\nA. Dia pergi", "Jawaban:", LETTERS, "a", True),
        # without a tag the whole response, or its last line, must be a label
        ("Positif", "Jawaban:", MOODS, "positive", False),
        ("  (Positif).\n", "Jawaban:", MOODS, "positive", False),
        ("Kalimat itu memuji.\nPositif", "Jawaban:", MOODS, "positive", False),
        ("Saya rasa Positif", "Jawaban:", MOODS, None, False),
        ("", "Jawaban:", MOODS, None, False),
        # what only looks like an answer
        ("Jawaban: ANSWER", "Jawaban:", LETTERS, None, False),
        ("Jawaban: Berdasarkan teks", "Jawaban:", LETTERS, None, False),
        ("Jawaban: AB", "Jawaban:", LETTERS, None, False),
        ("Jawaban: ANSWER\nJawaban: C", "Jawaban:", LETTERS, "c", True),
        ("အဖြေ- ကျွန်တော်", "အဖြေ-", BURMESE, None, False),
        ("Jawaban: A, B, atau C", "Jawaban:", LETTERS, None, False),
        ("Jawaban: Positif/Negatif", "Jawaban:", MOODS, None, False),
    ],
)
def test_labels(response, tag, labels, answer, tagged):
    found = read(response, tag, labels)
    assert (found.answer, found.tagged) == (answer, tagged)


def test_what_is_odd_is_told():
    assert read("Jawaban: ANSWER", "Jawaban:", LETTERS).echoed
    assert read("Jawaban: A\nJawaban: B", "Jawaban:", LETTERS).contradictory
    assert read("Jawaban: A / B", "Jawaban:", LETTERS).contradictory
    fine = read("Jawaban: A\nJawaban: A", "Jawaban:", LETTERS)
    assert not fine.contradictory and not fine.echoed


def test_the_longest_label_wins_whatever_the_order():
    labels = {"no": "Không", "unsure": "Không chắc"}
    for order in (labels, dict(reversed(labels.items()))):
        assert read("Đáp án: Không chắc", "Đáp án:", order).answer == "unsure"
        assert read("Đáp án: Không", "Đáp án:", order).answer == "no"


def test_synonyms_count():
    assert read("အဖြေ- B", "အဖြေ-", BURMESE, synonyms={"b": ["B"]}).answer == "b"
    assert read("အဖြေ- B", "အဖြေ-", BURMESE).answer is None


def test_a_decomposed_spelling_of_tag_and_label_is_the_same():
    response = unicodedata.normalize("NFD", "Câu trả lời: Tích cực")
    assert read(response, "Câu trả lời:", VIETNAMESE).answer == "p"
    tag = unicodedata.normalize("NFD", "Câu trả lời:")
    labels = {key: unicodedata.normalize("NFD", text) for key, text in VIETNAMESE.items()}
    assert read("Câu trả lời: Tích cực", tag, labels).answer == "p"


def test_what_the_prompt_shows_after_the_tag_is_no_answer():
    template = 'Jawablah dengan "Jawaban: Positif/Negatif".\n\n{text}'
    echoed = echoes(template, "Jawaban:")
    assert "positif/negatif" in echoed
    assert read("Jawaban: Positif/Negatif", "Jawaban:", MOODS, echoed).answer is None
    assert read("Jawaban: Positif", "Jawaban:", MOODS, echoed).tagged


@pytest.mark.parametrize(
    ("response", "length", "answer", "tagged"),
    [
        ("Terjemahan: Selamat pagi.\nCatatan: x", "line", "Selamat pagi.", True),
        ("Terjemahan: satu\ndua\n\nCatatan: x", "paragraph", "satu dua", True),
        ("Terjemahan: satu\n\ndua", "all", "satu\n\ndua", True),
        ("Tentu!\n**Terjemahan:**\n```\nSelamat pagi.\n```", "line", "Selamat pagi.", True),
        ("Terjemahan: satu\nTerjemahan: dua", "line", "dua", True),
        ("Terjemahan: TRANSLATION\nTerjemahan: dua", "line", "dua", True),
        ("Tulis Terjemahan:\nTerjemahan: dua", "line", "dua", True),
        ("Terjemahan: dua\nTerjemahan: TRANSLATION", "line", "dua", True),
        ("Terjemahan: “Selamat pagi.”", "line", "Selamat pagi.", True),
        ('Terjemahan: "Pergi," katanya, "pergi!"', "line", '"Pergi," katanya, "pergi!"', True),
        ("Terjemahan: [TRANSLATION]", "line", "", False),
        (" Selamat pagi.\nApa kabar? ", "line", "Selamat pagi. Apa kabar?", False),
        ("terjemahan: x", "line", "x", True),
        ("Terjemahan: ", "line", "", False),
        ("", "line", "", False),
    ],
)
def test_texts(response, length, answer, tagged):
    found = robust_text_extractor("Terjemahan:", length)(response)
    assert (found.answer, found.tagged) == (answer, tagged)


LABELS = st.sampled_from([LETTERS, MOODS, BURMESE, THAI])
PIECES = st.sampled_from(
    ["Jawaban:", "jawaban:", " ", "\n", "*", "`", "A", "B", "Positif", "က", "ျ", "แง่บวก", "\x00"]
)
TEXT = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=3))).map("".join))


@given(TEXT, st.one_of(st.just("Jawaban:"), st.text(min_size=1)), LABELS)
def test_any_text_is_handled(response, tag, labels):
    found = read(response, tag, labels)
    assert found.answer in (*labels, None)
    assert found.answer is not None or not found.tagged
    for length in ("line", "paragraph", "all"):
        text = robust_text_extractor(tag, length)(response)
        assert text.answer is not None and (text.answer or not text.tagged)
    echoes(response, tag)


def rule(response: str, tag: str, labels: dict[str, str]) -> str | None:
    """The plain rule: tag, whitespace or `*`, a label; else the whole response."""
    match = re.search(tag + r"[\s*]*(" + "|".join(labels.values()) + ")", response, re.IGNORECASE)
    answer = match[1] if match else response.strip(string.punctuation + string.whitespace)
    return {text.lower(): label for label, text in labels.items()}.get(answer.lower())


@given(
    st.text("xyz .", max_size=6),
    st.sampled_from(["Jawaban:", "jawaban:", "", "Answer:"]),
    st.text(" *", max_size=3),
    st.sampled_from(["Positif", "NEGATIF", "netral", "Entah", ""]),
    st.text(" .*", max_size=3).map(lambda text: text and "." + text + "x"),
)
def test_ordinary_responses_are_read_as_the_plain_rule_says(before, tag, gap, label, after):
    response = before + tag + gap + label + after
    assert read(response, "Jawaban:", MOODS).answer == rule(response, "Jawaban:", MOODS)


def test_the_published_rule_reads_echoes_as_answers():
    published = label_extractor("v1.2", "Jawaban:", LETTERS)
    assert published("Jawaban: ANSWER").answer == "a"  # why the guard is there
    assert read("Jawaban: ANSWER", "Jawaban:", LETTERS).answer is None


@pytest.mark.parametrize(
    "response",
    [
        "Jawaban: " * 100_000,
        "Jawaban" + " " * 1_000_000,
        "Jawaban: " + "*" * 1_000_000,
        "A\n" * 500_000,
        "😀" * 250_000,
        "\x00" * 1_000_000,
        "Jawaban:\n" * 100_000 + "A",
        "ก" * 300_000,
    ],
    ids=["tags", "spaces", "stars", "labels", "emoji", "nul", "lines", "thai"],
)
def test_a_megabyte_is_read_in_linear_time(response):
    # in quadratic time this would take hours
    read(response, "Jawaban:", LETTERS)
    for length in ("line", "paragraph", "all"):
        robust_text_extractor("Jawaban:", length)(response)
    label_extractor("v1.2", "Jawaban:", LETTERS)(response)
    label_extractor("v1.0", "Jawaban:", LETTERS)(response)
