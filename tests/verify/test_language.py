from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.text.languages import LANGUAGES
from singalaut.verify.language import fasttext_language, identify, is_language

PACKS = Path(__file__).parents[3] / "shared" / "sea-helm" / "data" / "seahelm_tasks"
TEXTS = {
    "en": "I went to the market in the morning and bought some fish for my mother.",
    "id": "Pagi ini saya pergi ke pasar naik mobil karena ibu butuh ikan dan sayur.",
    "ms": "Pagi ini saya pergi ke pasar sebab emak mahu ikan, kerana doktor berkata ia sihat.",
    "tl": "Pumunta ako sa palengke kaninang umaga at bumili ng isda para sa nanay ko.",
    "vi": "Sáng nay tôi đi chợ và mua cá cho mẹ tôi.",
    "th": "เช้านี้ฉันไปตลาดและซื้อปลาให้แม่",
    "lo": "ເຊົ້ານີ້ຂ້ອຍໄປຕະຫຼາດແລະຊື້ປາໃຫ້ແມ່",
    "km": "ព្រឹកនេះខ្ញុំទៅផ្សារទិញត្រីឲ្យម្តាយ។",
    "my": "ဒီမနက် ဈေးသွားပြီး အမေ့အတွက် ငါးဝယ်တယ်။",
    "ta": "இன்று காலை நான் சந்தைக்குச் சென்று மீன் வாங்கினேன்.",
    "zh": "今天早上我去市场给妈妈买了鱼。",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_is_found(language):
    found = identify(TEXTS[language])
    assert found.language == language
    assert found.confidence > 0.5


@pytest.mark.parametrize("language", LANGUAGES)
def test_code_numbers_and_quotes_do_not_count(language):
    prompt = "Please explain the following to me in the language of my country: what is a market?"
    noise = (
        f"{prompt}\n```python\nfor item in range(10): print(item)\n``` 12,345 https://a.example/b"
    )
    assert identify(f"{noise}\n{TEXTS[language]}", prompt).language == language


def test_capitals_are_read_like_small_letters():
    assert identify(TEXTS["en"].upper()).language == "en"
    assert identify(TEXTS["vi"].upper()).language == "vi"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        *(("Oo naman po", "tl"), ("Terima kasih, kamu baik sekali karena itu", "id")),
        *(("日本語はとても難しいです。", "ja"), ("안녕하세요 반갑습니다", "ko")),
        *(("Привет, как дела сегодня?", "ru"), ("नमस्ते, आप कैसे हैं?", "hi")),
        *(("ใช้ Kubernetes กับ Docker ได้เลยครับ", "th"), ("这个 API 的 endpoint 很好用", "zh")),
    ],
)
def test_short_mixed_and_foreign_texts(text, language):
    assert identify(text).language == language


@pytest.mark.parametrize(
    "text", ["", " \n", "😀👍", "12 + 30 = 42", "\x00\x00", "...", "`code`", "\ud800"]
)
def test_nothing_to_go_by(text):
    found = identify(text)
    assert found.language is None and found.confidence == 0.0
    assert not is_language(text, "th")[0]


def test_a_close_pair_passes_where_words_do_not_tell():
    shared_words = "Ini rumah saya dan itu rumah mereka."
    assert is_language(shared_words, "id")[0]
    assert is_language(shared_words, "ms")[0]
    assert not is_language(TEXTS["ms"], "id")[0]
    assert not is_language(TEXTS["id"], "ms")[0]
    assert is_language(TEXTS["tl"], "fil")[0]
    assert not is_language(TEXTS["lo"], "th")[0]


def test_a_megabyte_is_sampled():
    assert identify(TEXTS["th"] * 30_000).language == "th"
    assert identify("a" * 1_000_000 + "\x00").language is not None
    half = identify("x" + TEXTS["en"] * 200 + TEXTS["km"] * 200)
    assert half.shares["Latin"] > 0.2 and half.shares["Khmer"] > 0.2


@given(st.text(max_size=200), st.one_of(st.none(), st.text(max_size=50)))
def test_any_text_gets_an_answer(text, prompt):
    found = identify(text, prompt)
    assert 0.0 <= found.confidence <= 1.0
    assert not found.shares or abs(sum(found.shares.values()) - 1.0) < 1e-9


def test_the_plain_model_answers_as_it_is():
    assert fasttext_language("") == "en"
    assert fasttext_language(TEXTS["th"] + "\n" + TEXTS["th"]) == "th"
    assert fasttext_language(TEXTS["en"].upper()) == "en"


@pytest.mark.skipif(not PACKS.exists(), reason="needs the shared evaluation packs")
def test_passages_of_a_reading_task():
    wrong: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    plain: Counter[str] = Counter()
    passages = 0
    for language in ("en", "id", "km", "lo", "ms", "my", "ta", "th", "tl", "vi", "zh"):
        name = "zh-s" if language == "zh" else language
        path = PACKS / "nlu" / "belebele_mcqa" / "data" / "eval" / f"{name}_belebele.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        for text in sorted({row["prompts"][0]["text"] for row in rows})[:97]:
            passages += 1
            wrong[language] += identify(text).language != language
            rejected[language] += not is_language(text, language)[0]
            plain[language] += fasttext_language(text) != language
    assert sum(wrong.values()) <= 0.02 * passages, wrong
    assert sum(rejected.values()) <= 0.005 * passages, rejected
    assert plain["ms"] > 50, "the model alone calls Malay Indonesian"
