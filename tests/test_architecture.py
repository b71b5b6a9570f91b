"""Who may import whom: the imports of every module, read by `ast`, against the table of rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "singalaut"


def table_of_rooms() -> tuple[set[str], dict[str, set[str]]]:
    """Level 0, and what each other room may import, as ARCHITECTURE.md says."""
    rows = re.findall(
        r"^\| (\d) \| (.+?) \| .+? \| (.+?) \|$", (ROOT / "ARCHITECTURE.md").read_text(), re.M
    )
    level_0: set[str] = set()
    rooms: dict[str, set[str]] = {}
    for level, names, allowed in rows:
        for name in re.findall(r"`(\w+)`", names):
            if level == "0":
                level_0.add(name)
            else:
                rooms[name] = set(re.findall(r"`(\w+)`", allowed.split(";")[0]))
    return level_0, rooms


LEVEL_0, ROOMS = table_of_rooms()
WIRED = ("recipe/wiring.py", "recipe/opening.py", "cli/")  # may import every room, inside functions
CONFIG_MAY_IMPORT = {"pydantic", *sys.stdlib_module_names}
MODULES = sorted(SOURCE.rglob("*.py"))


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Each imported module, and whether in a function; what only type checkers see is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", inside
            if node.module == "singalaut":
                yield from ((f"singalaut.{alias.name}", inside) for alias in node.names)
        elif not _is_typing_only(node):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, inside or function)


def _is_typing_only(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def violations(module: str, text: str) -> list[str]:
    """What the module with this path below `singalaut/` imports although it may not."""
    found = []
    for name, inside in imports(ast.parse(text)):
        if reason := _refusal(module, name, inside):
            found.append(f"{module} imports {name}: {reason}")
    return found


def _refusal(module: str, name: str, inside: bool) -> str | None:
    top, *rest = name.split(".")
    room = module.split("/")[0].removesuffix(".py")
    if module.endswith("/config.py"):
        return _config_refusal(room, name)
    if top != "singalaut":
        heavy = room in LEVEL_0 and top == "torch" and not inside
        return "level 0 loads torch only inside functions" if heavy else None
    if not rest or rest[0] in LEVEL_0 or rest[0] == room:
        return None
    if room in LEVEL_0:
        return "level 0 imports only level 0"
    if room not in ROOMS:
        return None if module == "__main__.py" else "the room is not in the table"
    if rest[0] in ROOMS[room]:
        return None
    if rest[1:2] == ["config"] and room == "recipe":
        return None
    if inside and module.startswith(WIRED):
        return None
    return f"{room} may import {sorted(ROOMS[room]) or 'level 0 only'}"


def _config_refusal(room: str, name: str) -> str | None:
    top, *rest = name.split(".")
    if top != "singalaut":
        return None if top in CONFIG_MAY_IMPORT else "a config imports only pydantic"
    if rest in (["settings"], ["errors"]):
        return None
    if rest[1:] == ["config"] and rest[0] in {room, *ROOMS[room]}:
        return None
    return "a config imports only settings, errors and configs of rooms below"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_module_imports_only_what_the_table_allows(file):
    assert violations(file.relative_to(SOURCE).as_posix(), file.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("train/sft.py", "from singalaut.generate.engine import Engine"),
        ("train/sft.py", "def run():\n    from singalaut.generate import engine"),
        ("evals/runner.py", "import singalaut.generate.engine"),
        ("publish/card.py", "from singalaut.evals.output import load_results"),
        ("merge/stream.py", "from singalaut import text"),
        ("artifact.py", "import torch"),
        ("artifact.py", "from singalaut.text import tokenizer"),
        ("train/config.py", "import torch"),
        ("train/config.py", "from singalaut.evals.config import EvaluateConfig"),
        ("data/config.py", "from singalaut.data.sources import Source"),
        ("recipe/run.py", "def run():\n    from singalaut.train.sft import run_sft"),
        ("recipe/wiring.py", "from singalaut.train.sft import run_sft"),
        ("cli/talk.py", "from singalaut.generate.engine import Engine"),
        ("newroom/file.py", "from singalaut.train import sft"),
    ],
)
def test_table_refuses(module, text):
    assert violations(module, text)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("artifact.py", "def hardware():\n    import torch"),
        ("train/sft.py", "from singalaut.data.batches import batches"),
        ("train/sft.py", "if TYPE_CHECKING:\n    from singalaut.generate.engine import Engine"),
        ("recipe/wiring.py", "def run():\n    from singalaut.train.sft import run_sft"),
        ("recipe/schema.py", "from singalaut.train.config import SftConfig"),
        ("train/config.py", "from singalaut.data.config import DataSource"),
    ],
)
def test_table_allows(module, text):
    assert violations(module, text) == []


@pytest.mark.parametrize(
    ("entrance", "heavy"),
    [
        ("singalaut.cli.main", {"torch", "transformers", "pydantic", "rich", "numpy", "jinja2"}),
        ("singalaut.recipe.run", {"torch", "transformers", "tokenizers", "gguf", "sacrebleu"}),
        ("singalaut.train.sft", {"torch._dynamo", "triton", "transformers"}),
        ("singalaut.generate.engine", {"torch._dynamo", "transformers"}),
    ],
)
def test_start_loads_nothing_heavy(entrance, heavy):
    code = f"import sys, {entrance}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert entrance in loaded
    assert heavy.isdisjoint(loaded)


def test_the_table_names_every_room():
    tree = {path.stem for path in SOURCE.iterdir() if not path.name.startswith("__")}
    assert tree == LEVEL_0 | set(ROOMS)
