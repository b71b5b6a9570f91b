"""Merging from the command line: models, mergekit's files, the search, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib

import pytest
import torch
from safetensors.torch import load_file

from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import save_model
from singalaut.recipe.load import parse_recipe

MERGEKIT = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters: {density: [1, 0.4], weight: 0.8}
  - model: b
    parameters: {density: 0.5, weight: [{filter: mlp, value: 0.5}, {value: 0.25}]}
parameters: {normalize: false, int8_mask: true}
dtype: float32
"""


@pytest.fixture
def models(own_folder, tiny_config, tiny_tokenizer):
    for seed, name in enumerate(("base", "a", "b")):
        save_model(initialise(Gemma3(tiny_config), seed=seed), own_folder / name, torch.float32)
        tiny_tokenizer.save(own_folder / name)
    return own_folder


def made(folder, result):
    assert result.exit_code == 0, result.stderr
    return load_file(folder / result.stdout.strip() / "model" / "model.safetensors")


def test_a_mergekit_file_and_the_recipe_it_stands_for(cli, models):
    (models / "merge.yml").write_text(MERGEKIT)
    wanted = made(models, cli("merge", "merge.yml"))
    shown = cli("merge", "merge.yml", "--show").stdout
    recipe = parse_recipe(tomllib.loads(shown))
    assert recipe.model.sources() == {"base": "base", "a": "a", "b": "b"}
    (models / "shown.toml").write_text(shown.replace('name = "merge"', 'name = "mine"'))
    assert cli("run", "shown.toml").exit_code == 0
    (folder,) = (models / "runs" / "mine").glob("mine-*")
    found = load_file(folder / "model" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    assert (folder / "report.md").exists()


def test_methods_by_option(cli, models):
    a, b = (load_file(models / n / "model.safetensors") for n in "ab")
    found = made(models, cli("merge", "a:3", "b"))
    name = "model.norm.weight"
    torch.testing.assert_close(found[name], 0.75 * a[name] + 0.25 * b[name])
    slerp = made(models, cli("merge", "a", "b", "--method", "slerp", "--t", "0"))
    torch.testing.assert_close(slerp[name], a[name])
    ties = cli("merge", "a", "b", "--method", "ties", "--base", "base", "--density", "0.5")
    made(models, ties)
    assert ties.stdout != cli("merge", "a", "b").stdout


def test_the_search_runs_an_evaluation(models):
    words = ["merge", "search", "a", "b", "--trials", "1", "--language", "id"]
    words += ["--task", "sentiment", "--limit", "1", "--objective", "sentiment"]
    command = [sys.executable, "-m", "singalaut", *words]  # the engine in a process of its own
    done = subprocess.run(command, cwd=models, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures, folder = done.stdout.splitlines()
    assert "weight[0] 0.5" in figures and "sentiment" in figures
    found = json.loads((models / folder / "search.json").read_text())
    assert set(found["references"]) == {"a", "b"} and len(found["all"]) == 1
    assert (models / folder / "model" / "config.json").exists()
    assert (models / folder / "search.html").exists()
    manifest = json.loads((models / folder / "manifest.json").read_text())
    assert manifest["search"]["best"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["merge"], "no model is given"),
        (["merge", "search"], "no model is given"),
        (["merge", "a:1", "b:-1"], "the weights [1.0, -1.0] sum to zero"),
        (["merge", "a", "b", "--method", "tise"], "did you mean `ties`?"),
        (["merge", "a", "b", "--method", "ties"], "`ties` needs a base"),
        (["merge", "a", "b", "--method", "slerp"], "`slerp` needs the parameter `t`"),
        (["merge", "a", "b", "--density", "0.5"], "`linear` does not know the parameter `density`"),
        (["merge", "a", "b", "--tokenizer", "c"], "`tokenizer` names `c`"),
        (["merge", "absent.yml"], "the file cannot be read"),
        (["merge", "merge.yml", "--base", "a"], "`--base` cannot be used with a configuration"),
        (["merge", "a", "b", "--set", "merge.models.0.weight=x"], "needs a number, a list of"),
        (["merge", "search", "a", "--range", "weight=1"], "a range is NAME=LOW:HIGH"),
        (["merge", "search", "a", "--trials", "0"], "`merge_search.trials` needs 1 or more"),
    ],
)
def test_what_is_refused(cli, models, words, said):
    (models / "merge.yml").write_text(MERGEKIT)
    result = cli(*words)
    assert result.exit_code == 2 and said in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_damaged_models_are_refused(cli, models):
    shutil.copytree(models / "a", models / "window")
    file = models / "window" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sliding_window": 16}))
    result = cli("merge", "window", "b")
    assert result.exit_code == 2 and "`window` is 8 here and 16 in the first" in result.stderr
    (models / "b" / "model.safetensors").write_bytes(b"\x00" * 100)
    result = cli("merge", "a", "b")
    assert result.exit_code == 2 and "not a whole safetensors file" in result.stderr
