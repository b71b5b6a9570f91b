"""Two processes over gloo answer as one does, and end when one of them does."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_cases import Ids, answer, difference, run, small, together
from test_engine_images import ask_about, drawn, picture

from singalaut.contracts import Request, SamplingParams
from singalaut.errors import MachineError, RecipeError
from singalaut.generate import core as core_module
from singalaut.generate.core import Core
from singalaut.generate.engine import Engine, open_engine
from singalaut.generate.memory import Room
from singalaut.generate.orders import hear_step, tell_step
from singalaut.generate.pages import PageTables
from singalaut.generate.ranks import Ranks
from singalaut.generate.scheduler import Chunk, Step
from singalaut.model.config import SIZES
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import parameter_shapes, save_model
from singalaut.model.shard import Shard

if torch.cuda.is_available():
    pytest.skip("tests/gpu has these for devices", allow_module_level=True)

PROMPTS = [[2, *range(150, 150 + n)] for n in (1, 5, 8, 9, 20, 33, 70)]
STEM = list(range(150, 220))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one(tiny_model) -> Engine:
    return open_engine(tiny_model, batch_size=3)


@pytest.fixture(scope="module")
def two(tiny_model):
    engine = open_engine(tiny_model, batch_size=3, tensor_parallel=2)
    yield engine
    engine.close()


def ask(engine: Engine, *requests: Request):
    found = {(c.request_id, c.index): c for c in engine.sample(requests)}
    return [found[request.id, i] for request in requests for i in range(request.sampling.n)]


def params(tokens: int, **more) -> SamplingParams:
    more = {"temperature": 0.0, "ignore_eos": True, "logprobs": True, **more}
    return SamplingParams(max_tokens=tokens, **more)


def assert_same(ours, wanted) -> None:
    for a, b in zip(ours, wanted, strict=True):
        assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
        for mine, theirs in ((a.logprobs, b.logprobs), (a.prompt_logprobs, b.prompt_logprobs)):
            assert (mine or ())[1:] == pytest.approx((theirs or ())[1:], abs=1e-5)
        for mine, theirs in zip(a.top_logprobs or (), b.top_logprobs or (), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)


def test_answers_are_those_of_one_process(one, two):
    requests = [Request(p, params(25), str(i)) for i, p in enumerate(PROMPTS)]
    kinds = [
        {"n": 2, "temperature": 1.0, "seed": 5},
        {"temperature": 1.0, "top_k": 20, "seed": 1},
        {"temperature": 1.0, "top_p": 0.8, "seed": 2, "repetition_penalty": 1.3},
        {"top_logprobs": 3, "prompt_logprobs": True},
        {"min_tokens": 5, "ignore_eos": False, "stop": ("b",)},
    ]
    requests += [Request([*STEM, 300], params(9, **k), f"k{i}") for i, k in enumerate(kinds)]
    assert_same(ask(two, *requests), ask(one, *requests))
    assert two.identity == one.identity
    two.sleep()
    assert_same(ask(two, requests[4]), ask(one, requests[4]))
    two.weights_changed()
    assert_same(ask(two, requests[4]), ask(one, requests[4]))


def test_shared_beginnings_and_streams(one, two):
    requests = [Request([*STEM, 300 + i], params(6), str(i)) for i in range(3)]
    two.weights_changed()
    before = two.statistics()["shared_tokens"]
    assert_same(ask(two, *requests), ask(one, *requests))
    assert two.statistics()["shared_tokens"] - before == 2 * 64

    async def first_pieces(engine):
        tokens = []
        stream = engine.stream(Request(PROMPTS[3], params(100)))
        async for delta in stream:
            tokens += delta.token_ids
            if len(tokens) > 4:
                await stream.aclose()  # which cancels it
                return tokens[:5]

    assert asyncio.run(first_pieces(two)) == asyncio.run(first_pieces(one))
    assert_same(ask(two, requests[0]), ask(one, requests[0]))
    late = Request(PROMPTS[0], params(400), "late", deadline_seconds=0.05)
    assert ask(two, late)[0].finish_reason == "deadline"
    assert_same(ask(two, requests[1]), ask(one, requests[1]))


def test_preemptions_and_cancellations(tmp_path, tiny_config, monkeypatch):
    config = replace(tiny_config, num_layers=2, global_every=2)
    whole = initialise(Gemma3(config), seed=3).eval().requires_grad_(False)
    save_model(whole, tmp_path, torch.float32)
    model, ranks = together(tmp_path)
    dice = random.Random(3)
    seen = dict.fromkeys(("preemptions", "shared_tokens", "cancelled"), 0)
    for number in range(4):
        pages = dict.fromkeys(("global", "window"), 5)
        monkeypatch.setattr(core_module, "plan_pages", lambda *_, pages=pages: pages)
        core = Core(model, Ids(512), Room(3, 200, dice.choice([16, 40])), None, ranks=ranks)
        answers = [
            answer(
                STEM[: dice.randint(20, 60)], i, max_tokens=dice.choice([3, 40]), temperature=0.0
            )
            for i in range(5)
        ]
        doomed = {dice.randint(3, 30): answers[1]}
        for each in answers:
            core.add(each)
        for step in range(3000):
            if step in doomed:
                core.cancel(doomed[step])
            if not core.is_busy:
                break
            core.step()
        assert not core.is_busy, number
        core.model = whole
        for each in answers:
            seen["cancelled"] += each.finish == "cancelled"
            assert each.finish == "cancelled" or each.num_written == each.limit
            if each.num_written:
                assert difference(core, each).abs().max() < 1e-5
                assert is_greedy(whole, each)
        for name in ("preemptions", "shared_tokens"):
            seen[name] += core.statistics()[name]
    ranks.close()
    assert all(count > 2 for count in seen.values()), seen


def is_greedy(model: Gemma3, each) -> bool:
    with torch.no_grad():
        hidden = model(torch.tensor([each.tokens.tolist()]))[0, each.num_prompt - 1 : -1]
        best = model.logits(hidden).argmax(-1)
    return best.tolist() == each.tokens[each.num_prompt :].tolist()


def test_images_are_seen(seeing_model):
    asked = [ask_about(picture(1)), ask_about(picture(1), picture(2)), ask_about(picture(2))]
    requests = [Request(p, drawn(prompt_logprobs=True), str(i)) for i, p in enumerate(asked)]
    one = open_engine(seeing_model, batch_size=4)
    two = open_engine(seeing_model, batch_size=4, tensor_parallel=2, chunk_tokens=16)
    assert_same(ask(two, *requests), ask(one, *requests))
    assert two.statistics()["images"] == 2
    two.close()


def test_fast_runners_give_plain_numbers(tmp_path, monkeypatch):
    """Kernels in the interpreter: heads, inner width and the vocabulary are cut in two."""
    pytest.importorskip("triton")
    from singalaut.generate.fast import FastRunner

    shape = {
        "hidden_size": 32, "intermediate_size": 32, "num_layers": 2, "global_every": 2,
        "vocab_size": 300, "window": 20, "max_positions": 64, "head_dim": 16,
    }  # fmt: skip
    whole = small("4b", **shape)
    save_model(whole, tmp_path, torch.float32)
    monkeypatch.setattr(core_module, "PlainRunner", FastRunner)
    model, ranks = together(tmp_path, str(Path(__file__).with_name("fast_follower.py")))
    filtered = {"temperature": 1.0, "top_k": 20}
    on_host = {"temperature": 0.0, "top_logprobs": 3, "prompt_logprobs": True}
    for kinds in ([{"temperature": 1.0}], [filtered, filtered], [on_host, on_host]):
        core = Core(model, Ids(300), Room(len(kinds), 64, 60), 4 << 20, ranks=ranks)
        answers = [answer(STEM[: 3 + 20 * i], i, max_tokens=2, **k) for i, k in enumerate(kinds)]
        run(core, answers)
        core.model = whole
        for each in answers:
            assert each.num_written == 2
            assert difference(core, each).abs().max() < 1e-4
    ranks.close()


def test_a_lost_process_is_named(tiny_model, tmp_path):
    engine = open_engine(tiny_model, batch_size=3, tensor_parallel=2)
    [other] = engine._core.ranks._others
    lengths = [3, 200, 200]
    asked = [Request(PROMPTS[i], params(n), str(i)) for i, n in enumerate(lengths)]
    completions = engine.sample(asked)
    assert next(completions).finish_reason == "length"
    other.child.process.send_signal(signal.SIGKILL)
    with pytest.raises(MachineError, match="process 1 of 2 was killed by signal 9"):
        list(completions)
    with pytest.raises(MachineError, match="process 1 of 2"):
        ask(engine, Request(PROMPTS[0], params(3), ""))
    ranks = Ranks(0, 2)
    ranks.start([sys.executable, "-m", "singalaut.generate.follower", str(tmp_path)])
    with pytest.raises(MachineError, match=r"process 1 of 2 ended with exit code 1.*config\.json"):
        ranks.meet(torch.device("cpu"))


def test_the_first_process_ends_the_others(tiny_model):
    _, ranks = together(tiny_model)
    [other] = ranks._others
    ranks.close()
    assert other.child.process.returncode == 0
    with pytest.raises(MachineError, match="closed"):
        ranks.tell("refresh")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_make_the_whole(size):
    config = replace(SIZES["4b"], num_layers=1, hidden_size=8, intermediate_size=16, vocab_size=32)
    shapes = parameter_shapes(config)
    for name, shape in shapes.items():
        weight = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
        parts = [Shard(r, size).of_weight(name, weight, config) for r in range(size)]
        narrow = parameter_shapes(Shard(0, size).of_config(config))
        assert all(tuple(part.shape) == narrow[name] for part in parts)
        sides = [i for i in range(len(shape)) if parts[0].shape[i] != shape[i]]
        joined = torch.cat(parts, sides[0]) if sides else parts[-1]
        assert torch.equal(joined, weight)


def test_one_key_head_belongs_to_all():
    config = SIZES["1b"]
    weight = torch.zeros(256, config.hidden_size)
    for rank in range(4):
        part = Shard(rank, 4).of_weight("layers.0.attention.key.weight", weight, config)
        assert part.shape == weight.shape
    with pytest.raises(RecipeError, match=r"`tensor_parallel` is 3.*(\n.*)*can be 1, 2, 4"):
        Shard(0, 3).of_config(config)
    config = replace(config, num_heads=8, num_kv_heads=2)
    weight = torch.arange(2.0).repeat_interleave(256)[:, None]
    heads = [
        Shard(r, 4).of_weight("layers.3.attention.value.weight", weight, config).unique().item()
        for r in range(4)
    ]
    assert heads == [0, 0, 1, 1]


def test_orders_are_heard_as_told():
    asked = answer(STEM, 3, max_tokens=9, temperature=0.7, top_k=5, min_p=0.1, prompt_logprobs=True)
    asked.slot, asked.stored, asked.under_way = 1, 40, 1
    asked.prompt_logprobs = [None, -1.0]
    mine, theirs = (PageTables({"global": 9, "window": 9}, 40, 2, 128) for _ in range(2))
    mine.grow(1, 70)
    chunks = [Chunk(asked, 40, 70, samples=True)]
    known: dict = {}
    heard = hear_step(tell_step(Step([], chunks), mine, knows_tokens=True), theirs, known)
    [chunk] = heard.chunks
    assert (chunk.start, chunk.end, chunk.samples) == (40, 70, True)
    assert chunk.answer.tokens[40:] == asked.tokens[40:] and len(chunk.answer.tokens) == 70
    assert chunk.answer.seed == asked.seed and len(chunk.answer.prompt_logprobs) == 2
    assert chunk.answer.request.sampling.top_k == 5 and not chunk.answer.needs_host
    for kind in ("global", "window"):
        assert (mine.tables[kind] == theirs.tables[kind]).all()
    asked.tokens.append(7)
    asked.stored = 71
    record = tell_step(Step([asked], []), mine, knows_tokens=True)
    assert hear_step(record, theirs, known).decode[0].tokens[70] == 7


def test_an_orphan_ends(tiny_model):
    _, ranks = together(tiny_model)
    child = ranks._others[0].child
    child.dismiss()  # its pipe is closed, as it is when the first process is killed
    process = child.process
    for _ in range(100):
        if process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.returncode == 0
