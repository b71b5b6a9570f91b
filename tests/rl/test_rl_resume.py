"""Runs that are killed while answers are being written end as if they had not been."""

from __future__ import annotations

import json

import pytest
import torch
from rl_cases import plain, run, settings, weights

from singalaut.contracts import Completion, Score, Usage
from singalaut.errors import DataError
from singalaut.rl.kept import Kept
from singalaut.rl.rollouts import load_rollouts


class Killed(BaseException):
    """What no part of the run may catch."""


class Dying:
    """An engine that gives so many answers, and counts how many were asked of it."""

    def __init__(self, engine, answers):
        self.engine, self.left, self.asked = engine, answers, 0

    def sample(self, requests):
        requests = list(requests)
        for request in requests:
            self.asked += request.sampling.n if request.only is None else len(request.only)
        for completion in self.engine.sample(requests):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield completion

    def __getattr__(self, name):
        return getattr(self.engine, name)


def killed_after(tmp_path, model, config, answers, name="killed"):
    """Run, killed after so many answers, then on to the end; the engine of the second time."""
    engines = []

    def wrap(left):
        return lambda engine: engines.append(Dying(engine, left)) or engines[-1]

    with pytest.raises(Killed):
        run(tmp_path, model, name, config, wrap=wrap(answers))
    work = run(tmp_path, model, name, config, wrap=wrap(-1))
    return work, engines[-1]


def same(found, wanted):
    assert plain(found) == plain(wanted)
    one, other = weights(found), weights(wanted)
    assert all(torch.equal(one[name], other[name]) for name in other)
    for file in (wanted.path / "rollouts").iterdir():
        step = int(file.stem[5:])
        stored = [load_rollouts(work.path / "rollouts", step) for work in (found, wanted)]
        assert stored[0].answers == stored[1].answers


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("answers", [3, 11, 21])
def test_what_was_answered_is_kept(tmp_path, tiny_model, invariant, answers):
    """Steps have 8 answers; prompts whose answers do not differ are not replaced."""
    engine = {"batch_invariant": invariant, "batch_size": 3}
    config = settings(engine=engine, refill=0, save_every=1, steps=3)
    whole = run(tmp_path, tiny_model, "whole", config)
    resumed, second = killed_after(tmp_path, tiny_model, config, answers)
    same(resumed, whole)
    assert second.asked == 24 - (answers if invariant else answers // 8 * 8)


def test_calls_of_a_step_are_kept_one_by_one(tmp_path, tiny_model):
    """With refills, the first call's answers are there although the second was cut short."""
    config = settings(refill=3, steps=2, samples=2, max_tokens=2, save_every=1)
    whole = run(tmp_path, tiny_model, "whole", config)
    drawn = [line["next_place"] for line in whole.metrics()]
    assert drawn[0] > 2  # there was a refill
    resumed, second = killed_after(tmp_path, tiny_model, config, 5)
    same(resumed, whole)
    assert second.asked == 2 * drawn[-1] - 4


def test_a_line_cut_short_and_answers_of_other_steps_are_left_out(tmp_path):
    answers = [Completion("7", n, (5, n), "x", "stop", Usage(3, 2), (-0.1, -1 / 3)) for n in (0, 1)]
    with Kept(tmp_path, 2) as kept:
        for answer in answers:
            kept.add(7, answer)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with Kept(tmp_path, 2) as kept:
        assert kept.found == {(7, 0): answers[0]}
        kept.add(7, answers[1])
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == [0, 1]
    with Kept(tmp_path, 2, rank=1) as kept:
        assert kept.found == {(7, 0): answers[0], (7, 1): answers[1]}
    with Kept(tmp_path, 3) as kept:
        assert not kept.found
    assert [path.name for path in tmp_path.iterdir()] == ["answers-000003-0.jsonl"]


def test_flat_steps_are_counted_across_a_resume(tmp_path, tiny_model):
    class Same:
        def score(self, prompt, completions, sample):
            return [Score(1.0) for _ in completions]

    config = settings(stop_after_flat_steps=3, refill=0, save_every=1)
    with pytest.raises(Killed):
        run(tmp_path, tiny_model, "flat", config, Same(), lambda engine: Dying(engine, 18))
    with pytest.raises(DataError, match="in 3 steps in a row"):
        run(tmp_path, tiny_model, "flat", config, Same())


def test_an_overlapped_run_is_resumed_with_the_answers_of_older_weights(tmp_path, tiny_model):
    config = settings(overlap=True, refill=0, steps=6, save_every=1)
    whole = run(tmp_path, tiny_model, "whole", config)
    for answers in (12, 17, 27):
        resumed, _ = killed_after(tmp_path, tiny_model, config, answers, f"killed-{answers}")
        same(resumed, whole)
