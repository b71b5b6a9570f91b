"""Several engines answer as one does, whatever becomes of them."""

from __future__ import annotations

import asyncio
import signal

import pytest
import torch
from test_engine_images import ask_about, drawn, picture

from singalaut.contracts import Message, Request, Sampler, SamplingParams
from singalaut.errors import MachineError
from singalaut.generate.engine import open_engine
from singalaut.generate.records import completion_of, completion_record, request_of, request_record
from singalaut.generate.replicas import Replicas

PROMPTS = [[2, *range(150, 150 + n)] for n in (1, 5, 8, 9, 20, 33)]

if torch.cuda.is_available():
    pytest.skip("made for engines on CPUs", allow_module_level=True)


def requests(count: int, tokens: int = 12) -> list[Request]:
    kinds = [
        {"temperature": 0.0, "logprobs": True},
        {"temperature": 1.0, "seed": 5, "n": 2, "top_k": 40},
        {"temperature": 0.0, "top_logprobs": 2, "prompt_logprobs": True, "logit_bias": {300: 1.0}},
        {"temperature": 1.0, "seed": 6, "stop": ("b",), "ignore_eos": False},
    ]
    return [
        Request(
            [*PROMPTS[i % 6], 110 + i],
            SamplingParams(**{"max_tokens": tokens, "ignore_eos": True, **kinds[i % 4]}),
            f"q{i}",
        )
        for i in range(count)
    ]


def by_name(completions) -> dict:
    found = {(c.request_id, c.index): c for c in completions}
    return found


def assert_same(ours, wanted) -> None:
    assert ours.keys() == wanted.keys()
    for key, theirs in wanted.items():
        mine = ours[key]
        assert (mine.token_ids, mine.text, mine.error) == (
            theirs.token_ids, theirs.text, theirs.error,
        )  # fmt: skip
        for a, b in (
            (mine.logprobs, theirs.logprobs),
            (mine.prompt_logprobs, theirs.prompt_logprobs),
        ):
            assert (a or ())[1:] == pytest.approx((b or ())[1:], abs=1e-5)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two(seeing_model):
    sampler = Replicas(seeing_model, 2, batch_size=2)
    yield sampler
    sampler.close()


def test_answers_are_those_of_one_engine(two, seeing_model):
    one = open_engine(seeing_model, batch_size=2)
    asked = requests(40)
    asked.append(Request(list(range(110, 510)) * 3, SamplingParams(), "long"))
    asked.append(Request([Message("user", "ที่?")], SamplingParams(temperature=0.0), "words"))
    asked.append(Request(ask_about(picture(1)), drawn(), "image"))
    asked.append(Request([5], SamplingParams(), "masked", mask=lambda: None))
    found = by_name(two.sample(asked))
    assert "mask" in found["masked", 0].error and found["long", 0].finish_reason == "error"
    del found["masked", 0]
    assert_same(found, by_name(one.sample(asked[:-1])))
    counts = two.statistics()
    assert counts["engines"] == 2 and counts["answers"] > 45
    assert isinstance(two, Sampler) and two.identity == one.identity
    assert all(len(replica.asked) == replica.answers == 0 for replica in two._replicas)
    two.sleep()
    assert_same(by_name(two.sample(asked[:3])), by_name(one.sample(asked[:3])))

    async def streamed():
        return [delta async for delta in two.stream(asked[0])]

    [delta] = asyncio.run(streamed())
    assert delta.token_ids == found["q0", 0].token_ids


def test_work_that_is_given_up_is_forgotten(two):
    answers = two.sample(iter(requests(24, tokens=40)))
    next(answers)
    answers.close()
    again = by_name(two.sample(requests(8)))
    assert {name for name, _ in again} == {f"q{i}" for i in range(8)}


def test_an_engine_that_ends_loses_nothing(tiny_model, caplog):
    one = open_engine(tiny_model, batch_size=2)
    asked = requests(28, tokens=25)
    wanted = by_name(one.sample(asked))
    two = Replicas(tiny_model, 2, batch_size=2)
    answers = two.sample(iter(asked))
    found = [next(answers) for _ in range(6)]
    [first, second] = two._replicas
    first.child.process.send_signal(signal.SIGKILL)
    found += answers
    assert len(found) == len(wanted)
    assert_same(by_name(found), wanted)
    assert "engine 1 of 2 was killed by signal 9" in caplog.text
    answers = two.sample(iter(asked))
    next(answers)
    second.child.process.send_signal(signal.SIGKILL)
    with pytest.raises(MachineError, match="engine 2 of 2, the last one, was killed by signal 9"):
        list(answers)
    with pytest.raises(MachineError, match="no engine is left"):
        list(two.sample(asked))


def test_an_engine_that_cannot_be_opened_is_named(tmp_path, tiny_model):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(MachineError, match=r"engine \d of 2 ended with exit code 1: .*safetensors"):
        Replicas(tmp_path, 2)


def test_records_keep_everything():
    params = SamplingParams(
        n=3, stop=("x", "ที่"), stop_token_ids=(7,), logit_bias={3: -0.5}, seed=9, top_logprobs=2
    )
    asked = Request([Message("user", "?", name="n")], params, "a", 2, 1.5)
    assert request_of(request_record(asked)) == asked
    by_ids = Request([1, 2], params, "b")
    assert request_of(request_record(by_ids)) == by_ids


def test_completions_keep_every_bit(tiny_model):
    import json

    engine = open_engine(tiny_model, batch_size=2)
    for completion in engine.sample(requests(8)):
        assert completion_of(json.loads(json.dumps(completion_record(completion)))) == completion
