"""The engine against `transformers` and against itself in other company."""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.contracts import Message, Request, Sampler, SamplingParams
from singalaut.errors import MachineError, RequestError
from singalaut.generate.engine import Engine, open_engine
from singalaut.generate.sampling import Settings, choose

PROMPTS = [[2, *range(150, 150 + n)] for n in (1, 5, 8, 9, 20, 33)]


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return open_engine(tiny_model, batch_size=3)


def ask(engine: Engine, *requests: Request):
    found = {(c.request_id, c.index): c for c in engine.sample(requests)}
    return [found[request.id, i] for request in requests for i in range(request.sampling.n)]


def greedy(tokens: int, **more) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, **more)


def test_greedy_tokens_equal_transformers(engine, tiny_model):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    theirs.generation_config.eos_token_id = None
    requests = [Request(p, greedy(30), str(i)) for i, p in enumerate(PROMPTS)]
    for prompt, ours in zip(PROMPTS, ask(engine, *requests), strict=True):
        wanted = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=30,
            do_sample=False,
        )
        assert list(ours.token_ids) == wanted[0, len(prompt) :].tolist()
        assert ours.usage.prompt_tokens == len(prompt) and ours.finish_reason == "length"


def test_it_is_a_sampler(engine):
    assert isinstance(engine, Sampler)
    assert len(engine.identity) == 64
    engine.sleep()
    asleep = ask(engine, Request(PROMPTS[2], greedy(5), "a"))
    engine.weights_changed()
    assert ask(engine, Request(PROMPTS[2], greedy(5), "a")) == asleep
    assert engine.statistics()["generated_tokens"] > 0


def test_a_seeded_answer_does_not_depend_on_its_company(engine):
    params = SamplingParams(max_tokens=12, temperature=1.0, top_k=50, seed=7, n=2)
    target = Request(PROMPTS[3], params, "target")
    alone = ask(engine, target)
    others = [Request(p, replace(params, seed=i, n=1), str(i)) for i, p in enumerate(PROMPTS)]
    assert ask(engine, *others, target)[-2:] == alone
    assert alone[0].token_ids != alone[1].token_ids
    assert ask(engine, Request(PROMPTS[3], replace(params, seed=8), "target")) != alone


def test_weights_in_fewer_bits(engine, tiny_model):
    [wanted] = ask(engine, Request(PROMPTS[5], greedy(1, prompt_logprobs=True), "a"))
    for kind, most in (("int8", 0.02), ("int4", 0.5)):
        fewer = open_engine(tiny_model, batch_size=3, weights=kind)
        assert fewer.identity == f"{engine.identity}+{kind}"
        [found] = ask(fewer, Request(PROMPTS[5], greedy(1, prompt_logprobs=True), "a"))
        pairs = zip(found.prompt_logprobs[1:], wanted.prompt_logprobs[1:], strict=True)
        difference = sum(abs(a - b) for a, b in pairs) / (len(PROMPTS[5]) - 1)
        assert 1e-6 < difference < most, (kind, difference)


def test_weights_that_a_device_cannot_have_are_refused(tiny_model):
    wrong = "int4" if torch.cuda.is_available() else "fp8"
    with pytest.raises(MachineError, match=f"`weights` is {wrong}"):
        open_engine(tiny_model, weights=wrong)


def test_shared_beginnings_are_computed_once(engine):
    stem = [2, *range(150, 150 + 80)]  # two pages and a half; the window of 8 is long past
    requests = [Request([*stem, 300 + i], greedy(4), str(i)) for i in range(3)]
    alone = []
    for request in requests:
        engine.weights_changed()  # nothing is known of the others
        alone += ask(engine, request)
    engine.weights_changed()
    before = engine.statistics()["shared_tokens"]
    together = ask(engine, *requests)
    assert together == alone
    assert engine.statistics()["shared_tokens"] - before == 2 * 64


def test_logprobs_are_those_of_the_forward_pass(engine):
    answer = ask(engine, Request(PROMPTS[4], greedy(6, logprobs=True), "a"))[0]
    row = torch.tensor([[*PROMPTS[4], *answer.token_ids]])
    with torch.no_grad():
        logprobs = engine.model.logits(engine.model(row)).log_softmax(-1)[0]
    wanted = [logprobs[len(PROMPTS[4]) - 1 + i, t].item() for i, t in enumerate(answer.token_ids)]
    assert answer.logprobs == pytest.approx(wanted, abs=1e-4)


def streamed(engine: Engine, request: Request):
    async def collect():
        return [delta async for delta in engine.stream(request)]

    return asyncio.run(collect())


def test_a_stream_is_the_same_answer_in_pieces(engine):
    request = Request(PROMPTS[1], SamplingParams(max_tokens=20, seed=3, top_k=200), "a")
    whole = ask(engine, request)[0]
    pieces = streamed(engine, request)
    assert "".join(p.text for p in pieces) == whole.text
    assert tuple(t for p in pieces for t in p.token_ids) == whole.token_ids
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == whole.finish_reason


