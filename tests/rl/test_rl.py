"""Reinforcement learning: the update against a formula, the loop, and resumption to the bit."""

from __future__ import annotations

import math
from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from rl_cases import Even, plain, run, settings, tasks, weights

from singalaut.artifact import Work
from singalaut.contracts import Score
from singalaut.errors import DataError
from singalaut.model.hf import load_model
from singalaut.rl import run as rl
from singalaut.rl.policy import (
    answer_logprobs,
    families,
    policy_step,
    row_tokens,
    rows_of,
)
from singalaut.rl.rollouts import Rollout, Rollouts, load_rollouts, save_rollouts


def test_it_learns_and_everything_is_kept(tmp_path, tiny_model):
    config = settings(steps=60, held_out=2, evaluate_every=25)
    work = run(tmp_path, tiny_model, "learns", config)
    lines = work.metrics()
    rewards = [line["reward"] for line in lines if "reward" in line]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:5]) / 5 + 0.1
    held_out = [line for line in lines if "held_out_reward" in line]
    assert len(held_out) == 4
    for line in held_out:
        assert line["held_out_by_part"] == {"even": pytest.approx(line["held_out_reward"])}
        error = pytest.approx(line["held_out_standard_error"])
        assert line["held_out_errors_by_part"] == {"even": error}
    assert max(line["mismatch"] for line in lines if "mismatch" in line) < 1e-4
    stored = load_rollouts(work.path / "rollouts", 3)
    assert stored is not None and stored.groups == 2 and len(stored.answers) == 8
    assert stored.answers[0].score.parts.keys() == {"even"}
    means = [sum(a.advantage for a in stored.answers[i : i + 4]) for i in (0, 4)]
    assert means == pytest.approx([0, 0], abs=1e-6)
    assert (work.path / "adapter").exists() and load_model(work.path / "model")


@pytest.mark.parametrize("where", ["generate", "learn"])
def test_a_killed_run_ends_in_the_same_bits(tmp_path, tiny_model, monkeypatch, where):
    whole = run(tmp_path, tiny_model, "whole")
    name = {"generate": "roll_out", "learn": "learn"}[where]
    real, calls = getattr(rl, name), []

    def dies(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(rl, name, dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny_model, "killed")
    monkeypatch.setattr(rl, name, real)
    resumed = run(tmp_path, tiny_model, "killed")
    assert plain(resumed) == plain(whole)
    found, wanted = weights(resumed), weights(whole)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def answers() -> list[Rollout]:
    made = []
    for number, (prompt, tokens) in enumerate([(3, 5), (3, 2), (2, 6), (2, 3)]):
        ids = tuple(range(10 + number // 2, 10 + number // 2 + prompt))
        out = tuple(range(40 + number, 40 + number + tokens))
        worth = (0.5, -0.5, 0.25, -0.25)[number]
        logprobs = tuple([-3.0] * tokens)
        made.append(
            Rollout("p", number // 2, "en", "s", ids, out, logprobs, "", "stop", Score(1.0), worth)
        )
    return made


@pytest.mark.parametrize("micro_tokens", [1, 12, 1000])
def test_the_gradient_is_that_of_the_formula(tiny_model, micro_tokens):
    """Σ over answers and tokens of −A log π / (answers · limit), answer by answer, unpacked."""
    config = settings(micro_tokens=micro_tokens, importance_cap=1e9, adapter=None)
    model = load_model(tiny_model).requires_grad_(True)
    given = answers()
    now, *_ = answer_logprobs(model, given, 1.0)
    given = [replace(a, logprobs=tuple(p.tolist())) for a, p in zip(given, now, strict=True)]
    total = 0.0
    for answer in given:
        tokens = torch.tensor([answer.prompt + answer.tokens])
        logprobs = model.logits(model(tokens))[0].log_softmax(-1)
        at = range(len(answer.prompt), tokens.shape[1])
        chosen = torch.stack([logprobs[t - 1, tokens[0, t]] for t in at])
        total = total - answer.advantage * chosen.sum() / (4 * config.max_tokens)
    wanted = torch.autograd.grad(total, list(model.parameters()))
    seen = {}

    class Keeps(torch.optim.SGD):
        def step(self, closure=None):
            for name, parameter in model.named_parameters():
                seen[name] = parameter.grad.clone()

    rollouts = Rollouts(tuple(given), 2, 0, 0, {})
    meters = policy_step(model, Keeps(model.parameters(), 0.1), rollouts, config, 0.1)
    assert meters.mismatch < 1e-5 and meters.clipped_low == meters.clipped_high == 0
    scale = max(1.0, meters.gradient_norm / config.max_gradient_norm)
    for (name, _), gradient in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(scale * seen[name], gradient, rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            scale * seen["embedding.weight"], 1.01 * wanted[0], rtol=1e-4, atol=1e-6
        )


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=5)), max_size=6),
    st.integers(1, 40),
)
def test_rows_hold_every_answer_once_and_no_more_than_fits(prompts, room):
    made = [
        Rollout("p", place, "en", "s", (7,) * prompt, (8,) * length, (), "", "stop", Score(1.0))
        for place, (prompt, lengths) in enumerate(prompts)
        for length in lengths
    ]
    rows = rows_of(made, room)
    assert sorted(number for row in rows for number in row) == list(range(len(made)))
    for row in rows:
        chosen = [made[number] for number in row]
        assert len(row) == 1 or row_tokens(chosen) <= room
        assert len(families(chosen)) == len({answer.place for answer in chosen})
    if rows and sum(len(a.prompt) + len(a.tokens) for a in made) <= room:
        assert len(rows) == 1


