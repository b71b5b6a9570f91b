"""How hard prompts are: counted by hand, kept by content, and what follows for the order."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rl_cases import Even, run, settings, tasks

from singalaut.contracts import Score
from singalaut.errors import DataError
from singalaut.generate.engine import engine_over
from singalaut.model.hf import load_model
from singalaut.rl.curriculum import Order, Rated, choose
from singalaut.rl.difficulty import Trial, try_all

DIFFICULTY = {"samples": 4, "passing": 0.5, "min": 0.2, "max": 0.8}


class Half(Even):
    """1 where at least half of the tokens are even."""

    def score(self, prompt, completions, sample):
        return [Score(float(s.value >= 0.5)) for s in super().score(prompt, completions, sample)]


class Asked:
    """An engine that counts what it is asked, and keeps what it answers."""

    def __init__(self, engine):
        self.engine, self.requests, self.answers = engine, 0, []

    def sample(self, requests):
        requests = list(requests)
        self.requests += len(requests)
        prompts = {request.id: request.prompt for request in requests}
        for completion in self.engine.sample(requests):
            self.answers.append((prompts[completion.request_id], completion))
            yield completion

    def __getattr__(self, name):
        return getattr(self.engine, name)


def trial(tmp_path, model, content="model and reward", **more):
    config = settings(difficulty=DIFFICULTY | more)
    sampler = Asked(engine_over(load_model(model), model, context_tokens=32))
    return Trial(config, config.difficulty, sampler, Half(), content, tmp_path / "store.sqlite")


def test_rates_are_those_of_the_answers_and_are_kept(tmp_path, tiny_model):
    first = trial(tmp_path, tiny_model)
    (tmp_path / "a").mkdir()
    rated, report = choose(first, tasks(), tmp_path / "a")
    lines = [json.loads(x) for x in (tmp_path / "a" / "difficulty.jsonl").read_text().splitlines()]
    for task, line in zip(tasks(), lines, strict=True):
        answers = [c.token_ids for prompt, c in first.sampler.answers if prompt == task.prompt]
        passed = [sum(t % 2 == 0 for t in ids) >= len(ids) / 2 for ids in answers]
        assert len(passed) == 4 and line["pass_rate"] == sum(passed) / 4
        assert line["kept"] == (0.2 <= line["pass_rate"] <= 0.8)
    assert [r.task.sample.id for r in rated] == [x["prompt_id"] for x in lines if x["kept"]]
    (english,) = report["by_language"]
    counts = [sum(line["pass_rate"] == n / 4 for line in lines) for n in range(5)]
    assert english["passes"] == counts and sum(counts) == english["prompts"] == 6
    assert report["kept"] + report["too_easy"] + report["too_hard"] == 6

    second = trial(tmp_path, tiny_model)  # another run: nothing is asked again
    (tmp_path / "b").mkdir()
    assert choose(second, tasks(), tmp_path / "b") == (rated, report)
    assert second.sampler.requests == 0
    changed = [replace(tasks()[0], prompt=(2, 99)), *tasks()[1:]]
    try_all(second, changed)
    assert second.sampler.requests == 1
    for other in (trial(tmp_path, tiny_model, "other"), trial(tmp_path, tiny_model, samples=3)):
        try_all(other, tasks())
        assert other.sampler.requests == 6


def test_what_cannot_be_scored_is_left_out_and_asked_again(tmp_path, tiny_model):
    class Never:
        def score(self, prompt, completions, sample):
            return [Score(None) for _ in completions]

    for _ in range(2):
        hopeless = replace(trial(tmp_path, tiny_model), reward=Never())
        with pytest.raises(DataError, match="no prompt has a pass rate between"):
            choose(hopeless, tasks(), tmp_path)
        assert hopeless.sampler.requests == 6
        lines = (tmp_path / "difficulty.jsonl").read_text().splitlines()
        assert {json.loads(line)["fate"] for line in lines} == {"unscored"}
        (tmp_path / "difficulty.jsonl").unlink()


def test_a_run_asks_what_is_neither_too_easy_nor_too_hard(tmp_path, tiny_model):
    engines = []

    def wrap(engine):
        engines.append(Asked(engine))
        return engines[-1]

    more = {"content": "x", "store": tmp_path / "store.sqlite"}
    config = settings(difficulty=DIFFICULTY, steps=3)
    work = run(tmp_path, tiny_model, "chosen", config, Half(), wrap, **more)
    lines = [json.loads(x) for x in (work.path / "difficulty.jsonl").read_text().splitlines()]
    kept = {line["prompt_id"] for line in lines if line["kept"]}
    assert 0 < len(kept) < 6 and work.facts["difficulty"]["kept"] == len(kept)
    prompts = {task.prompt: task.sample.id for task in tasks()}
    asked = {prompts[prompt] for prompt, _ in engines[0].answers[24:]}
    assert asked <= kept
    before = engines[0].requests
    again = run(tmp_path, tiny_model, "again", config, Half(), wrap, **more)
    assert engines[1].requests == before - 6
    assert again.facts["difficulty"] == work.facts["difficulty"]


def rated(rates):
    task = tasks(1)[0]
    made = [replace(task, prompt=(n,)) for n in range(len(rates))]
    return [Rated(task, rate) for task, rate in zip(made, rates, strict=True)]


@given(
    st.lists(st.sampled_from([n / 8 for n in range(9)]), min_size=1, max_size=30),
    st.sampled_from(["shuffled", "easy_first", "target"]),
    st.integers(1, 40),
    st.integers(0, 3),
)
def test_every_pass_has_every_prompt_once(rates, order, steps, seed):
    config = settings(difficulty=DIFFICULTY | {"order": order, "target": 0.6}, steps=steps)
    given_prompts = rated(rates)
    drawn = Order(given_prompts, seed, config)
    count = len(rates)
    chosen = [task.prompt[0] for _, task in drawn.draw(0, 2 * count)]
    stretch = count
    if order == "easy_first":
        stretch = min(count, steps * config.prompts_per_step)
    if stretch == count:
        assert sorted(chosen[:count]) == sorted(chosen[count:]) == list(range(count))
    for begin in range(0, 2 * count - stretch + 1, stretch):
        part = [rates[n] for n in chosen[begin : begin + stretch]]
        if order == "easy_first":
            assert part == sorted(part, reverse=True)
        if order == "target":
            assert part == sorted(part, key=lambda rate: abs(rate - 0.6))
    again = Order(given_prompts, seed, config)  # whatever is asked first
    assert [again.draw(n, 1)[0][1].prompt[0] for n in reversed(range(2 * count))] == chosen[::-1]


def test_a_filter_that_lets_nothing_through_is_refused():
    with pytest.raises(ValueError, match=r"`min` is 0.9, `max` only 0.1"):
        settings(difficulty={"min": 0.9, "max": 0.1})