def test_stop_strings_end_the_text_before_them(engine):
    request = Request(PROMPTS[1], SamplingParams(max_tokens=40, seed=3, top_k=200), "a")
    text = ask(engine, request)[0].text
    stop = text[4:6]
    params = replace(request.sampling, stop=(stop, "never"))
    stopped = ask(engine, replace(request, sampling=params))[0]
    assert stopped.text == text[: text.find(stop)] and stopped.finish_reason == "stop"
    pieces = streamed(engine, replace(request, sampling=params))
    assert "".join(piece.text for piece in pieces) == stopped.text


def test_messages_and_end_of_turn(engine):
    messages = [Message("user", "Hello")]
    by_text = ask(engine, Request(messages, greedy(5), "a"))[0]
    ids = engine.chat.encode(messages)
    assert ask(engine, Request(ids, greedy(5), "a"))[0] == by_text
    first = by_text.token_ids[0]
    params = SamplingParams(max_tokens=5, temperature=0, stop_token_ids=(first,))
    ended = ask(engine, Request(ids, params, "a"))[0]
    assert (ended.text, ended.finish_reason, ended.token_ids) == ("", "stop", (first,))


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "prompt is empty"),
        ([2, 512], {}, "token ids must lie in 0…511"),
        ([2, -1], {}, "token ids"),
        ([2] * 512, {}, "512 tokens; the model's context is 512"),
        ([2], {"temperature": -1}, "`temperature` is -1"),
        ([2], {"top_p": 0}, "`top_p`"),
        ([2], {"n": 0}, "`n`"),
        ([2], {"max_tokens": 0}, "`max_tokens`"),
    ],
)
def test_requests_that_cannot_be_served(engine, prompt, params, message):
    request = Request(prompt, SamplingParams(**params), "a")
    good = Request(PROMPTS[0], greedy(2), "b")
    refused, served = sorted(engine.sample([request, good]), key=lambda c: c.request_id)
    assert refused.finish_reason == "error" and re.search(message, refused.error)
    assert served.finish_reason == "length"
    with pytest.raises(RequestError, match=message):
        streamed(engine, request)


def test_the_context_ends_the_answer(engine):
    answer = ask(engine, Request([2] * 508, greedy(50), "a"))[0]
    assert len(answer.token_ids) == 4 and answer.finish_reason == "length"


LOGITS = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 2


def draw(count: int, **settings) -> Counter:
    params = [SamplingParams(**settings)] * count
    draws = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = choose(LOGITS.repeat(count, 1), Settings.of(params, LOGITS.device), draws)
    return Counter(chosen.tolist())


def test_draws_follow_the_distribution():
    for temperature in (0.7, 1.0):
        found = draw(4000, temperature=temperature)
        wanted = (LOGITS / temperature).softmax(-1) * 4000
        big = (wanted > 5).nonzero().flatten().tolist()
        terms = [(found[i] - wanted[i].item()) ** 2 / wanted[i].item() for i in big]
        statistic = sum(terms)
        assert statistic < 2 * len(big), statistic


@settings(max_examples=30, deadline=None)
@given(
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0, 0.5),
)
def test_filters_keep_what_they_say(top_k, top_p, min_p):
    probabilities = LOGITS.softmax(-1)
    drawn = set(draw(60, top_k=top_k, top_p=top_p, min_p=min_p))
    ranked = probabilities.argsort(descending=True).tolist()
    best = ranked[: top_k or 40]
    best = [i for i in best if probabilities[i] >= min_p * probabilities[ranked[0]] * (1 - 1e-5)]
    kept, mass, total = [], 0.0, sum(probabilities[i].item() for i in best)
    for i in best:
        if mass / total >= top_p + 1e-6:
            break
        kept.append(i)
        mass += probabilities[i].item()
    assert drawn <= set(kept)
    assert math.isclose(probabilities.sum().item(), 1, abs_tol=1e-5)


def test_a_reader_that_leaves_before_the_first_step_ends_what_waits(engine):
    """A refusal is told before anything is computed; those behind it have not begun by then."""
    stream = engine.sample(
        [
            Request([Message("user", "a" * 4000)], greedy(4)),
            Request([Message("user", "b")], greedy(4)),
        ]
    )
    assert "the model's context is" in next(stream).error
    worker = threading.Thread(target=stream.close, daemon=True)
    worker.start()
    worker.join(timeout=60)
    assert not worker.is_alive(), "it waits for ever"
    assert [done.finish_reason for done in ask(engine, Request([2, 300], greedy(2)))] == ["length"]


