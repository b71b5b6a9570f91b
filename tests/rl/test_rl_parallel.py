"""Two processes over gloo answer and learn as one does, and go on from each other's checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from singalaut.model.tensors import TensorReader
from singalaut.rl.rollouts import load_rollouts

REWARD = '''
"""Of a reward that a tiny model can have by chance."""

def short(response, prompt, sample):
    return 1 / (1 + len(set(response)))
'''
RECIPE = """
name = "together"
seed = 5
output = "{output}"
[model]
base = "{model}"
[[stage]]
kind = "rl"
prompts = [{{ path = "prompts.jsonl" }}]
reward = {{ parts = [{{ kind = "function", function = "short_answers:short", seconds = 60 }}] }}
steps = {steps}
prompts_per_step = 3
samples = 3
max_tokens = 8
truncated = "keep"
held_out = 3
evaluate_every = 3
save_every = 2
learning_rate = 1e-4
refill = 1
replay = {{ data = [{{ path = "talk.jsonl" }}], rows = 3 }}
{more}
"""
AHEAD = """overlap = true
sharded = true
kl = 0.1
updates = 2
adapter = { rank = 4 }
difficulty = { samples = 2, passing = 0.2, min = 0.5, max = 1, order = "easy_first" }
"""
CLOSE = 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    (folder / "short_answers.py").write_text(REWARD)
    with (folder / "talk.jsonl").open("w") as out:
        for number in range(9):
            turns = [("user", f"{number}?"), ("assistant", "yes" * (1 + number))]
            rows = [{"role": role, "content": text} for role, text in turns]
            out.write(json.dumps({"messages": rows}) + "\n")
    with (folder / "prompts.jsonl").open("w") as out:
        for number in range(12):
            row = {
                "prompt": f"{number}?" * (1 + number % 3),
                "language": "id" if number % 2 else "en",
            }
            out.write(json.dumps(row) + "\n")
    return folder


def start(folder, model, processes, output, settings="", steps=6):
    recipe = folder / f"{output}.toml"
    recipe.write_text(RECIPE.format(output=output, model=model, steps=steps, more=settings))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    env = os.environ | {"SINGALAUT_HOME": str(folder / output), "OMP_NUM_THREADS": "1"}
    command += ["-m", "singalaut", "run", str(recipe)]
    return subprocess.Popen(
        command, stdout=PIPE, stderr=PIPE, text=True, env=env, cwd=folder, start_new_session=True
    )


def run(folder, model, processes, output, **more):
    job = start(folder, model, processes, output, **more)
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors[-3000:]
    return result(next(folder.glob(f"{output}/together/rl-*")))


def result(made: Path):
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    steps = len([line for line in lines if "next_place" in line])
    with TensorReader.open(made / "model") as reader:
        weights = {name: reader.read(name).clone() for name in reader}
    return lines, weights, [load_rollouts(made / "rollouts", step) for step in range(steps)]


def same(one, other, close=CLOSE):
    """Figures, log-probabilities, rewards and weights are close, tokens as they are."""
    exact = ("step", "tokens", "learned_tokens", "next_place", "mean_length", "flat_groups")
    near = (
        "loss",
        "gradient_norm",
        "entropy",
        "reward",
        "held_out_reward",
        "pass_at_1",
        "replay_loss",
    )
    assert len(one[0]) == len(other[0])
    for a, b in zip(one[0], other[0], strict=True):
        assert a.keys() == b.keys()
        assert {key: a.get(key) for key in exact} == {key: b.get(key) for key in exact}
        for key in near:
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=close, abs=close), key
    for first, second in zip(one[2], other[2], strict=True):
        for a, b in zip(first.answers, second.answers, strict=True):
            assert (a.place, a.prompt_id, a.tokens) == (b.place, b.prompt_id, b.tokens)
            assert a.logprobs == pytest.approx(b.logprobs, rel=close, abs=2 * close)
            assert (a.reward, a.advantage) == pytest.approx((b.reward, b.advantage), abs=close)
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=close, atol=close)


def descendants(process: int) -> list[int]:
    """Processes that it has started, and theirs; `torchrun` gives each a session of its own."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


@pytest.fixture(scope="module")
def alone(folder, tiny_model):
    return run(folder, tiny_model, 1, "alone")


@pytest.mark.parametrize("name", ["whole", "sharded", "ahead"])
def test_two_processes_answer_and_learn_as_one(folder, tiny_model, alone, name):
    settings = {"sharded": "sharded = true", "whole": ""}.get(name, AHEAD)
    steps = 3 if name == "ahead" else 6
    one = alone
    if name == "ahead":
        one = run(folder, tiny_model, 1, "one-ahead", settings=AHEAD, steps=steps)
    two = run(folder, tiny_model, 2, f"two-{name}", settings=settings, steps=steps)
    same(one, two)
    with pytest.raises(AssertionError):
        same(one, (*two[:1], {n: w * 1.00001 for n, w in two[1].items()}, two[2]))


def test_a_job_that_was_killed_goes_on_with_fewer_processes(folder, tiny_model, alone):
    job = start(folder, tiny_model, 2, "killed")
    while not list(folder.glob("killed/together/*.partial/.work/step-*")):
        assert job.poll() is None
        time.sleep(0.01)
    for process in (job.pid, *descendants(job.pid)):
        os.kill(process, signal.SIGKILL)
    job.communicate(timeout=60)
    assert list(folder.glob("killed/together/*.partial/.work/step-*"))
    same(alone, run(folder, tiny_model, 1, "killed"), 10 * CLOSE)
