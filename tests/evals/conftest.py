"""A small synthetic pack, a source of completions that answers from a function, and a bench."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from singalaut.artifact import Work
from singalaut.contracts import Completion, Delta, Request, Sampler, Usage
from singalaut.evals.config import EvaluateConfig
from singalaut.evals.evaluate import Subject, run_evaluate
from singalaut.evals.output import load_results

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
    """Answers each request by a function of its last message; backwards, as order is free."""

    def __init__(self, answer: Callable[[str], str]):
        self.answer = answer
        self.asked: list[Request] = []

    @property
    def identity(self) -> str:
        return "answers from a function"

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in reversed(list(requests)):
            self.asked.append(request)
            text = self.answer(request.prompt[-1].content)
            words = text.split()
            cut = len(words) > request.sampling.max_tokens
            text = " ".join(words[: request.sampling.max_tokens]) if cut else text
            finish = "length" if cut else "stop"
            yield Completion(request.id, 0, (), text, finish, Usage(1, len(words)))

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


class Bench:
    """Runs evaluations in one folder and remembers what was asked of whom."""

    def __init__(self, folder: Path, pack: Path, sampler: type[AnswerSampler]):
        self.folder, self.pack, self.sampler = folder, pack, sampler
        self.opened: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.requests: list[Request] = []
        folder.mkdir()
        self.work = Work(folder / "work")
        self.work.path.mkdir()

    def subject(self, name: str, answer: Callable[[str], str]) -> Subject:
        def counted(prompt: str) -> str:
            text = answer(prompt)
            self.asked.append((name, prompt))
            return text

        def open_sampler() -> Any:
            self.opened.append(name)
            made = self.sampler(counted)
            made.asked = self.requests
            return made

        return Subject(f"identity of {name}", open_sampler)

    def run(
        self, answers: Mapping[str, Callable[[str], str]], *, seed: int = 3, **settings: Any
    ) -> dict[str, Any]:
        judge = settings.pop("judge_answers", None)
        options = {"resamples": 100, "seeds": 1, **settings.pop("protocol", {})}
        settings = {"temperature": 0.0, **settings}
        config = EvaluateConfig(models=tuple(answers), protocol=options, **settings)
        run_evaluate(
            config,
            subjects={name: self.subject(name, answer) for name, answer in answers.items()},
            pack=self.pack,
            work=self.work,
            seed=seed,
            store=self.folder / "store.sqlite",
            judge=self.subject("judge", judge) if judge else None,
        )
        return load_results(self.work.path)

    def rows(self, model: str, cell: str) -> list[dict[str, Any]]:
        file = self.work.path / "responses" / model / f"{cell}.jsonl"
        return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]

    def files(self) -> dict[str, bytes]:
        found = (p for p in self.work.path.rglob("*") if p.is_file())
        return {
            str(p.relative_to(self.work.path)): p.read_bytes()
            for p in found
            if p.name != "metrics.jsonl" and not p.name.startswith(".")
        }


@pytest.fixture
def bench(tmp_path: Path, pack: Path, sampler: type[AnswerSampler]) -> Bench:
    return Bench(tmp_path / "bench", pack, sampler)


@pytest.fixture
def new_bench(tmp_path: Path, pack: Path, sampler: type[AnswerSampler]) -> Callable[[str], Bench]:
    return lambda name: Bench(tmp_path / name, pack, sampler)
