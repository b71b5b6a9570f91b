"""However processes share a model, they train it as one does.

Losses to 1e-5, weights to a tolerance that is small beside steps of 1e-2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import together
import torch
from test_sft_vision import png, row, text

from singalaut.errors import MachineError, RecipeError
from singalaut.model.config import SIZES
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import load_model, save_model
from singalaut.model.tensors import TensorReader
from singalaut.train.optim import adamw
from singalaut.train.parallel import World, join_world
from singalaut.train.tensor_parallel import check_split

MUON = {"optimizer": "muon", "ema": 0.9, "weight_decay": 0.1}
ADAPTER = {"adapter": {"rank": 4}}
TWO = {
    "neighbours": {"tensor_parallel": 2},
    "neighbours with an adapter": {"tensor_parallel": 2, **ADAPTER},
    "neighbours with one key head": {"tensor_parallel": 2, "base": "one-key"},
    "replicas": {"replicas": 2},
    "replicas, muon": {"replicas": 2, **MUON},
    "muon": MUON,
    "pictures": {"base": "seeing", "rows": "seen.jsonl", "batch_size": 3},
}
FOUR = {
    "replicas of everything": {"replicas": 4},
    "replicas of parts": {"replicas": 2},
    "parts of neighbours": {"tensor_parallel": 2},
    "replicas of neighbours, muon": {"tensor_parallel": 2, "replicas": 2, **MUON},
    "parts of neighbours, muon": {"tensor_parallel": 2, **MUON},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, tiny_tokenizer, seeing_model):
    folder = tmp_path_factory.mktemp("layouts")
    config = replace(tiny_config, num_kv_heads=1)
    save_model(initialise(Gemma3(config), seed=1), folder / "one-key", torch.float32)
    tiny_tokenizer.save(folder / "one-key")
    (folder / "seeing").symlink_to(seeing_model)
    seen = [{"type": "image", "path": "a.png"}]
    (folder / "seen.jsonl").write_text(
        "".join(
            row(text(f"what is {number}?"), *seen * (number % 2), answer="a man")
            for number in range(9)
        )
    )
    (folder / "a.png").write_bytes(png(0))
    with (folder / "rows.jsonl").open("w") as out:
        for number in range(24):
            question = f"{number} plus {number}?" * (1 + number % 3)
            messages = [("user", question), ("assistant", f"It is {2 * number}.")]
            turns = [{"role": role, "content": text} for role, text in messages]
            language = "en" if number % 2 else "id"
            out.write(json.dumps({"messages": turns, "language": language}) + "\n")
    return folder


@pytest.fixture(scope="module")
def alone(folder, tiny_model):
    """What one process makes of settings, whatever they say of several."""
    known = {}

    def once(settings):
        own = {k: v for k, v in settings.items() if k not in ("replicas", "tensor_parallel")}
        name = f"alone-{sorted(own)}"
        if name not in known:
            together.train(folder, tiny_model, name, own)
            known[name] = result(folder / name)
        return known[name]

    return once


def job(folder, model, processes, cases):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--standalone", str(Path(together.__file__)), str(folder), str(model)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "SINGALAUT_HOME": str(folder / "home")}
    done = subprocess.run(
        [*command, json.dumps(cases)], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def result(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with TensorReader.open(folder / "model") as reader:
        return lines, {name: reader.read(name).clone() for name in reader}


def check_same(one, other, tolerance=5e-4):
    for a, b in zip(one[0], other[0], strict=True):
        for key in ("loss", "gradient_norm", "validation_loss", "average_validation_loss"):
            assert (key in a) == (key in b)
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-5), key
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def two(folder, tiny_model):
    job(folder, tiny_model, 2, TWO)


@pytest.fixture(scope="module")
def four(folder, tiny_model):
    job(folder, tiny_model, 4, {f"four {name}": case for name, case in FOUR.items()})


@pytest.mark.parametrize("name", TWO)
def test_two_processes(folder, two, alone, name):
    check_same(alone(TWO[name]), result(folder / name))


@pytest.mark.parametrize("name", FOUR)
def test_four_processes(folder, four, alone, name):
    check_same(alone(FOUR[name]), result(folder / f"four {name}"))


def test_another_run_is_not_the_same(folder, tiny_model, alone):
    together.train(folder, tiny_model, "wrong", {"learning_rate": 1.01e-2})
    with pytest.raises(AssertionError):
        check_same(alone({}), result(folder / "wrong"))


def test_settings_that_need_more_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(MachineError, match=r"the job has 4 processes; .* need a multiple of 6"):
        join_world(replicas=3, tensor=2)


@pytest.mark.parametrize(("size", "most"), [("270m", 4), ("1b", 4), ("4b", 4), ("27b", 16)])
def test_a_model_is_cut_where_its_heads_are(size, most):
    check_split(SIZES[size], most)
    with pytest.raises(RecipeError, match="`tensor_parallel = 3` does not divide") as refused:
        check_split(SIZES[size], 3)
    assert "can be cut in 1, 2, 4" in str(refused.value)


def test_blocks_of_8_bits_are_not_cut(tiny_model):
    world = World(size=2, tensor=2)
    with pytest.raises(RecipeError, match="which is no multiple of the 128 that share a scale"):
        model = load_model(tiny_model).requires_grad_(True)
        adamw(model, 1e-3, 0.0, moments="int8", world=world)
