"""A small recipe with its data, and a base directory that stands for a model."""

from __future__ import annotations

import pytest

RECIPE = """\
# tiny
name = "tiny"
seed = 5

[model]
base = "base"

[[stage]]
kind = "sft"
data = [
  { path = "a.jsonl", weight = 2.0 },
  { path = "b.jsonl" },
]
steps = 3
adapter = { rank = 4 }

[[stage]]
kind = "merge"
models = [{ from = "base", weight = 0.2 }, { from = "sft", weight = 0.8 }]

[[stage]]
kind = "evaluate"
models = ["base", "sft", "merge"]
pack = "pack"

[[stage]]
kind = "card"
model = "merge"
evaluation = "evaluate"
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "task.toml").write_text("")
    (tmp_path / "a.jsonl").write_text("a\n")
    (tmp_path / "b.jsonl").write_text("b\n")
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE)
    return file
