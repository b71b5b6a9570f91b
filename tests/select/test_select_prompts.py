"""The stage that chooses prompts: it finds those of the target's kind, and goes on where it was."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from singalaut.artifact import Work
from singalaut.contracts import Completion, Message, Sample, Score, Usage
from singalaut.errors import DataError, RecipeError
from singalaut.generate.engine import engine_over
from singalaut.model.hf import load_model
from singalaut.model.lora import add_adapter
from singalaut.rewards.samples import read_samples
from singalaut.rl.ask import Task
from singalaut.rl.config import RlConfig
from singalaut.rl.policy import answer_logprobs
from singalaut.rl.rollouts import Rollout, load_rollouts
from singalaut.select import features, prompts
from singalaut.select.config import SelectPromptsConfig
from singalaut.select.prompts import prompt_gradients, prompt_losses, run_select_prompts
from singalaut.text.tokenizer import Tokenizer

REWARD = {"parts": [{"kind": "form"}]}


class Kinds:
    """A reward for even token ids where the language is `en`, for odd ones where it is `th`, and
    the same for all answers where it is `my`."""

    def score(self, prompt, completions, sample):
        found = []
        for completion in completions:
            even = np.mean([token % 2 == 0 for token in completion.token_ids])
            found.append({"en": even, "th": 1 - even, "my": 0.5}[sample.language])
        return [Score(float(value), {"kind": float(value)}) for value in found]


def task(number, language):
    sample = Sample([Message("user", f"{number}")], f"p{number}", language, "made", reference="1")
    return Task(sample, (2, 10 + number % 40, 20, 30))


def pool(count=24):
    return [task(n, "en" if n % 3 == 0 else "th" if n % 3 == 1 else "my") for n in range(count)]


class Planned:
    """Answers that are either right or wrong, in tokens of the prompt's own kind."""

    WORDS: ClassVar = {"en": ((7, 8), (9, 11)), "th": ((31, 32), (33, 34)), "my": ((7,), (7,))}

    def sample(self, requests):
        for request in requests:
            number = request.prompt[1]
            kind = ("en", "th", "my")[(number - 10) % 40 % 3]
            for index in range(request.sampling.n):
                words = self.WORDS[kind][(index + number) % 2] * 2
                yield Completion(
                    request.id, index, words, "", "stop", Usage(4, 4), (-1.0,) * len(words)
                )

    def weights_changed(self):
        pass

    def sleep(self):
        pass


class Right:
    """The reward of such answers."""

    def score(self, prompt, completions, sample):
        return [Score(float(c.token_ids[0] in (7, 31)), {}) for c in completions]


def run(
    tmp_path, model, name="work", targets=("en",), reward=None, tasks=None, sampler=None, **settings
):
    given = {
        "prompts": [{"generate": 4}],
        "reward": REWARD,
        "targets": [{"name": kind, "prompts": {"generate": 1}} for kind in targets],
        "count": 4,
        "samples": 4,
        "max_tokens": 6,
        "truncated": "keep",
        "warmup_steps": 4,
        "learning_rate": 1e-3,
        "dimensions": 512,
        "batch_size": 4,
    }
    config = SelectPromptsConfig.model_validate(given | settings)
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    work = Work(folder)
    run_select_prompts(
        config,
        model=model,
        end_of_turn=Tokenizer.load(model).end_of_turn_id,
        pool=pool() if tasks is None else tasks,
        targets=[[t for t in pool(39)[24:] if t.sample.language == kind] for kind in targets],
        engine_over=lambda network: sampler or engine_over(network, model, context_tokens=32),
        reward=reward or Kinds(),
        work=work,
        seed=1,
    )
    return work


def lines(work, name):
    return [json.loads(x) for x in (work.path / name).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["en", "th"])
def test_influence_finds_the_prompts_of_the_target(kind, tmp_path, tiny_model):
    work = run(tmp_path, tiny_model, targets=[kind], sampler=Planned(), reward=Right())
    rows = lines(work, "report/selection.jsonl")
    assert [row["language"] for row in rows] == [kind] * 4
    assert rows == sorted(rows, key=lambda row: -row["score"]) and rows[0]["target"] == kind
    assert all(len(set(row["rewards"])) > 1 for row in rows)
    report = json.loads((work.path / "report" / "selection.json").read_bytes())
    assert report["targets"][kind]["mean_in_choice"] > report["targets"][kind]["mean_in_pool"]
    assert report["pool"] == 24 and report["flat"] == 8 and report["chosen"] == 4
    assert "chosen by influence" in (work.path / "report" / "selection.html").read_text()
    assert work.facts["selection"]["flat"] == report["flat"]


