"""Answers made a step ahead: the order by hand, and what corrects their age."""

from __future__ import annotations

import threading

import pytest
import torch
from pydantic import ValidationError
from rl_cases import Even, run, settings, tasks

from singalaut.contracts import derive
from singalaut.generate.engine import engine_over
from singalaut.model.hf import load_model
from singalaut.rl.ask import Asking, roll_out
from singalaut.rl.config import RlConfig
from singalaut.rl.curriculum import Order, Rated
from singalaut.rl.learn import learn
from singalaut.rl.policy import answer_logprobs
from singalaut.rl.rollouts import load_rollouts
from singalaut.text.tokenizer import Tokenizer
from singalaut.train.optim import adamw
from singalaut.train.parallel import World
from singalaut.train.weights import trainable


def by_hand(tmp_path, model, config, age):
    """Weights after all steps, each of which learns from answers of the weights `age` steps ago."""
    end = Tokenizer.load(model).end_of_turn_id
    network = trainable(config, model, end, 5, World())
    optimizer = adamw(network, config.learning_rate, 0.0, "float32", derive(5, "adamw"))
    order = Order([Rated(task, None) for task in tasks()], 5, config)
    place, mismatch = 0, []
    past = [{k: v.clone() for k, v in network.state_dict().items()}]
    for step in range(config.steps):
        old = load_model(model)
        old.config = network.config
        old.load_state_dict(past[max(0, step - age)])
        sampler = engine_over(old, model, context_tokens=32)
        asking = Asking(config, sampler, Even(), order.draw, 5, tmp_path / f"hand-{age}")
        rollouts = roll_out(asking, place, step)
        place = rollouts.next_place
        meters = learn(config, network, None, optimizer, rollouts, step)
        mismatch.append(meters.mismatch)
        past.append({k: v.clone() for k, v in network.state_dict().items()})
    return past[-1], mismatch


def test_each_step_learns_from_answers_of_the_weights_before_the_last_step(tmp_path, tiny_model):
    config = settings(overlap=True, steps=5, adapter=None, learning_rate=3e-3)
    work = run(tmp_path, tiny_model, "ahead", config)
    found = load_model(work.path / "model").state_dict()
    wanted, mismatch = by_hand(tmp_path, tiny_model, config, age=1)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert [line["mismatch"] for line in work.metrics()] == mismatch
    assert mismatch[0] < 1e-4 < min(mismatch[1:])
    fresh, _ = by_hand(tmp_path, tiny_model, config, age=0)
    assert any(not torch.equal(found[name], fresh[name]) for name in wanted)


def test_the_copy_has_the_adapter_in_it(tmp_path, tiny_model):
    """Step 2's answers have the log-probabilities of the model after one update."""
    ahead = run(tmp_path, tiny_model, "ahead", settings(overlap=True, steps=3))
    once = run(tmp_path, tiny_model, "once", settings(steps=1))
    stored = load_rollouts(ahead.path / "rollouts", 2)
    sampled = torch.tensor([p for answer in stored.answers for p in answer.logprobs])

    def apart(model):
        with torch.no_grad():
            found, *_ = answer_logprobs(load_model(model), stored.answers, 1.0)
        return (torch.cat(found) - sampled).abs().max().item()

    assert apart(once.path / "model") < 1e-3 < 1e-2 < apart(tiny_model)


def test_answers_are_made_while_the_step_is_learned_from(tmp_path, tiny_model, monkeypatch):
    """Learning waits for the next step's answers to come, which never ends without a thread."""
    came = threading.Semaphore(0)

    class Counting:
        def __init__(self, engine):
            self.engine = engine

        def sample(self, requests):
            yield from self.engine.sample(requests)
            came.release()

        def __getattr__(self, name):
            return getattr(self.engine, name)

    from singalaut.rl import run as stage

    config = settings(overlap=True, steps=3, refill=0)

    def waits(*args):
        step = args[5]
        if step + 1 < config.steps:
            assert came.acquire(timeout=60)
        return learn(*args)

    came_first = []
    monkeypatch.setattr(stage, "learn", waits)
    run(
        tmp_path,
        tiny_model,
        "thread",
        config,
        wrap=lambda engine: came_first.append(1) or Counting(engine),
    )
    assert load_rollouts(tmp_path / "thread" / "rollouts", 2) is not None


def test_answers_whose_age_cannot_be_corrected_are_refused():
    with pytest.raises(ValidationError, match="needs a `temperature` of 1"):
        RlConfig.model_validate(settings().model_dump() | {"overlap": True, "temperature": 0.7})
