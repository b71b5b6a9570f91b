"""Preparing data and looking at it, as on the command line."""

from __future__ import annotations

import json

import pytest

from singalaut.cli.stages import data_source


@pytest.fixture
def prepared(cli, tmp_path, tiny_model):
    """The folder of a prepared file with a bad row, a duplicate and good ones."""
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "a"}]}
        for i in (*range(8), 3)
    ]
    lines = [*map(json.dumps, rows), "{no"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    words = [
        "--model",
        str(tiny_model),
        "--data",
        "rows.jsonl",
        "--set",
        "prepare.max_bad_share=0.2",
    ]
    result = cli("prepare", *words)
    assert result.exit_code == 0, result.stderr
    assert "1 rows of rows: the same as an earlier row" in result.stderr
    return result.stdout.strip()


def test_the_report_says_what_became_of_the_rows(cli, prepared):
    shown = cli("data", "report", prepared)
    assert shown.exit_code == 0
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("rows  ")][:1]
    assert line.split()[1:4] == ["10", "8", "2"]
    assert "not valid JSON" in shown.stdout and "report.html" in shown.stdout
    found = json.loads(cli("data", "report", prepared, "--json").stdout)
    assert (found["rows"], found["kept"]) == (10, 8)


def test_a_prepared_folder_is_tuned_on(cli, prepared, tmp_path, tiny_model):
    words = ["--model", str(tiny_model), "--epochs", "1", "--batch-size", "4", "--data"]
    result = cli("sft", *words, prepared)
    assert result.exit_code == 0, result.stderr
    assert "8 conversations in a pass" in result.stderr
    metrics = (tmp_path / result.stdout.strip() / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 2
    both = cli("sft", *words, prepared, "--data", "rows.jsonl")
    assert both.exit_code == 2 and "prepared data cannot be mixed" in both.stderr


def test_a_recipe_hands_the_store_on(cli, tmp_path, tiny_model, prepared):
    (tmp_path / "r.toml").write_text(
        f"""name = "r"
[model]
base = "{tiny_model}"
[[stage]]
kind = "prepare"
data = [{{ path = "rows.jsonl", name = "mine" }}]
max_bad_share = 0.2
[[stage]]
kind = "sft"
prepared = "prepare"
steps = 1
mix = {{ sources = {{ mine = 0.5 }} }}
"""
    )
    result = cli("run", "r.toml")
    assert result.exit_code == 0, result.stderr
    assert "4 conversations in a pass" in result.stderr
    wrong = cli("run", "r.toml", "--set", "sft.prepared=sft")
    assert wrong.exit_code == 2 and "sft.prepared" in wrong.stderr
    wrong = cli("run", "r.toml", "--set", "sft.prepared=base")
    assert wrong.exit_code == 2 and "needs prepared data, and `base` gives a model" in wrong.stderr
    wrong = cli("run", "r.toml", "--set", "sft.mix.sources.their=1")
    assert wrong.exit_code == 2 and "none of the sources named `their`" in wrong.stderr
    joined = cli("prepare", "--recipe", "r.toml", "--join")
    assert joined.exit_code == 0 and "prepare-" in joined.stdout


def test_ways_to_name_a_source():
    assert data_source("a/b.jsonl") == {"path": "a/b.jsonl"}
    assert data_source("hub:org/name") == {"hub": "org/name"}
    assert data_source("hub:org/name:test") == {"hub": "org/name", "split": "test"}
