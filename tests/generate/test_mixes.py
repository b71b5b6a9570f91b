"""Mixes of requests that come, share, are preempted and cancelled, against plain forward passes.

All greedy answers must be theirs. `SINGALAUT_MIXES=500` runs as many; a hundred run by default.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import torch

from singalaut.contracts import Request, SamplingParams
from singalaut.generate import core as core_module
from singalaut.generate.core import Core
from singalaut.generate.memory import Room
from singalaut.generate.prompts import PromptReader
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.paged import KINDS
from singalaut.text.chat import ChatFormat
from singalaut.text.tokenizer import Tokenizer

MIXES = int(os.environ.get("SINGALAUT_MIXES", "100"))
CLOSE = 1e-4  # between logits that plain passes leave in doubt


@pytest.fixture(scope="module")
def parts(tiny_model, tiny_config):
    tokenizer = Tokenizer.load(tiny_model)
    config = replace(tiny_config, num_layers=2, global_every=2)
    model = initialise(Gemma3(config), seed=3).eval().requires_grad_(False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other longer than they work
    yield model, tokenizer, ChatFormat.load(tiny_model, tokenizer)
    torch.set_num_threads(threads)


def is_greedy(model, answer, vocab_size: int) -> bool:
    """Whether every token of an answer is the best one after those before it, in one plain pass."""
    if not answer.num_written:
        return True
    with torch.no_grad():
        hidden = model(torch.tensor([answer.tokens.tolist()]))[0, answer.num_prompt - 1 : -1]
        logits = model.logits(hidden)[:, :vocab_size]
    written = torch.tensor(answer.tokens[answer.num_prompt :].tolist())
    chosen = logits.gather(1, written[:, None])[:, 0]
    return bool((chosen >= logits.max(-1).values - CLOSE).all())


def test_mixes(parts, monkeypatch):
    model, tokenizer, chat = parts
    reader = PromptReader(model.config, tokenizer, chat, False)
    dice = random.Random(11)
    seen = dict.fromkeys(("preemptions", "shared_tokens", "cancelled", "answers"), 0)
    core = None
    for number in range(MIXES):
        if number % 5 == 0:  # mixes after each other meet what the ones before have left
            room = Room(dice.randint(2, 4), 200, dice.choice([5, 16, 40]))
            pages = dict.fromkeys(KINDS, dice.choice([4, 5, 6, 60]))
            monkeypatch.setattr(core_module, "plan_pages", lambda *_, pages=pages: pages)
            core = Core(model, tokenizer, room, None)
        heads = [[2, *dice.choices(range(110, 500), k=dice.randint(1, 40))] for _ in range(2)]
        arrivals: dict[int, list] = {}
        answers = []
        for _ in range(dice.randint(1, 4)):
            prompt = dice.choice(heads) + dice.choices(range(110, 500), k=dice.randint(0, 12))
            params = SamplingParams(
                max_tokens=dice.choice([1, 4, 8, 70]),
                temperature=0,
                n=dice.choice([1, 2, 2]),
                ignore_eos=True,
            )
            opened = reader.open(
                Request(prompt, params), 200, core.scheduler.tables.capacity_tokens(),
                lambda _: None, streams=False,
            )  # fmt: skip
            answers += opened
            arrivals.setdefault(dice.randint(0, 5), []).extend(opened)
        doomed = {a: dice.randint(1, 20) for a in answers if dice.random() < 0.15}
        step = 0
        while core.is_busy or arrivals:
            for each in arrivals.pop(step, []):
                core.add(each)
            for each, when in doomed.items():
                if when == step:
                    core.cancel(each)
            core.step()
            step += 1
            assert step < 5000, "a request is stuck"
        for each in answers:
            assert each.finish in ("length", "cancelled"), each.error
            assert each.finish == "cancelled" or each.num_written == each.limit
            assert is_greedy(model, each, tokenizer.vocab_size), number
            seen["cancelled"] += each.finish == "cancelled"
        assert all(core.scheduler.tables.pools[kind].used == 0 for kind in KINDS)
        for name in ("preemptions", "shared_tokens", "answers"):
            seen[name] += core.statistics()[name] if number % 5 == 4 else 0
    assert seen["preemptions"] > MIXES / 4 and seen["shared_tokens"] > 20 * MIXES, seen
    assert seen["cancelled"] > MIXES / 4, seen


def test_a_wrong_token_is_noticed(parts):
    model, tokenizer, chat = parts
    reader = PromptReader(model.config, tokenizer, chat, False)
    core = Core(model, tokenizer, Room(2, 200, 64), 10**7)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    [answer] = reader.open(Request([2, 150, 151], params), 200, 200, lambda _: None, streams=False)
    core.add(answer)
    while core.is_busy:
        core.step()
    assert is_greedy(model, answer, tokenizer.vocab_size)
    answer.tokens[8] = (answer.tokens[8] + 1) % 500
    assert not is_greedy(model, answer, tokenizer.vocab_size)
