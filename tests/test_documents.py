"""What the documents promise: commands that exist, recipes that parse, no trace of one machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from singalaut.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_every_command_in_the_readme_exists():
    shown = set(re.findall(r"^singalaut (\w+)", (ROOT / "README.md").read_text(), re.M))
    help_text = subprocess.run(
        [sys.executable, "-m", "singalaut", "--help"], capture_output=True, text=True, check=True
    ).stdout
    offered = set(re.findall(r"^  (\w+)  ", help_text, re.M))
    assert shown == offered, (shown, offered)


@pytest.mark.parametrize("recipe", ROOT.glob("recipes/*.toml"), ids=lambda path: path.name)
def test_every_recipe_parses(recipe):
    loaded = load_recipe(recipe)
    for stage in loaded.stage:
        for label, path in stage.files().items():
            assert label == "pack" or (recipe.parent / path).exists(), path


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), (document.name, target)
