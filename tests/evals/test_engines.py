"""The command `eval` with several engines, and with a model that two processes hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def evaluate(folder, model, *flags):
    environment = os.environ | {"SINGALAUT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "singalaut", "eval", "--model", str(model), "--limit", "3"]
    command += ["--task", "sentiment", "--language", "id", "--language", "th", "--temperature", "0"]
    command += ["--output", str(folder / "runs"), "--batch-size", "2", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = (folder / "runs").glob("**/evaluate-*")
    results = json.loads((made / "results" / "results.json").read_text())
    manifest = json.loads((made / "manifest.json").read_text())
    return results, manifest, done.stderr


@pytest.mark.parametrize("flag", ["--replicas", "--tensor-parallel"])
def test_results_are_those_of_one_engine(flag, tmp_path, tiny_model):
    one, its_manifest, _ = evaluate(tmp_path / "one", tiny_model)
    two, manifest, said = evaluate(tmp_path / "two", tiny_model, flag, "2")
    assert two == one
    assert manifest["key"] == its_manifest["key"]
    [timing] = manifest["timing"].values()
    assert timing["asked"] > 5
    assert (timing["sampler"].get("engines") == 2) == (flag == "--replicas")
    assert said.count("answer/s") == 1  # one line of progress
