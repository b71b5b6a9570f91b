"""Recorded answers: found by id or by prompt, and told of where there are none."""

from __future__ import annotations

import asyncio
import json

import pytest

from singalaut.contracts import Message, Request, Sampler, SamplingParams
from singalaut.errors import DataError, MachineError
from singalaut.remote.recorded import RecordedSampler


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def ask(sampler, name, text="?"):
    [done] = sampler.sample([Request([Message("user", text)], SamplingParams(), name)])
    return done


def test_answers_are_found_by_id_and_by_prompt(tmp_path):
    rows = [
        {"id": "sentiment.id/s1/0", "response": "run"},
        {"id": "sentiment.id/s2", "response": "every run", "finish_reason": "length"},
        {"prompt": "Apa kabar?", "response": "baik"},
    ]
    sampler = RecordedSampler(write(tmp_path / "a.jsonl", rows))
    assert isinstance(sampler, Sampler)
    assert ask(sampler, "sentiment.id/s1/0").text == "run"
    assert ask(sampler, "sentiment.id/s2/7").finish_reason == "length"
    assert ask(sampler, "x", "Apa kabar?").text == "baik"
    missing = ask(sampler, "sentiment.id/s1/1")
    assert missing.finish_reason == "error" and "no answer" in missing.error
    assert sampler.statistics() == {"answers": 3.0, "missing": 1.0}
    assert sampler.identity.startswith("recorded ")

    async def read():
        request = Request([Message("user", "Apa kabar?")], SamplingParams(), "y")
        return [delta.text async for delta in sampler.stream(request)]

    assert asyncio.run(read()) == ["baik"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"id": "a"}', "needs `response`"),
        ('{"response": "a"}', "needs `response`"),
    ],
)
def test_other_lines_are_refused(tmp_path, line, what):
    file = tmp_path / "a.jsonl"
    file.write_text("\n" + line + "\n")
    with pytest.raises(DataError, match=what) as caught:
        RecordedSampler(file)
    assert caught.value.where.endswith("line 2")
    with pytest.raises(MachineError):
        RecordedSampler(tmp_path / "none.jsonl")
