"""A batch-invariant core gives each answer the same bits in any company."""

from __future__ import annotations

import random

import pytest
import torch
from engine_cases import Ids, answer, difference, run, small

from singalaut.generate import core as core_module
from singalaut.generate.core import Core
from singalaut.generate.memory import Room
from singalaut.model.paged import KINDS

TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "global_every": 2,
    "vocab_size": 500, "window": 40, "max_positions": 256, "head_dim": 16,
}  # fmt: skip
PARAMS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.2, "top_logprobs": 3},
    {"temperature": 1.0, "prompt_logprobs": True},
]
STEM = list(range(150, 220))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bits(each) -> tuple:
    return each.tokens.tolist(), each.logprobs, each.top_logprobs, each.prompt_logprobs


def requests(dice: random.Random, count: int, longest: int) -> list[tuple]:
    found = []
    for order in range(count):
        head = STEM[: dice.choice([0, 33, 70])]
        prompt = [2, *head, *dice.choices(range(110, 500), k=dice.randint(1, 40))]
        tokens = dice.choice([2, 9, longest])
        found.append((prompt, order, {"max_tokens": tokens, **PARAMS[order % len(PARAMS)]}))
    return found


def mixed(core: Core, asked: list[tuple], dice: random.Random) -> list:
    """All requests together, in any order and at any time."""
    answers = [answer(prompt, order, **params) for prompt, order, params in asked]
    arrivals = dice.sample(answers, len(answers))
    while arrivals or core.is_busy:
        for _ in range(min(len(arrivals), dice.randint(0, 3))):
            core.add(arrivals.pop())
        core.step()
    return answers


def alone(core: Core, asked: list[tuple]) -> list:
    answers = []
    for prompt, order, params in asked:
        core.weights_changed()  # nothing is known of the others
        answers.append(answer(prompt, order, **params))
        run(core, answers[-1:])
    return answers


@pytest.mark.parametrize("weights", [None, "int8", "int4"])
def test_any_company_gives_the_same_bits(weights, monkeypatch):
    model = small("1b", **TINY)
    ways = {"batch_invariant": True, "weights": weights}
    lonely = Core(model, Ids(500), Room(1, 256, 500), 20 << 20, **ways)
    preemptions = shared = 0
    for seed in range(4 if weights is None else 1):
        dice = random.Random(seed)
        asked = requests(dice, 6, 70)
        wanted = alone(lonely, asked)
        pages = dict.fromkeys(KINDS, dice.choice([7, 8, 60]))
        monkeypatch.setattr(core_module, "plan_pages", lambda *_, pages=pages: pages)
        room = Room(dice.randint(2, 6), 256, dice.choice([7, 50, 300]))
        core = Core(model, Ids(500), room, None, **ways)
        for ours, theirs in zip(mixed(core, asked, dice), wanted, strict=True):
            assert bits(ours) == bits(theirs), seed
        preemptions += core.statistics()["preemptions"]
        shared += core.statistics()["shared_tokens"]
    assert weights or (preemptions > 5 and shared > 500), (preemptions, shared)


def test_the_plain_way_would_be_noticed():
    model = small("1b", **TINY)
    dice = random.Random(1)
    asked = requests(dice, 8, 40)
    wanted = alone(Core(model, Ids(500), Room(1, 256, 500), 20 << 20), asked)
    core = Core(model, Ids(500), Room(6, 256, 50), 20 << 20)
    assert [bits(a) for a in mixed(core, asked, dice)] != [bits(a) for a in wanted]


def test_numbers_are_those_of_the_plain_way():
    model = small("1b", **TINY)
    asked = requests(random.Random(2), 6, 20)
    plain = alone(Core(model, Ids(500), Room(1, 256, 500), 20 << 20), asked)
    ours = alone(Core(model, Ids(500), Room(1, 256, 500), 20 << 20, batch_invariant=True), asked)
    for each, other in zip(ours, plain, strict=True):
        assert each.tokens == other.tokens
        torch.testing.assert_close(each.logprobs, other.logprobs, rtol=0, atol=1e-4)


def test_the_kernels_of_a_device(monkeypatch):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("tests/gpu runs this on the device")
    from singalaut.generate.fast import FastRunner

    monkeypatch.setattr(core_module, "PlainRunner", FastRunner)
    model = small("4b", **TINY)
    dice = random.Random(3)
    prompts = [[2, *range(150, 150 + count)] for count in (3, 35)]
    asked = [(p, i, {"max_tokens": 2, **PARAMS[2 + i]}) for i, p in enumerate(prompts)]
    wanted = alone(Core(model, Ids(500), Room(1, 256, 99), 20 << 20, batch_invariant=True), asked)
    core = Core(model, Ids(500), Room(3, 256, 30), 20 << 20, batch_invariant=True)
    for ours, theirs in zip(mixed(core, asked, dice), wanted, strict=True):
        assert bits(ours) == bits(theirs)
    for each in wanted:
        assert difference(core, each).abs().max() < 1e-4