def test_two_targets_take_turns(tmp_path, tiny_model):
    work = run(tmp_path, tiny_model, targets=["en", "th"], sampler=Planned(), reward=Right())
    found = [row["language"] for row in lines(work, "report/selection.jsonl")]
    assert sorted(found) == ["en", "en", "th", "th"]


@pytest.mark.parametrize("method", ["spread", "gradient-norm"])
def test_prompts_without_a_difference_are_not_chosen(method, tmp_path, tiny_model):
    work = run(tmp_path, tiny_model, targets=(), method=method, count=24)
    rows = lines(work, "report/selection.jsonl")
    assert {row["language"] for row in rows} == {"en", "th"}
    if method == "spread":
        expected = [float(np.std(row["rewards"])) for row in rows]
        assert [row["score"] for row in rows] == pytest.approx(expected)


def test_the_chosen_are_read_as_prompts(tmp_path, tiny_model):
    constraint = {"instruction_id": "punctuation:no_comma", "parameters": {}}
    tasks = pool()
    tasks = [Task(replace(t.sample, constraints=[constraint]), t.prompt) for t in tasks]
    work = run(tmp_path, tiny_model, targets=(), method="random", count=5, tasks=tasks)
    found = read_samples(work.path / "data" / "prompts.jsonl").samples
    known = {t.sample.id: t.sample for t in tasks}
    assert len(found) == 5
    for sample in found:
        assert sample == known[sample.id]


def test_gradients_are_those_of_one_prompt_after_the_other(tmp_path, tiny_model):
    work = run(tmp_path, tiny_model)
    answers = load_rollouts(work.path / "answers" / "0", 0).answers
    groups = [list(answers[n : n + 4]) for n in range(0, 24, 4)]
    groups[1] = groups[1][:3]  # as many answers as came
    network = load_model(tiny_model, torch.float32, "cpu", vision=False).train()
    add_adapter(network, 4, 8.0, ("query", "down"), 3)
    for name, parameter in network.named_parameters():
        if name.endswith(".b"):  # not zero, so that both factors have a gradient
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    settings = {"prompts": [{"generate": 1}], "reward": REWARD, "steps": 1, "truncated": "keep"}
    learner = RlConfig.model_validate(settings | {"samples": 4, "max_tokens": 6})
    found = prompt_gradients(network, groups, learner)
    pieces = dict(found.pieces)
    assert found.losses.shape == (6,) and pieces
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    for number, group in enumerate(groups):
        loss = prompt_losses(network, [group], learner)[0]
        alone = torch.autograd.grad(loss, list(parameters.values()))
        scale = max(gradient.abs().max() for gradient in alone)
        for name, gradient in zip(parameters, alone, strict=True):
            there = pieces[name][number]
            assert (there - gradient.flatten()).abs().max() <= 1e-5 * scale, name
    doubled = [replace(answer, advantage=2 * answer.advantage) for answer in groups[0]]
    other = dict(prompt_gradients(network, [doubled, *groups[1:]], learner).pieces)
    assert not all(torch.allclose(other[n][0], pieces[n][0]) for n in pieces)  # it can fail


def test_the_gradient_is_that_of_the_formula(tiny_model):
    """∇ −(1/GT) Σ A Σ_t min(π/π₀, 2) log π, written down for two answers."""
    network = load_model(tiny_model, torch.float32, "cpu", vision=False).train()
    add_adapter(network, 4, 8.0, ("query",), 3)

    def answer(tokens, logprobs, worth):
        return Rollout(
            "p", 0, "en", "s", (2, 5), tokens, logprobs, "", "stop", Score(worth, {}), worth
        )

    group = [answer((7, 8), (-1.0, -9.0), 0.5), answer((9,), (-5.0,), -0.5)]
    settings = {"prompts": [{"generate": 1}], "reward": REWARD, "steps": 1}
    learner = RlConfig.model_validate(settings | {"samples": 2, "max_tokens": 4})
    parameters = [p for p in network.parameters() if p.requires_grad]
    ours = torch.autograd.grad(prompt_losses(network, [group], learner)[0], parameters)
    total = 0.0
    for each in group:
        own = answer_logprobs(network, [each], 1.0)[0][0]
        weight = (own.detach() - torch.tensor(each.logprobs)).exp().clamp(max=2.0)
        total = total - each.advantage * (weight * own).sum() / (2 * 4)
    theirs = torch.autograd.grad(total, parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dies_at", [2, 5, 9, 14])
def test_a_killed_run_goes_on(dies_at, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 8)
    monkeypatch.setattr(prompts, "BLOCK", 8)
    whole = run(tmp_path, tiny_model, name="whole")
    calls = []

    def counted(module, name):
        real = getattr(module, name)

        def dies(*args):
            calls.append(name)
            if len(calls) == dies_at:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(module, name, dies)

    counted(prompts, "groups_of")
    counted(features, "project")
    counted(prompts, "policy_step")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny_model, name="killed")
    resumed = run(tmp_path, tiny_model, name="killed")
    assert calls.count("groups_of") == 4 + (dies_at <= 4)  # no block is answered twice
    for name in ("data/prompts.jsonl", "report/selection.jsonl"):
        assert lines(resumed, name) == lines(whole, name)
    assert resumed.metrics() == whole.metrics()


