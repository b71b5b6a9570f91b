"""A small synthetic pack, and a source of completions that answers from a function."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import pytest

from singalaut.contracts import Completion, Delta, Request, Sampler, Usage

SENTIMENT = """
name = "sentiment"
version = 1
competency = "nlu"
metric = "accuracy"
max_tokens = 8
licence = "CC0-1.0"
note = "Synthetic."
[languages.id]
tag = "Jawaban:"
labels = { positive = "Positif", negative = "Negatif" }
prompt = '''Nilai sentimen. Tulis "Jawaban: ANSWER", {"x": 1}.

{text}'''
data = "data/sentiment.id.jsonl"
[languages.th]
tag = "คำตอบ:"
labels = { positive = "แง่บวก", negative = "แง่ลบ" }
prompt = '''ตอบว่า "คำตอบ: ANSWER"
{text}'''
data = "data/sentiment.th.jsonl"
"""
TRANSLATION = """
name = "translation-{name}"
version = 2
competency = "nlg"
group = "translations"
metric = "chrf++"
max_tokens = 32
licence = "CC0-1.0"
[languages.id]
tag = "Terjemahan:"
prompt = '''Terjemahkan: "Terjemahan: TRANSLATION"
{{source}}'''
data = "data/translation.jsonl"
"""


class AnswerSampler:
    """Answers each request by a function of its prompt; backwards, as order is free."""

    def __init__(self, answer: Callable[[str], str]):
        self.answer = answer
        self.asked: list[Request] = []

    @property
    def identity(self) -> str:
        return "answers from a function"

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in reversed(list(requests)):
            self.asked.append(request)
            message = request.prompt[0]
            text = self.answer(message.content)
            words = text.split()
            cut = len(words) > request.sampling.max_tokens
            text = " ".join(words[: request.sampling.max_tokens]) if cut else text
            yield Completion(
                request.id, 0, (), text, "length" if cut else "stop", Usage(1, len(words))
            )

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        for completion in self.sample([request]):
            yield Delta(completion.text, (), completion.finish_reason)

    def weights_changed(self) -> None:
        return None

    def sleep(self) -> None:
        return None

    def wake(self) -> None:
        return None

    def statistics(self) -> dict[str, float]:
        return {"requests": float(len(self.asked))}


@pytest.fixture
def sampler() -> type[AnswerSampler]:
    assert isinstance(AnswerSampler(str), Sampler)
    return AnswerSampler


def write_rows(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Sentiment in two languages, 4 and 2 rows; translation in two tasks of one group."""
    folder = tmp_path / "synthetic"
    folder.mkdir()
    (folder / "sentiment.toml").write_text(SENTIMENT, "utf-8")
    for name in ("a", "b"):
        text = TRANSLATION.replace("{name}", name).replace("{{source}}", "{source}")
        (folder / f"translation-{name}.toml").write_text(text, "utf-8")
    labels = ("positive", "negative", "positive", "positive")
    write_rows(
        folder / "data" / "sentiment.id.jsonl",
        [
            {"id": f"s{i}", "label": g, "text": f"kalimat {g} {i} {{text}}"}
            for i, g in enumerate(labels)
        ],
    )
    write_rows(
        folder / "data" / "sentiment.th.jsonl",
        [{"id": f"s{i}", "label": g, "text": f"ประโยค {g}"} for i, g in enumerate(labels[:2])],
    )
    write_rows(
        folder / "data" / "translation.jsonl",
        [{"id": f"t{i}", "reference": f"teks nomor {i}", "source": f"text {i}"} for i in range(2)],
    )
    return folder
