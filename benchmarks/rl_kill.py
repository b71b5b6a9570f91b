"""Kills the command `rl` at random moments, and compares what it ends in with an undisturbed run.

A tiny model with random weights on a CPU. Each kill is `kill -9` of all processes of the command,
every second one while answers are being written: then a step has some of its answers and not all.
Weights, metrics and answers must be the same in every bit.

    python benchmarks/rl_kill.py [--kills 10] [--cases call answer overlap two]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from singalaut.artifact import hash_file
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import save_model
from singalaut.rl.rollouts import load_rollouts
from singalaut.text.tokenizer import Tokenizer

SHAPE = Gemma3Config(32, 64, 6, 4, 2, 16, 16.0, 8, 512, 4096, 8.0, global_every=3)
STEPS, PROMPTS, SAMPLES = 10, 4, 4
RECIPE = f"""
name = "kill"
seed = 3
output = "OUTPUT"
[model]
base = "MODEL"
[[stage]]
kind = "rl"
prompts = [{{ path = "prompts.jsonl" }}]
reward = {{ parts = [{{ kind = "length", words = 3 }}, {{ kind = "repetition" }}] }}
steps = {STEPS}
prompts_per_step = {PROMPTS}
samples = {SAMPLES}
max_tokens = 40
truncated = "keep"
held_out = 4
evaluate_every = 4
save_every = 3
learning_rate = 1e-2
"""
CASES = {
    "call": ("the engine as it is", "engine = { batch_size = 6 }", 1),
    "answer": ("batch-invariant engine", "engine = { batch_invariant = true, batch_size = 6 }", 1),
    "overlap": ("answers a step ahead", "overlap = true\nengine = { batch_size = 6 }", 1),
    "two": ("two processes", "engine = { batch_size = 3 }", 2),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model")
        rows = [{"prompt": f"{n} + {n % 7} = ?", "language": "id"} for n in range(60)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (Path(folder) / "prompts.jsonl").write_text(lines)
        for case in options.cases:
            differing += try_case(Path(folder), case, options.kills)
    sys.exit(bool(differing))


def try_case(folder: Path, case: str, kills: int) -> int:
    """Kill runs of one kind; returns how many things differ in the end."""
    title, settings, processes = CASES[case]
    for name in ("whole", "killed"):
        text = RECIPE.replace("OUTPUT", f"{case}-{name}").replace("MODEL", str(folder / "model"))
        (folder / f"{case}-{name}.toml").write_text(text + settings + "\n")
    begin = time.monotonic()
    reference = finish(folder, f"{case}-whole", processes)
    longest = time.monotonic() - begin
    print(f"{title}: an undisturbed run takes {longest:.1f} s", flush=True)
    generator = random.Random(case)
    done = 0
    while done < kills:
        child = start(folder, f"{case}-killed", processes)
        output = folder / f"{case}-killed"
        found = wait_and_kill(child, output, done % 2 == 0, longest / 2, generator)
        if found is None:  # it had finished: from the beginning again
            shutil.rmtree(output)
            continue
        done += 1
        print(f"  kill {done}: {found}", flush=True)
    ended = finish(folder, f"{case}-killed", processes)
    bad = [name for name in {*reference, *ended} if reference.get(name) != ended.get(name)]
    print(f"  {done} kills; of {len(reference)} files and tables, {len(bad)} differ: {bad}")
    return len(bad)


def wait_and_kill(
    child: subprocess.Popen[bytes],
    folder: Path,
    while_answering: bool,
    seconds: float,
    generator: random.Random,
) -> str | None:
    """Kill the command within so many seconds of its work; says when. None if it ended before."""
    begun = until = 0.0
    known = (-1, 0)
    while child.poll() is None:
        time.sleep(0.002)
        work = next(folder.glob("kill/rl-*.partial"), None)
        if work is None or not (work / ".work").exists():
            continue
        if not begun:  # with its work, that is, after what it needs has been loaded
            begun = time.monotonic()
            until = begun + generator.uniform(0, seconds)
            known = being_answered(work)
        if time.monotonic() < until:
            continue
        step, lines = being_answered(work)
        is_new = (step, lines) != known and 0 < lines < PROMPTS * SAMPLES
        if while_answering and not is_new:
            continue
        for process in (child.pid, *descendants(child.pid)):
            os.kill(process, signal.SIGKILL)
        child.wait()
        step, lines = being_answered(work)
        learned = len([line for line in metrics(work) if "next_place" in line])
        if lines:
            return f"{learned} steps learned; {lines} answers to step {step} were written"
        return f"{learned} steps learned"
    return None


def descendants(process: int) -> list[int]:
    """Processes that it has started, and theirs; `torchrun` gives each a session of its own."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def being_answered(work: Path) -> tuple[int, int]:
    """The step whose answers are not complete, and how many there are."""
    files = sorted((work / ".work").glob("answers-*.jsonl"))
    if not files:
        return -1, 0
    step = int(files[-1].name.split("-")[1])
    if (work / "rollouts" / f"step-{step:06d}.parquet").exists():
        return step, 0
    same = [file for file in files if file.name.startswith(f"answers-{step:06d}")]
    return step, sum(file.read_bytes().count(b"\n") for file in same)


def metrics(work: Path) -> list[dict[str, object]]:
    """The lines of metrics without times."""
    file = work / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def start(folder: Path, name: str, processes: int) -> subprocess.Popen[bytes]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command += ["-m", "singalaut", "run", str(folder / f"{name}.toml")]
    home = {"SINGALAUT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    errors = (folder / f"{name}.log").open("ab")
    return subprocess.Popen(
        command,
        env={**os.environ, **home},
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )


def finish(folder: Path, name: str, processes: int) -> dict[str, object]:
    """What a run that goes to its end has written."""
    child = start(folder, name, processes)
    assert child.wait() == 0, (folder / f"{name}.log").read_text()[-3000:]
    [made] = [path.parent for path in (folder / name).rglob("manifest.json")]
    found: dict[str, object] = {
        str(file.relative_to(made)): hash_file(file) for file in (made / "model").rglob("*.*")
    }
    found["metrics"] = metrics(made)
    for step in range(STEPS):
        rollouts = load_rollouts(made / "rollouts", step)
        assert rollouts is not None
        found[f"answers of step {step}"] = replace(rollouts, seconds={})
    return found


def make_model(folder: Path) -> None:
    """A Hugging Face directory with random weights, and a tokenizer of bytes and letters."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<unused{i}>" for i in range(100))]
    control += ["<start_of_turn>", "<end_of_turn>"]
    letters = ["▁", *map(chr, range(33, 127))]
    of_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    normal = letters[: SHAPE.vocab_size - len(control) - len(of_bytes)]
    tokens = [*control, *of_bytes, *normal]
    types = [3] * len(control) + [6] * len(of_bytes) + [1] * len(normal)
    scores = [-1000.0] * (len(tokens) - len(normal)) + [-float(n) for n in range(len(normal))]
    shape = replace(SHAPE, vocab_size=len(tokens))
    save_model(initialise(Gemma3(shape), seed=0), folder, torch.float32)
    Tokenizer.from_vocabulary(tokens, scores, types).save(folder)


if __name__ == "__main__":
    main()