def test_quotas_by_language(tmp_path, tiny_model, caplog):
    settings = {"quota_by": "language", "quotas": {"th": 0.75}}
    work = run(tmp_path, tiny_model, targets=(), method="spread", **settings)
    assert [row["language"] for row in lines(work, "report/selection.jsonl")].count("th") == 3
    work = run(
        tmp_path, tiny_model, "flat", (), method="spread", **settings | {"quotas": {"my": 0.5}}
    )
    assert "quota of `my`: 0 of 2 rows are there" in caplog.text
    assert len(lines(work, "data/prompts.jsonl")) == 4
    with pytest.raises(RecipeError, match="no row of the pool is of `vi`"):
        run(tmp_path, tiny_model, "other", (), method="spread", **settings | {"quotas": {"vi": 1}})


class Same(Kinds):
    """Where the language is `my`, a reward that has no exact mean."""

    def score(self, prompt, completions, sample):
        same = [Score(0.7, {}) for _ in completions]
        return same if sample.language == "my" else super().score(prompt, completions, sample)


def test_answers_that_all_have_one_reward_teach_nothing(tmp_path, tiny_model, caplog):
    settings = {"samples": 6, "reward": Same(), "method": "gradient-norm", "targets": ()}
    work = run(tmp_path, tiny_model, "some", count=24, **settings)
    assert {row["language"] for row in lines(work, "report/selection.jsonl")} == {"en", "th"}
    report = json.loads((work.path / "report" / "selection.json").read_bytes())
    assert report["flat"] >= 8 and report["languages"]["my"] == {"pool": 8, "chosen": 0}
    assert "24 were wanted" in caplog.text
    with pytest.raises(DataError, match="nothing can be learned from `pool`: the answers to 6"):
        run(tmp_path, tiny_model, tasks=[task(n, "my") for n in range(6)], **settings)
    with pytest.raises(DataError, match="0 prompts have one reward each, those to 3 were cut off"):
        all_cut = [task(n, "en") for n in range(3)]
        run(tmp_path, tiny_model, "cut", tasks=all_cut, **settings | {"truncated": "mask"})


def test_prompts_are_read_as_they_were_written(tmp_path, tiny_model):
    odd = [
        replace(t.sample, messages=[Message("user", "a\u2028b\x85 ก")], constraints=[])
        for t in pool(6)
    ]
    tasks = [Task(sample, t.prompt) for sample, t in zip(odd, pool(6), strict=True)]
    work = run(tmp_path, tiny_model, targets=(), method="random", count=6, tasks=tasks)
    assert read_samples(work.path / "data" / "prompts.jsonl").samples == odd


def test_failed_prompts_are_left_out(tmp_path, tiny_model, caplog):
    long = Task(task(1, "en").sample, tuple(range(2, 60)))  # longer than the engine's context
    with caplog.at_level("INFO", "singalaut"):
        work = run(tmp_path, tiny_model, tasks=[*pool(), long], method="spread", targets=())
    assert "pool: 1 prompts left out" in caplog.text and work.facts["selection"]["failed"] == 1
    with pytest.raises(DataError, match="no prompt of `pool` could be answered"):
        run(tmp_path, tiny_model, "long", tasks=[long], method="spread", targets=())
    assert len(lines(work, "data/prompts.jsonl")) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": None}, "either `share` or `count`"),
        ({"targets": []}, "`targets` with the method"),
        ({"targets": [{"name": "a", "prompts": {"stage": "b"}}]}, "targets that are files"),
        ({"quotas": {"en": 1.0}}, "`quota_by` with `quotas`"),
        ({"prompts": [{"generate": 1, "stage": "a"}]}, "one of `path`, `stage` and `generate`"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    given = {
        "prompts": [{"generate": 4}],
        "reward": REWARD,
        "count": 2,
        "targets": [{"name": "a", "prompts": {"generate": 1}}],
    }
    with pytest.raises(ValueError, match=message):
        SelectPromptsConfig.model_validate(given | settings)
