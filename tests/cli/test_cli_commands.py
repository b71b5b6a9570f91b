"""The commands that need no model: help, version, recipe show, status, dry runs, doctor."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version

import pytest

from singalaut.cli.merging import weighted
from singalaut.cli.show import table
from singalaut.cli.stages import labelled
from singalaut.recipe.load import load_recipe, parse_recipe

COMMANDS = ["run", "recipe", "status", "prepare", "data", "sft", "merge", "rl", "rewards", "eval"]
COMMANDS += ["generate", "chat", "convert", "inspect", "doctor"]
HELP_SECONDS = 0.4


def test_help_names_every_command_and_answers_at_once(cli):
    seconds = []
    for _ in range(5):
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "singalaut", "--help"], capture_output=True, text=True
        )
        seconds.append(time.monotonic() - begin)
        assert done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert min(seconds) < HELP_SECONDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli, name):
    result = cli(name, "--help")
    assert result.exit_code == 0 and "Usage:" in result.stdout


def test_version(cli):
    assert cli("--version").stdout == f"singalaut {version('singalaut')}\n"


def test_recipe_show_prints_a_recipe(cli, recipe_file):
    result = cli("recipe", "show", "tiny.toml", "--set", "sft.steps=7")
    assert result.exit_code == 0
    shown = parse_recipe(tomllib.loads(result.stdout))
    assert shown == load_recipe(recipe_file, ["sft.steps=7"])


def test_dry_run_prints_the_plan_and_makes_nothing(cli, recipe_file, tmp_path):
    result = cli("run", "tiny.toml", "--dry-run")
    assert result.exit_code == 0 and not (tmp_path / "runs").exists()
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "base", "sft", "card"]
    assert "missing" in lines[2]
    until = cli("run", "tiny.toml", "--dry-run", "--until", "sft").stdout.splitlines()
    assert until == lines[:3]


def test_status_of_recipe_and_folder(cli, recipe_file, tmp_path):
    rows = json.loads(cli("status", "tiny.toml", "--json").stdout)
    assert [row["state"] for row in rows] == ["ready", "missing", "missing"]
    partial = tmp_path / f"{rows[1]['path']}.partial"
    partial.mkdir(parents=True)
    (partial / "state.json").write_text('{"seconds": 1.25}')
    for target in ("tiny.toml", "runs"):
        found = json.loads(cli("status", target, "--json").stdout)
        row = next(row for row in found if row["stage"] == "sft")
        assert (row["state"], row["seconds"], row["key"]) == ("partial", 1.25, rows[1]["key"])
    (tmp_path / "empty").mkdir()
    empty = cli("status", "empty")
    assert (empty.exit_code, empty.stdout) == (0, "") and "no stages" in empty.stderr


def test_doctor_tells_what_the_machine_has(cli):
    result = cli("doctor", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["cores"] >= 1 and facts["memory_gib"] > 0 and facts["demo_converted"] is False
    assert {"python", "packages", "cuda", "gpus", "cache", "advice"} <= set(facts)
    assert "memory_gib" in cli("doctor").stdout


def test_models_on_the_command_line_get_weights_and_short_names():
    assert weighted("runs/a:0.25") == ("runs/a", 0.25)
    assert weighted("demo:gemma-3-270m") == ("demo:gemma-3-270m", None)
    assert weighted("demo:gemma-3-270m:2") == ("demo:gemma-3-270m", 2.0)
    assert labelled("merge", ["demo:gemma-3-270m", "/r/sft-1/model", "x/sft-1", "merge"]) == {
        "gemma-3-270m": "demo:gemma-3-270m",
        "sft-1": "/r/sft-1/model",
        "sft-1-2": "x/sft-1",
        "merge-2": "merge",
    }


def test_table_aligns_scripts_and_numbers():
    rows = [{"name": "ไทยกี่", "n": 5}, {"name": "中文", "n": None}, {"name": "abcd", "n": 1234.5}]
    assert table(rows) == "name       n\nไทยกี่       5\n中文\nabcd  1234.5"
