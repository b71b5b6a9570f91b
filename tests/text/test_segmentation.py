from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.text.marks import canonical
from singalaut.text.segmentation import graphemes, sentences, tokens, words

SHARED = Path(__file__).parents[3] / "shared" / "data"

WORDS = {
    "en": (
        "Don't stop, well-known friends! 3.14 or 1,000.5?",
        "Don't stop well-known friends 3.14 or 1,000.5",
    ),
    "id": ("Anak-anak pergi ke pasar.", "Anak-anak pergi ke pasar"),
    "vi": ("Tôi đi chợ vào buổi sáng.", "Tôi đi chợ vào buổi sáng"),
    "ta": ("நான் காலையில் சென்றேன்.", "நான் காலையில் சென்றேன்"),
    "th": ("ฉันไปตลาดซื้อปลา 3 ตัว😀", "ฉัน ไป ตลาด ซื้อ ปลา 3 ตัว"),
    "lo": ("ຂ້ອຍໄປຕະຫຼາດຊື້ປາ.", "ຂ້ອຍ ໄປ ຕະຫຼາດ ຊື້ ປາ"),
    "km": ("ខ្ញុំទៅផ្សារទិញត្រី។", "ខ្ញុំ ទៅ ផ្សារ ទិញ ត្រី"),
    "my": ("ငါးဝယ်တယ်။", "ငါး ဝယ် တယ်"),
    "zh": ("我早上去市场，买鱼和3斤米。", "我 早上 去 市场 买 鱼 和 3 斤 米"),
    "mixed": ("iPhone15ของฉัน COVID-19", "iPhone15 ของ ฉัน COVID-19"),
}


@pytest.mark.parametrize("language", WORDS)
def test_words(language):
    text, expected = WORDS[language]
    assert words(text) == expected.split()


def test_repetition_signs_are_not_words():
    assert words("เช้าๆ") == ["เช้า"]
    assert tokens("เช้าๆ") == ["เช้า", "ๆ"]


SENTENCES = [
    ("en", "Mr. Lee paid 3.14. He left! Why?", ["Mr. Lee paid 3.14.", "He left!", "Why?"]),
    ("en", 'He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
    ("en", "One\n\nTwo three.\n* four\n* five", ["One", "Two three.", "* four", "* five"]),
    ("en", "1. First thing. 2. Second", ["1. First thing.", "2. Second"]),
    ("id", "Beras, gula, dll. sangat mahal. Ya!", ["Beras, gula, dll. sangat mahal.", "Ya!"]),
    ("zh", "你好！我去市场。他说：“好。”", ["你好！", "我去市场。", "他说：“好。”"]),
    ("my", "နေကောင်းလား။ ငါး၊ ထမင်း စားတယ်။", ["နေကောင်းလား။", "ငါး၊ ထမင်း စားတယ်။"]),
    ("km", "ខ្ញុំទៅផ្សារ។ បាទ៕ ទេ?", ["ខ្ញុំទៅផ្សារ។", "បាទ៕", "ទេ?"]),
    ("lo", "ຂ້ອຍໄປຕະຫຼາດ. ເຈົ້າເດ?", ["ຂ້ອຍໄປຕະຫຼາດ.", "ເຈົ້າເດ?"]),
    ("ta", "நான் வந்தேன். நீ யார்?", ["நான் வந்தேன்.", "நீ யார்?"]),
    ("th", "เขาชอบกินข้าวมาก วันนี้ฝนตกหนักมาก", ["เขาชอบกินข้าวมาก", "วันนี้ฝนตกหนักมาก"]),
    ("en", "One.\n***\nTwo", ["One.", "Two"]),
    ("en", "... !!! \n\n---", []),
]


@pytest.mark.parametrize(("language", "text", "expected"), SENTENCES)
def test_sentences(language, text, expected):
    assert sentences(text, language) == expected


def test_graphemes_are_what_a_reader_calls_letters():
    assert graphemes("กี้น้ำ") == ["กี้", "น้ำ"]
    assert graphemes("கிக்") == ["கி", "க்"]
    assert graphemes("e\u0301👨‍👩‍👧") == ["e\u0301", "👨‍👩‍👧"]


def test_canonical_spelling():
    assert canonical("ກໍາລັງ") == canonical("ກຳລັງ")
    assert canonical("นํ้า") == canonical("น้ำ")
    assert canonical("e\u0301") == "é"
    assert canonical("ខ្ញុំ\u200bទៅ") == "ខ្ញុំទៅ"


ANY_SCRIPT = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("กาเ้ๆຂ້ອຍໄខ្ញុំ។ကြ်န်ော။தமிழ்我。，. \n*'’-09၁𝟙"),
    ),
    max_size=60,
)


@given(ANY_SCRIPT)
def test_segmentation_loses_nothing(text):
    whole = "".join(tokens(text))
    assert whole == text.encode("utf-8", "replace").decode() or whole == text
    kept = [piece for piece in tokens(text) if piece in set(words(text))]
    assert len(kept) >= len(words(text)) - text.count("\ufffd")
    for sentence in sentences(text, "en"):
        assert sentence.strip() == sentence


def test_hostile_texts_are_cut_too():
    for text in ("\x00a\x00", "\ud800กา", "ก" * 100_000, ". " * 50_000, "'" * 100_000, "", "😀"):
        assert isinstance(words(text), list)
        assert isinstance(sentences(text, "th"), list)
        assert isinstance(graphemes(text), list)


def test_dictionaries_load_only_when_needed():
    code = (
        "import sys; from singalaut.text.segmentation import words, sentences; words('a b');"
        "sentences('A b. C d.', 'en'); print(*(set(sys.modules) & {'pythainlp', 'icu4py'}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_lao_words_agree_with_a_segmented_corpus():
    def edges(pieces):
        return {sum(map(len, pieces[:end])) for end in range(1, len(pieces) + 1)}

    shared = found = marked = 0
    with (SHARED / "conversation.wordseg.lo.jsonl").open(encoding="utf-8") as rows:
        for row in rows:
            answer = json.loads(row)["messages"][1]["content"]
            gold = [word for cell in answer.split("|") for word in cell.split()]
            ours = edges(tokens("".join(gold)))
            shared, found, marked = (
                shared + len(ours & edges(gold)),
                found + len(ours),
                marked + len(edges(gold)),
            )
    assert shared / found > 0.86 and shared / marked > 0.86
    assert shared / marked < 0.99, "the corpus is not our own dictionary"
