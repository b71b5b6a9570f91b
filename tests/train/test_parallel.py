"""Several processes over gloo train as one does, and go on from one another's checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from subprocess import PIPE

import psutil
import pytest
import torch

from singalaut.model.tensors import TensorReader

RECIPE = """
name = "together"
seed = 5
[model]
base = "{model}"
[[stage]]
kind = "sft"
data = [{{ path = "rows.jsonl" }}]
steps = {steps}
batch_size = 6
max_tokens = 256
micro_tokens = 64
learning_rate = 1e-2
save_every = 2
held_out = 2
validate_every = 3
watch = {{ samples = ["2 plus 2?"], sample_every = 3, sample_tokens = 4 }}
{more}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    with (folder / "rows.jsonl").open("w") as out:
        for number in range(24):
            question = f"{number} plus {number}?" * (1 + number % 3)
            messages = [("user", question), ("assistant", f"It is {2 * number}.")]
            turns = [{"role": role, "content": text} for role, text in messages]
            language = "en" if number % 2 else "id"
            out.write(json.dumps({"messages": turns, "language": language}) + "\n")
    return folder


def start(folder, model, processes, output, *, steps=5, settings=""):
    recipe = folder / f"{output}.toml"
    text = RECIPE.format(model=model, steps=steps, more=settings)
    recipe.write_text(f'output = "{output}"\n' + text)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    env = os.environ | {"SINGALAUT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command += ["-m", "singalaut", "run", str(recipe)]
    return subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=env)


def run(folder, model, processes, output, **more):
    job = start(folder, model, processes, output, **more)
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors[-3000:]
    (made,) = folder.glob(f"{output}/together/sft-*")
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    with TensorReader.open(made / "model") as reader:
        return lines, {name: reader.read(name).clone() for name in reader}


def same(one, other, tolerance):
    """Losses to 1e-5; weights to `tolerance`, of steps of 1e-2 each."""
    for a, b in zip(one[0], other[0], strict=True):
        for key in ("loss", "gradient_norm", "validation_loss", "average_validation_loss"):
            assert (key in a) == (key in b)
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-5, abs=tolerance / 10)
        for key in ("loss_by_language", "validation_loss_by_language"):
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-5, abs=tolerance / 10)
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def alone(folder, tiny_model):
    """What one process makes with some settings, each computed once."""
    known = {}

    def once(**settings):
        key = tuple(settings.items())
        if key not in known:
            known[key] = run(folder, tiny_model, 1, f"one-{len(known)}", **settings)
        return known[key]

    return once


@pytest.mark.parametrize("settings", ["", "adapter = { rank = 4 }"], ids=["all", "adapter"])
def test_two_processes_train_as_one(folder, tiny_model, alone, settings):
    kind = "adapter" if settings else "all"
    one = alone(settings=settings)
    two = run(folder, tiny_model, 2, f"two-{kind}", settings=settings)
    assert {"en", "id"} == set(one[0][1]["loss_by_language"])
    assert len([line for line in one[0] if "validation_loss" in line]) == 3
    same(one, two, 2e-4)
    (answers,) = folder.glob(f"two-{kind}/together/sft-*/samples.jsonl")
    together = answers.read_text()
    assert [json.loads(line)["step"] for line in together.splitlines()] == [0, 3, 5]
    assert together in [f.read_text() for f in folder.glob("one-*/together/sft-*/samples.jsonl")]
    with pytest.raises(AssertionError):
        same(one, ([dict(line, loss=0.0) for line in two[0]], two[1]), 2e-4)


def test_a_job_one_of_whose_processes_is_killed_says_so_and_goes_on(folder, tiny_model, alone):
    """Two neighbours' checkpoint is then read by one process, and written as a directory."""
    more = "tensor_parallel = 2"
    job = start(folder, tiny_model, 2, "killed", steps=40, settings=more)
    kept = "killed/together/*.partial/.work/step-*[0-9]"
    while not list(folder.glob(kept)):
        assert job.poll() is None
        time.sleep(0.02)
    processes = psutil.Process(job.pid).children(recursive=True)
    (second,) = [p for p in processes if p.environ().get("RANK") == "1"]
    second.kill()
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "process 0 of 2: error: another process of the job has ended" in errors
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in errors
    (stage,) = folder.glob("killed/together/*.partial")
    command = [sys.executable, "-m", "singalaut", "convert", str(stage), str(folder / "exported")]
    subprocess.run(command, check=True)
    with TensorReader.open(folder / "exported") as found, TensorReader.open(tiny_model) as base:
        for name in base:
            assert found.shape(name) == base.shape(name)
            assert not torch.equal(found.read(name), base.read(name)), name
    resumed = run(folder, tiny_model, 1, "killed", steps=40, settings=more.replace("2", "1"))
    same(alone(steps=40), resumed, 2e-3)


def test_a_job_that_was_asked_to_stop_goes_on_with_more_processes(folder, tiny_model, alone):
    whole = alone(steps=40)
    job = start(folder, tiny_model, 1, "stopped", steps=40)
    metrics = "stopped/together/sft-*/metrics.jsonl"
    while not any(len(file.read_text().splitlines()) > 3 for file in folder.glob(metrics)):
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 0 and "stopped as asked" in errors
    assert list(folder.glob("stopped/together/*.partial/.work/step-*"))
    resumed = run(folder, tiny_model, 2, "stopped", steps=40)
    assert len(resumed[0]) == len(whole[0])
    same(whole, resumed, 2e-3)
