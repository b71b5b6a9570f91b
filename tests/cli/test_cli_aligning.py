"""Selecting, making pairs and aligning, as on the command line."""

from __future__ import annotations

import json

import pytest


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def model(tiny_model):
    return ("--model", str(tiny_model))


def test_pairs_are_aligned_with(cli, tmp_path, model):
    rows = [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(6)]
    write(tmp_path / "rows.jsonl", [*rows, {"prompt": "x", "chosen": "y", "rejected": "y"}])
    words = ("--data", "rows.jsonl", "--steps", "2", "--batch-size", "3", "--rank", "2")
    result = cli("apo", *model, *words, "--loss", "dpo")
    assert result.exit_code == 0, result.stderr
    assert "6 of 7 rows are pairs" in result.stderr and "identical" in result.stderr
    folder = tmp_path / result.stdout.strip()
    assert (folder / "model" / "config.json").exists() and (folder / "adapter").exists()
    assert "finished before" in cli("apo", *model, *words, "--loss", "dpo").stderr
    bad = cli("apo", *model, *words, "--loss", "orpo")
    assert bad.exit_code == 2 and "apo-zero" in bad.stderr
    assert cli("apo", *model, *words, "--loss", "simpo").exit_code == 2


def test_prompts_that_give_no_pair_are_told(cli, tmp_path, model):
    write(tmp_path / "p.jsonl", [{"prompt": "Say something.", "language": "en"}, {"odd": 1}])
    small = ("--set", "pairs.sampling.max_tokens=4")
    result = cli("pairs", *model, "--prompts", "p.jsonl", *small)
    assert result.exit_code == 2, result.stderr
    assert "no prompt became a pair" in result.stderr and "1 rows left out" in result.stderr
    neither = cli("pairs", *model, "--prompts", "p.jsonl", "--method", "rewrite")
    assert neither.exit_code == 2 and "needs a `rewriter`" in neither.stderr


def test_what_is_selected_is_tuned_on(cli, tmp_path, model):
    def turns(i):
        pair = (("user", f"{i}?"), ("assistant", f"{i}!" * (1 + i % 3)))
        return {"messages": [{"role": r, "content": c} for r, c in pair], "language": "en"}

    write(tmp_path / "rows.jsonl", [turns(i) for i in range(8)])
    write(tmp_path / "th.jsonl", [turns(i) for i in range(20, 22)])
    words = ("--data", "rows.jsonl", "--target", "th=th.jsonl", "--count", "4")
    few = ("--set", "select.warmup_steps=2", "--set", "select.dimensions=64")
    result = cli("select", *model, *words, *few)
    assert result.exit_code == 0, result.stderr
    folder = result.stdout.strip()
    tuned = cli("sft", *model, "--data", folder, "--epochs", "1", "--batch-size", "4")
    assert tuned.exit_code == 0, tuned.stderr
    assert "4 conversations in a pass" in tuned.stderr
    refused = cli("select", *model, "--data", "rows.jsonl", "--count", "4")
    assert refused.exit_code == 2 and "`targets`" in refused.stderr


def test_a_recipe_selects_makes_pairs_and_aligns(cli, tmp_path, tiny_model):
    (tmp_path / "r.toml").write_text(
        f"""name = "r"
[model]
base = "{tiny_model}"
[[stage]]
kind = "pairs"
prompts = [{{ generate = 2 }}]
[[stage]]
kind = "apo"
pairs = "pairs"
epochs = 1
[[stage]]
kind = "apo"
name = "second"
pairs = "apo"
epochs = 1
"""
    )
    result = cli("run", "r.toml")
    assert result.exit_code == 2 and "needs pairs, and `apo` gives a model" in result.stderr
