"""A whole recipe on a tiny model through the real command line, killed and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from singalaut.artifact import hash_file

ROOT = Path(__file__).parents[1]


@pytest.fixture
def recipe(tmp_path, tiny_model):
    """The quickstart recipe with a tiny model, fewer questions and many small steps."""
    text = (ROOT / "recipes" / "quickstart.toml").read_text()
    text = text.replace("demo:gemma-3-270m", str(tiny_model)).replace('"../runs"', '"runs"')
    data = str(ROOT / "recipes" / "data" / "quickstart.jsonl")
    text = text.replace("data/quickstart.jsonl", data)
    text = text.replace('kind = "sft"', 'kind = "sft"\nmax_tokens = 512')  # the model's context
    text = text.replace('pack = "demo"', 'pack = "demo"\nlimit = 1\nlanguages = ["id", "th"]')
    file = tmp_path / "tiny.toml"
    file.write_text(text)
    return file


def singalaut(*arguments: object, wait: bool = True, cwd: Path):
    command = [sys.executable, "-m", "singalaut", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SINGALAUT_HOME": str(cwd / "home")}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


SETTINGS = ("--set", "sft.steps=40", "--set", "sft.batch_size=2", "--set", "sft.save_every=3")


def weights(folder: Path) -> dict[str, str]:
    """Hash of the weights of each stage of the run."""
    found = {}
    for manifest in folder.glob("runs/quickstart/*/manifest.json"):
        file = manifest.parent / "model" / "model.safetensors"
        if file.exists():
            found[json.loads(manifest.read_text())["stage"]] = hash_file(file)
    return found


def test_killed_runs_end_in_the_same_weights(recipe, tmp_path):
    code, out, err = singalaut("run", recipe, *SETTINGS, cwd=tmp_path)
    assert code == 0, err
    assert "sft" in out and "translation-en-xx" in out and "runs/quickstart/card-" in out
    wanted = weights(tmp_path)
    assert set(wanted) == {"sft", "merge"}
    shown = next(tmp_path.glob("runs/quickstart/card-*/release/README.md")).read_text()
    assert str(tmp_path) not in shown and "Gemma Terms of Use" in shown

    code, again, err = singalaut("run", recipe, *SETTINGS, cwd=tmp_path)
    assert code == 0 and again == out and err.count("finished before") == 4, err

    (tmp_path / "runs").rename(tmp_path / "whole")
    for _ in range(4):
        process = singalaut("run", recipe, *SETTINGS, wait=False, cwd=tmp_path)
        partial = tmp_path / "runs" / "quickstart"
        deadline = time.monotonic() + 60
        before = len(list(partial.glob("sft-*.partial/metrics.jsonl")))
        lines = _lines(partial)
        while _lines(partial) < lines + 7 and time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert before <= 1
    assert list((tmp_path / "runs" / "quickstart").glob("sft-*.partial"))
    code, last, err = singalaut("run", recipe, *SETTINGS, cwd=tmp_path)
    assert code == 0, err
    assert weights(tmp_path) == wanted
    assert last == out


def _lines(run: Path) -> int:
    files = list(run.glob("sft-*/metrics.jsonl"))
    return sum(file.read_bytes().count(b"\n") for file in files)


def test_the_model_answers_by_the_name_of_its_stage(recipe, tmp_path):
    few = ("--set", "sft.steps=1", "--until", "merge")
    assert singalaut("run", recipe, *few, cwd=tmp_path)[0] == 0
    recipe.write_text(re.sub(r"\bsteps = \d+", "steps = 1", recipe.read_text()))
    name = f"{recipe}:merge"
    ask = ("generate", "--model", name, "--max-tokens", 3, "--json", "a")
    code, out, err = singalaut(*ask, cwd=tmp_path)
    assert code == 0, err
    assert 1 <= json.loads(out)["completion_tokens"] <= 3
    code, _, err = singalaut("generate", "--model", f"{recipe}:evaluate", "a", cwd=tmp_path)
    assert code == 2 and "makes no model" in err


def test_a_full_disk_leaves_finished_stages_alone(recipe, tmp_path):
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from singalaut.cli.main import main; sys.argv = ['singalaut', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", limited, "run", str(recipe), "--set", "sft.steps=1"]
    environment = {**os.environ, "SINGALAUT_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "File too large" in done.stderr or "space" in done.stderr
    assert not list(tmp_path.glob("runs/quickstart/sft-*/manifest.json"))
