"""Every test of the command line has its own cache and folder, and a runner."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from singalaut.cli.main import app


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SINGALAUT_LOG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli():
    return lambda *words, **options: CliRunner().invoke(app, [*words], **options)


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "a.jsonl").write_text("a\n")
    file = tmp_path / "tiny.toml"
    file.write_text(
        'name = "tiny"\n[model]\nbase = "base"\n'
        '[[stage]]\nkind = "sft"\ndata = [{ path = "a.jsonl" }]\nsteps = 3\n'
        '[[stage]]\nkind = "card"\nmodel = "sft"\n'
    )
    return file
