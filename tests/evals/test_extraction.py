"""The published rules, held against a plain writing of them on thousands of odd responses."""

from __future__ import annotations

import random
import re
import string

import pytest

from singalaut.evals.extraction import Extraction, label_extractor, text_extractor

LETTERS = {letter: letter for letter in "ABCD"}
SETS = {
    "Jawaban:": {"Positif": "Positif", "Negatif": "Negatif", "Netral": "Netral"},
    "คำตอบ:": {"แง่บวก": "แง่บวก", "แง่ลบ": "แง่ลบ", "เฉยๆ": "เฉยๆ"},
    "Câu trả lời:": {"Tích cực": "Tích cực", "Tiêu cực": "Tiêu cực", "Trung lập": "Trung lập"},
    "အဖြေ-": {"က": "က", "ခ": "ခ", "ဂ": "ဂ", "ဃ": "ဃ"},
    "ចម្លើយ៖": LETTERS,
    "答案：": LETTERS,
    "பதில்:": {"உண்மை": "உண்மை", "பொய்": "பொய்"},
    "Sagot:": LETTERS,
}
JUNK = [
    *("", "ANSWER", "*", " ", "\n", "\t", "**", "(", ")", '"', "`", ".", "Berdasarkan", "A", "B"),
    *("AB", "คำตอบ", "😀", "\u202e", "\x00", "Not toxic", "$", "$OPTION", ":", "x" * 3000, "שלום"),
    *("teks satu, dua", "ข้าวคือ อาหาร", "食物 在这里"),
]
COUNT = 2000


def responses(tag: str, labels: list[str], seed: int):
    """Random heaps of tags, labels and junk, in any case."""
    generator = random.Random(seed)
    for _ in range(COUNT):
        parts = []
        for _ in range(generator.randint(0, 8)):
            kind = generator.random()
            label = generator.choice(labels)
            if kind < 0.4:
                parts.append(generator.choice([tag, tag, tag.lower(), tag.upper()]))
            elif kind < 0.7:
                parts.append(generator.choice([label, label.upper(), label.lower()]))
            else:
                parts.append(generator.choice(JUNK))
            if generator.random() < 0.4:
                parts.append(generator.choice([" ", "\n", "*"]))
        yield "".join(parts)


def normal(text: str) -> str:
    return " ".join(text.lower().strip(string.punctuation + " \n").split())


def published_label(response, tag, labels, *, case_sensitive=False, flags=re.IGNORECASE):
    """v1.2: search tag, gap, labels; without a group the whole response is the answer."""
    many = "*" if case_sensitive else "+"
    flags = 0 if case_sensitive else flags
    match = re.search(tag + r"[\s\*]*(" + "|".join(labels) + ")" + many, response, flags)
    text = response if match is None or match.group(1) is None else match.group(1)
    return {label.lower(): label for label in labels}.get(normal(text.strip()))


def old_label(response, tag, labels):
    """v1.0: the rest of the line after the first tag, all in small letters."""
    response = response.lower()
    match = re.search("(?<=" + tag.lower() + r")[\s\r\n]*.*", response)
    text = match.group(0).strip("$") if match else response
    return {label.lower(): label for label in labels}.get(normal(text.strip()))


@pytest.mark.parametrize("tag", SETS)
def test_labels_are_those_of_the_published_rules(tag):
    labels = SETS[tag]
    ours = label_extractor("v1.2", tag, labels)
    strict = label_extractor("v1.2", tag, labels, case_sensitive=True)
    old = label_extractor("v1.0", tag, labels)
    differences = 0
    for response in responses(tag, list(labels), seed=len(tag)):
        wanted = published_label(response, tag, labels)
        assert ours(response).answer == wanted, response
        exact = published_label(response, tag, labels, case_sensitive=True)
        assert strict(response).answer == exact, response
        assert old(response).answer == old_label(response, tag, labels), response
        differences += wanted != exact
        differences += wanted != published_label(response, tag + "x", labels)
    assert differences > 100  # the oracle tells these rules apart


@pytest.mark.parametrize("tag", SETS)
def test_texts_are_those_of_the_published_rules(tag):
    ours, old = text_extractor("v1.2", tag), text_extractor("v1.0", tag)
    first = f"[{tag[0].upper()}|{tag[0].lower()}]" if tag[0].isascii() else tag[0]
    differences = 0
    for response in responses(tag, ["teks satu", "dua."], seed=3):
        match = re.search(tag + r"[\s\r\n`*]*(.*)", response)
        wanted = (match.group(1) if match else response).strip()
        assert ours(response) == Extraction(wanted, match is not None), response
        match = re.search("(?<=" + first + tag[1:] + r")[\s\r\n]*.*", response)
        before = (match.group(0).strip("$") if match else response).strip()
        assert old(response).answer == before, response
        differences += wanted != before
    assert differences > 20


def test_two_colons_end_a_tag_of_old_prompts_in_khmer_and_chinese():
    for language, tag, other in (("km", "ចម្លើយ៖", "ចម្លើយ:"), ("zh", "答案:", "答案：")):
        read = label_extractor("v1.0", tag, LETTERS, language)
        assert read(f"{other} B").answer == read(f"{tag} B").answer == "B"
        assert label_extractor("v1.0", tag, LETTERS)(f"{other} B").answer is None


def test_the_first_tag_and_the_last_of_repeated_labels_count():
    read = label_extractor("v1.2", "Jawaban:", LETTERS)
    assert read("Jawaban: AB").answer == "B"
    assert read("Jawaban: A. Jawaban: B").answer == "A"
    assert read("Jawaban: ANSWER").answer == "A"
    assert read("B").answer == "B" and not read("B").tagged
