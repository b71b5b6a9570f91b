"""Whole evaluations with a source of known answers: figures, files, kills and refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.artifact import Work
from singalaut.contracts import derive
from singalaut.errors import ArtifactError, DataError, RecipeError, RequestError
from singalaut.evals.config import EvaluateConfig
from singalaut.evals.results import load_results, results_table
from singalaut.evals.runner import folder_name, run_evaluate

MODELS = {"base": Path("base"), "sft": Path("sft")}


def answer_base(prompt: str) -> str:
    """No tag, ever; long enough to be cut in the sentiment task."""
    return "saya tidak tahu apa yang harus saya jawab di sini"


def answer_tuned(prompt: str) -> str:
    """Right on everything but the negative rows of sentiment."""
    if "คำตอบ" in prompt:
        return "คำตอบ: แง่บวก"
    if "Jawaban" in prompt:
        return "Jawaban: Positif"
    return f"Terjemahan: teks nomor {prompt[-1]}"


ANSWERS = {"base": answer_base, "sft": answer_tuned}


class Bench:
    """Runs evaluations in one folder and remembers what was asked of whom."""

    def __init__(self, folder: Path, pack: Path, sampler):
        self.work, self.pack, self.sampler = Work(folder), pack, sampler
        self.opened: list[tuple[str, int]] = []
        self.asked: list[tuple[str, str]] = []
        folder.mkdir()

    def run(self, answers=ANSWERS, models=MODELS, **settings) -> dict:
        def open_sampler(path: Path, batch_size: int):
            self.opened.append((path.name, batch_size))

            def answer(prompt: str) -> str:
                text = answers[path.name](prompt)
                self.asked.append((path.name, prompt))
                return text

            return self.sampler(answer)

        config = EvaluateConfig(models=tuple(models), **settings)
        run_evaluate(
            config, models=models, pack=self.pack, work=self.work, seed=3, open_sampler=open_sampler
        )
        return load_results(self.work.path)

    def bytes(self) -> dict[str, bytes]:
        files = (p for p in self.work.path.rglob("*") if p.is_file())
        return {
            str(p.relative_to(self.work.path)): p.read_bytes()
            for p in files
            if p.name != "metrics.jsonl"
        }


@pytest.fixture
def bench(tmp_path, pack, sampler):
    return Bench(tmp_path / "work", pack, sampler)


def test_the_figures_are_those_of_the_answers(bench):
    results = bench.run(batch_size=5)
    assert bench.opened == [("base", 5), ("sft", 5)]
    tuned, base = results["models"]["sft"], results["models"]["base"]
    cell = tuned["tasks"]["sentiment"]["id"]
    assert cell == {
        "n": 4,
        "score": 75.0,
        "balanced": 50.0,
        "chance": 50.0,
        "normalised": 0.0,
        "extracted": 1.0,
        "truncated": 0.0,
    }
    assert base["tasks"]["sentiment"]["id"] | {"n": 0} == {
        "n": 0,
        "score": 0.0,
        "balanced": 0.0,
        "chance": 50.0,
        "normalised": 0.0,
        "extracted": 0.0,
        "truncated": 1.0,
    }
    assert tuned["tasks"]["translation-a"]["id"]["score"] == pytest.approx(100)
    # nlu 75 and 0 against chance; nlg, two tasks of one group, 100; competencies weigh the same
    assert tuned["languages"]["id"]["score"] == pytest.approx((75 + 100) / 2)
    assert tuned["languages"]["id"]["normalised"] == pytest.approx(50)
    assert tuned["languages"]["th"]["normalised"] == 0
    assert tuned["overall"]["normalised"] == pytest.approx(25)
    assert tuned["overall"]["n"] == 10
    assert tuned["overall"]["extracted"] == 1


def test_the_table_compares_the_models(bench):
    results = bench.run()
    rows = results_table(results)
    assert rows == results["rows"]
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("task", "sentiment"),
        ("task", "translation-a"),
        ("task", "translation-b"),
        ("language", "id"),
        ("language", "th"),
        ("overall", "all"),
    ]
    assert rows[0]["scores"] == {"base": 0.0, "sft": 62.5}
    assert rows[0]["extracted"] == {"base": 0.0, "sft": 1.0}
    text = (bench.work.path / "results" / "results.md").read_text("utf-8")
    assert "| sentiment | accuracy | 6 | 0.0 (0 %) | 62.5 (100 %) |" in text
    assert "| sentiment | id | accuracy | 4 | 0.0 (0 %) | 75.0 (100 %) |" in text
    with (bench.work.path / "results" / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 4
    assert lines[4]["model"] == "sft" and float(lines[4]["score"]) == 75


def test_every_response_is_kept_with_its_verdict(bench):
    bench.run()
    file = bench.work.path / "responses" / "sft" / "sentiment.id.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["s0", "s1", "s2", "s3"]
    assert rows[1]["answer"] == "positive" and rows[1]["gold"] == "negative"
    assert [row["correct"] for row in rows] == [True, False, True, True]
    assert rows[0]["prompt"].endswith("kalimat positive 0 {text}")
    row = json.loads((file.parent / "translation-a.id.jsonl").read_text("utf-8").splitlines()[0])
    assert row["answer"] == row["gold"] == "teks nomor 0"
    assert row["correct"] is None and row["finish_reason"] == "stop"


def test_requests_carry_the_settings(tmp_path, pack, sampler):
    made = sampler(answer_tuned)
    work = Work(tmp_path / "work")
    work.path.mkdir()
    run_evaluate(
        EvaluateConfig(models=("m",), temperature=0.5, tasks=("sentiment",), languages=("id",)),
        models={"m": tmp_path},
        pack=pack,
        work=work,
        seed=9,
        open_sampler=lambda path, batch_size: made,
    )
    request = next(request for request in made.asked if request.id == "sentiment.id/s2")
    assert request.sampling.max_tokens == 8
    assert request.sampling.temperature == 0.5
    assert request.sampling.seed == derive(9, "evaluate", "sentiment.id", "s2")
    assert [message.role for message in request.prompt] == ["user"]
    [line] = work.metrics()
    assert line.keys() == {"model", "task", "seconds"}


@pytest.mark.parametrize("deadline", [0, 3, 4, 5, 7, 9, 10, 13, 19])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, pack, sampler, deadline):
    whole = Bench(tmp_path / "whole", pack, sampler)
    whole.run()
    bench = Bench(tmp_path / "killed", pack, sampler)

    class Killed(BaseException):
        pass

    def until_killed(name):
        def answer(prompt: str) -> str:
            if len(bench.asked) == deadline:
                raise Killed
            return ANSWERS[name](prompt)

        return answer

    with pytest.raises(Killed):
        bench.run({name: until_killed(name) for name in MODELS})
    done = {
        str(p.relative_to(bench.work.path)) for p in bench.work.path.glob("responses/*/*.jsonl")
    }
    before = len(bench.asked)
    bench.run()
    assert bench.bytes() == whole.bytes()
    kept = [line for name in done for line in bench.bytes()[name].splitlines()]
    assert len(bench.asked) - before == len(whole.asked) - len(kept)
    places = [(row["model"], row["task"]) for row in bench.work.metrics()]
    assert len(places) == len(set(places)) == 6


def test_a_finished_run_opens_no_model(bench):
    first = bench.run()
    bench.opened.clear()
    assert bench.run() == first
    assert bench.opened == []


def test_saved_answers_to_other_questions_are_not_used(bench, pack):
    bench.run(models={"sft": Path("sft")})
    before = len(bench.asked)
    file = pack / "data" / "sentiment.th.jsonl"
    file.write_text(file.read_text("utf-8").replace("ประโยค", "ข้อความ"), "utf-8")
    damaged = bench.work.path / "responses" / "sft" / "translation-a.id.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    results = bench.run(models={"sft": Path("sft")})
    assert len(bench.asked) - before == 6 + 2  # a task is asked again as a whole
    assert results["models"]["sft"]["overall"]["n"] == 10


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda found: found[:-1], "`sft` answered 5 of 6 questions.*`sentiment.id/s0`"),
        (lambda found: [], "answered 0 of 6"),
        (lambda found: [*found, found[0]], "answered `sentiment.th/s1` a second time"),
    ],
)
def test_answers_that_do_not_fit_the_questions_are_refused(tmp_path, pack, sampler, change, what):
    class Faulty(sampler):
        def sample(self, requests):
            yield from change(list(super().sample(requests)))

    work = Work(tmp_path / "work")
    work.path.mkdir()
    with pytest.raises(RequestError, match=what) as caught:
        run_evaluate(
            EvaluateConfig(),
            models={"sft": tmp_path},
            pack=pack,
            work=work,
            seed=1,
            open_sampler=lambda path, batch_size: Faulty(answer_tuned),
        )
    assert caught.value.where == "sentiment"
    assert not list(work.path.glob("responses/*/*.jsonl"))
    assert not (work.path / "results").exists()


def test_a_bad_pack_is_refused_before_a_model_is_opened(bench, pack):
    with (pack / "data" / "translation.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError, match="not JSON"):
        bench.run()
    with pytest.raises(RecipeError, match="no task"):
        bench.run(tasks=("nothing",))
    assert bench.opened == []


def test_a_limit_keeps_the_level_of_chance(bench):
    results = bench.run(limit=1)
    cell = results["models"]["sft"]["tasks"]["sentiment"]["id"]
    assert (cell["n"], cell["chance"], cell["normalised"]) == (1, 50.0, 100.0)


def test_results_name_no_folder(bench, tmp_path):
    bench.run(models={"sft": tmp_path / "secret" / "sft"})
    for name, data in bench.bytes().items():
        assert str(tmp_path).encode() not in data, name


def test_names_with_any_character_are_safe_and_shown(bench):
    models = {"a/../b|c": Path("sft"), ".hidden": Path("base"), "ครู " * 80: Path("base")}
    results = bench.run(models=models)
    assert list(results["models"]) == list(models)
    folders = [p.name for p in (bench.work.path / "responses").iterdir()]
    assert len(folders) == 3
    assert not any(name.startswith(".") for name in folders)
    text = (bench.work.path / "results" / "results.md").read_text("utf-8")
    assert "a/../b\\|c" in text


@given(st.text(min_size=1).filter(lambda t: t.isprintable()), st.text(min_size=1))
def test_folder_names_are_safe_and_distinct(one, other):
    try:
        other.encode()
    except UnicodeEncodeError:
        return
    for name in (folder_name(one), folder_name(other)):
        assert "/" not in name and "\0" not in name and not name.startswith(".")
        assert 0 < len(name) <= 120
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_results_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_results(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text('{"format": 99}')
    with pytest.raises(ArtifactError, match="format 99"):
        load_results(tmp_path)
