"""Answers while training: from the weights of then, and without a trace in what is learned."""

from __future__ import annotations

import json

import pytest
import torch

from singalaut.artifact import Work
from singalaut.contracts import Message, Request, SamplingParams
from singalaut.errors import DataError
from singalaut.generate.engine import engine_over, open_engine
from singalaut.model.tensors import TensorReader
from singalaut.train.config import SftConfig
from singalaut.train.sft import run_sft
from singalaut.train.watching import Asked
from singalaut.watch.config import WatchConfig
from singalaut.watch.samples import read_questions

QUESTIONS = [[Message("user", "th in he")], [Message("user", "การที่")]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path / "home"))


@pytest.fixture
def rows(tmp_path):
    turns = [{"role": "user", "content": "th in he"}, {"role": "assistant", "content": "an ng om"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(8)))
    return file


def run(tmp_path, model, rows, name, asked=None, adapter=None):
    folder = tmp_path / name
    folder.mkdir()
    config = SftConfig.model_validate(
        {
            "data": [{"path": "rows"}],
            "steps": 5,
            "batch_size": 4,
            "learning_rate": 2e-2,
            "adapter": adapter,
            "watch": {"sample_every": 2, "sample_tokens": 6},
        }
    )
    work = Work(folder)
    run_sft(config, model=model, data=[rows], work=work, seed=3, asked=asked)
    with TensorReader.open(folder / "model") as reader:
        return work, {name: reader.read(name).clone() for name in reader}


@pytest.mark.parametrize("adapter", [None, {"rank": 4}])
def test_answers_are_those_of_the_weights(tmp_path, tiny_model, rows, adapter):
    asked = Asked(QUESTIONS, lambda network: engine_over(network, tiny_model, context_tokens=64))
    work, watched = run(tmp_path, tiny_model, rows, "watched", asked, adapter)
    _, plain = run(tmp_path, tiny_model, rows, "plain", None, adapter)
    assert all(torch.equal(watched[name], plain[name]) for name in plain)
    lines = [json.loads(x) for x in (work.path / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 2, 2, 4, 4, 5, 5]
    params = SamplingParams(max_tokens=6, temperature=0.0)
    for model, step in ((tiny_model, 0), (work.path / "model", 5)):
        alone = open_engine(model).generate([Request(q, params) for q in QUESTIONS])
        found = [line["text"] for line in lines if line["step"] == step]
        assert [completion.text for completion in alone] == found
    texts = {line["step"]: line["text"] for line in lines}
    assert texts[0] != texts[5]  # the comparison could have failed
    assert "Answers while training" in (work.path / "report" / "report.html").read_text("utf-8")


def test_a_question_that_is_too_long_is_told_and_stops_nothing(tmp_path, tiny_model, rows):
    asked = Asked(
        [[Message("user", "x" * 100)], *QUESTIONS],
        lambda network: engine_over(network, tiny_model, context_tokens=40),
    )
    work, _ = run(tmp_path, tiny_model, rows, "long", asked)
    lines = [json.loads(x) for x in (work.path / "samples.jsonl").read_text("utf-8").splitlines()]
    assert len([line for line in lines if "error" in line]) == 4 and len(lines) == 12


def test_an_engine_that_fails_stops_nothing(tmp_path, tiny_model, rows, caplog):
    def broken(network):
        raise RuntimeError("no kernel")

    with caplog.at_level("WARNING", "singalaut"):
        work, watched = run(tmp_path, tiny_model, rows, "broken", Asked(QUESTIONS, broken))
    _, plain = run(tmp_path, tiny_model, rows, "plain")
    assert caplog.text.count("could not be asked: RuntimeError: no kernel") == 4
    assert all(torch.equal(watched[name], plain[name]) for name in plain)
    assert "Finished" in (work.path / "report" / "report.html").read_text("utf-8")


def test_questions_of_a_file(tmp_path):
    file = tmp_path / "questions.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file.write_text(f'ข้าว\n\n{{"prompt": "p"}}\n{json.dumps(row)}\n', "utf-8")
    config = WatchConfig.model_validate({"samples": ["first"], "samples_file": "questions.jsonl"})
    found = [[m.content for m in question] for question in read_questions(config, file)]
    assert found == [["first"], ["ข้าว"], ["p"], ["a"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": 3}', "contents that are texts"),
        ('{"text": "x"}', "no question: KeyError"),
        ('{"messages": []}', "KeyError"),
        ('{"messages": [{"role": "king", "content": "x"}]}', "roles"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "no turn of the user"),
        ("{", "no question"),
    ],
)
def test_lines_that_are_no_questions(tmp_path, line, message):
    file = tmp_path / "questions.jsonl"
    file.write_text(f"fine\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        read_questions(WatchConfig.model_validate({}), file)
    assert "questions.jsonl, line 2" in str(caught.value)


def test_too_many_questions_are_refused():
    config = WatchConfig.model_validate({"samples": [f"q{n}" for n in range(65)]})
    with pytest.raises(DataError, match="65 questions"):
        read_questions(config, None)