class OutOfMemory:
    """A step, or what a runner needs at its start, that finds no memory so often."""

    def __init__(self, monkeypatch, engine: Engine, steps: int, starts: int):
        from singalaut.generate import core

        self.steps, self.starts, opened = steps, starts, core.open_runner
        runner = type(engine._core.runner)
        launch = runner.launch

        def launches(runner, step):
            if self.steps:
                self.steps -= 1
                raise torch.OutOfMemoryError("no room")
            return launch(runner, step)

        def opens(*parts, **ways):
            if self.starts and not self.steps:
                self.starts -= 1
                raise torch.OutOfMemoryError("no room")
            return opened(*parts, **ways)

        monkeypatch.setattr(runner, "launch", launches)
        monkeypatch.setattr(core, "open_runner", opens)


@pytest.mark.parametrize(("steps", "starts"), [(1, 0), (1, 2), (2, 1)])
def test_without_memory_it_goes_on_with_a_smaller_cache(
    steps, starts, tiny_model, monkeypatch, caplog
):
    requests = [Request(p, greedy(20), str(i)) for i, p in enumerate(PROMPTS)]
    engine = open_engine(tiny_model, batch_size=3)
    wanted = [answer.token_ids for answer in ask(engine, *requests)]
    pages = dict(engine._core.cache.pages)
    OutOfMemory(monkeypatch, engine, steps, starts)
    assert [answer.token_ids for answer in ask(engine, *requests)] == wanted
    assert sum("smaller cache" in record.message for record in caplog.records) == steps + starts
    assert sum(engine._core.cache.pages.values()) < sum(pages.values())


def test_a_prompt_without_room_in_a_smaller_cache_ends_alone(tiny_model, monkeypatch):
    """Without an end it would wait for room that never comes."""
    engine = open_engine(tiny_model, batch_size=3)
    long, short = Request([2] * 240, greedy(20), "long"), Request(PROMPTS[2], greedy(20), "short")
    (wanted,) = ask(engine, short)
    OutOfMemory(monkeypatch, engine, 1, 6)
    failed, found = ask(engine, long, short)
    assert failed.finish_reason == "error" and "the cache has become smaller" in failed.error
    assert found.token_ids == wanted.token_ids


def test_without_any_memory_it_says_so_and_is_ready_later(tiny_model, monkeypatch):
    engine = open_engine(tiny_model, batch_size=3)
    request = Request(PROMPTS[2], greedy(5), "a")
    (wanted,) = ask(engine, request)
    none = OutOfMemory(monkeypatch, engine, 1, 10**6)
    for _ in range(2):
        with pytest.raises(MachineError, match="no memory for the smallest cache"):
            ask(engine, request)
    none.starts = 0
    assert ask(engine, request)[0].token_ids == wanted.token_ids


@pytest.mark.parametrize("name", ["batch_size", "chunk_tokens", "cache_bytes", "tensor_parallel"])
@pytest.mark.parametrize("value", [0, -5])
def test_settings_that_are_no_counts_are_refused(name, value, tiny_model):
    with pytest.raises(MachineError, match=f"`{name}` is {value}; it must be at least 1"):
        open_engine(tiny_model, **{name: value})


class Fails:
    """A mask whose part of this name raises."""

    def __init__(self, part: str, tokens: int):
        self.part, self.left = part, tokens

    def made(self) -> Fails:
        return self._or("made", self)

    def allowed(self):
        return self._or("allowed", None)

    def accept(self, token: int) -> None:
        self.left -= 1
        self._or("accept", None)

    def _or(self, part, value):
        if part == self.part and self.left <= 0:
            raise ValueError("a grammar too large")
        return value


@pytest.mark.parametrize("part", ["made", "allowed", "accept"])
def test_a_mask_that_fails_ends_its_answer_alone(part, engine):
    mask = Fails(part, 0 if part == "made" else 2)
    one, other = (
        Request(PROMPTS[2], greedy(6), "a", mask=mask.made),
        Request(PROMPTS[3], greedy(6), "b"),
    )
    (wanted,) = ask(engine, other)
    failed, found = ask(engine, one, other)
    assert failed.finish_reason == "error" and "its mask failed: ValueError" in failed.error
    assert found.token_ids == wanted.token_ids


def test_an_error_names_the_request_and_what_it_is_about(engine, tiny_model):
    biased = greedy(3, logit_bias=dict.fromkeys(range(200), float("-inf")))
    long = Request([2] * 400, greedy(3), "long")
    small = open_engine(tiny_model, context_tokens=100)
    answers = small.generate([Request(PROMPTS[0], biased, "biased"), long])
    assert [a.request_id for a in answers] == ["biased", "long"]
    assert "`logit_bias` is -inf for the token 0 and 199 others" in answers[0].error
    assert "the engine's context is 100" in answers[1].error and "where: long" in answers[1].error
    same = engine.generate([Request(PROMPTS[0], greedy(2)), Request(PROMPTS[1], greedy(2))])
    assert [a.request_id for a in same] == ["", ""] and same[0].usage.prompt_tokens == 2