def test_engine_and_trainer_are_compared_at_any_temperature(tmp_path, tiny_model):
    lines = run(tmp_path, tiny_model, "cool", settings(temperature=0.7, steps=2)).metrics()
    assert lines and all(line["largest_mismatch"] < 1e-4 for line in lines if "loss" in line)


@pytest.mark.parametrize("method", ["grpo", "dapo", "rloo", "gspo", "cispo"])
def test_other_methods_and_a_reference_run(tmp_path, tiny_model, method):
    config = settings(method=method, steps=2, updates=2, kl=0.1, clip_high=0.28)
    lines = run(tmp_path, tiny_model, method, config).metrics()
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[1]["kl"] > 0


def test_rewards_that_never_differ_stop_the_run(tmp_path, tiny_model):
    class Same:
        def score(self, prompt, completions, sample):
            return [Score(1.0) for _ in completions]

    config = settings(stop_after_flat_steps=2)
    with pytest.raises(DataError, match="in 2 steps in a row no prompt had answers"):
        run(tmp_path, tiny_model, "flat", config, Same())
    lines = Work(tmp_path / "flat").metrics()
    assert [line["flat_groups"] for line in lines] == [1, 1]


def test_prompts_without_room_are_left_out_and_counted(tmp_path, tiny_model):
    """The engine has room for 32 tokens; the run goes on with the other prompts."""
    long = [replace(task, prompt=(2, *range(20, 60))) for task in tasks()[:2]]
    config = settings(held_out=2, prompts_per_step=4, refill=0, steps=3)
    work = run(tmp_path, tiny_model, "long", config, given=[*tasks()[2:], *long])
    lines = [line for line in work.metrics() if "reward" in line]
    counts = [sum(line.get("failures", {}).values()) for line in lines]
    assert sum(counts) == 4 and all(line["learned_tokens"] for line in lines)  # 12 of 2 passes
    (reason,) = {reason for line in lines for reason in line.get("failures", {})}
    assert reason == "the prompt has 41 tokens; the engine's context is 32"
    stored = load_rollouts(work.path / "rollouts", 0)
    assert stored.groups == 4 - counts[0] and stored.failures == lines[0].get("failures", {})
    with pytest.raises(DataError, match="no prompt of step 0 could be answered: the prompt has"):
        run(tmp_path, tiny_model, "none", config, given=long)


def test_unscored_answers_teach_nothing(tmp_path, tiny_model):
    class Half(Even):
        def score(self, prompt, completions, sample):
            found = super().score(prompt, completions, sample)
            return [Score(None), *found[1:]]

    work = run(tmp_path, tiny_model, "half", settings(steps=2), Half())
    stored = load_rollouts(work.path / "rollouts", 0)
    assert [a.advantage for a in stored.answers if a.score.value is None] == [0.0, 0.0]
    assert all(line["unscored"] == 0.25 for line in work.metrics())


def test_rollouts_come_back_as_they_were(tmp_path):
    rollouts = Rollouts(tuple(answers()), 2, 1, 7, {"generate": 1.5})
    save_rollouts(tmp_path, 3, rollouts)
    assert load_rollouts(tmp_path, 3) == rollouts and load_rollouts(tmp_path, 4) is None
