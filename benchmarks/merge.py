"""Merging against mergekit and against copying, on synthetic models; writes docs/performance.md.

A pair of 4 GB models is merged by both, in turn, each time in a new process and with the models
out of the system's cache; a copy of one of them by `cp`, put on the disk, is timed in the same
rounds. Then a pair of the 12B shape, with as many layers as the free space allows, is merged by us
alone: its memory is what matters.

    python benchmarks/merge.py --peer PYTHON [--folder DIR] [--repeats 3] [--only pair|large]

`PYTHON` has mergekit. Everything is made below DIR and removed again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from singalaut.artifact import hardware, package_versions
from singalaut.merge.write import SequentialFile
from singalaut.model.config import SIZES, Gemma3Config
from singalaut.model.hf import hf_name, parameter_shapes, write_settings
from singalaut.model.tensors import TensorSpec, file_header, split_shards, write_index

ROOT = Path(__file__).parents[1]
# a quarter of the vocabulary: at 262,144 rows mergekit sorts an embedding in over 20 GB of memory
PAIR = replace(SIZES["4b"], num_layers=18, vocab_size=65_536)  # 3.7 GB in bfloat16
SHARE_OF_FREE_SPACE = 0.8
NOISE = 1 << 24
OURS = """
import json, resource, sys, time
from pathlib import Path
from singalaut.artifact import Work
from singalaut.merge.config import MergeConfig
from singalaut.merge.stream import run_merge
config = MergeConfig.model_validate(json.loads(sys.argv[1]))
folder = Path(sys.argv[2])
work = Work(folder / "ours")
work.path.mkdir()
models = {label: folder / name for label, name in config.inputs().items()}
begin = time.perf_counter()
run_merge(config, models=models, adapters={}, work=work, seed=0)
seconds = time.perf_counter() - begin
print(seconds, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
THEIRS = """
import resource, sys, time
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
config = MergeConfiguration.model_validate(yaml.safe_load(sys.argv[1]))
options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
begin = time.perf_counter()
run_merge(config, "theirs", options)
seconds = time.perf_counter() - begin
print(seconds, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
LINEAR = {"models": [{"from": "a", "weight": 0.4}, {"from": "b", "weight": 0.6}]}
TIES = {"models": [{"from": "b", "density": 0.3}], "base": "a", "method": "ties"}
FOR_PEER = {
    "linear": {
        "merge_method": "linear",
        "models": [{"model": m, "parameters": {"weight": w}} for m, w in (("a", 0.4), ("b", 0.6))],
    },
    "ties": {
        "merge_method": "ties",
        "base_model": "a",
        "models": [{"model": "b", "parameters": {"weight": 1.0, "density": 0.3}}],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["pair", "large"])
    given = parser.parse_args()
    if given.only != "large":
        if given.peer is None:
            parser.error("--peer is needed, a Python that has mergekit")
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            size = make_models(Path(name), PAIR)
            write_table("merge", pair_rows(pair(Path(name), given.peer, given.repeats), size))
    if given.only != "pair":
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            write_table("merge-large", large(Path(name)))


def pair(folder: Path, peer: str, repeats: int) -> dict[str, list[tuple[float, ...]]]:
    """Seconds, processor seconds and memory of both programs and of `cp`, in turn."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for number in range(repeats):
        rounds = {
            "copy": lambda: copy(folder),
            "linear": lambda: ours(folder, LINEAR),
            "linear, mergekit": lambda: theirs(folder, "linear", peer),
            "ties": lambda: ours(folder, TIES),
            "ties, mergekit": lambda: theirs(folder, "ties", peer),
        }
        for label, run in rounds.items():
            forget(folder)
            found.setdefault(label, []).append(run())
            print(number, label, found[label][-1], file=sys.stderr, flush=True)
    return found


def pair_rows(found: dict[str, list[tuple[float, ...]]], size: int) -> list[tuple[str, ...]]:
    """The rows of the table, of models of `size` bytes each."""
    moved = {"copy": 2 * size, "linear": 3 * size}
    rates = {label: [moved[label] / r[0] / 1e9 for r in found[label]] for label in moved}
    ratio = [a / b for a, b in zip(rates["linear"], rates["copy"], strict=True)]
    what = f"two models of {size / 1e9:.1f} GB"
    rows = [
        (f"{what}: `cp` of one, onto the disk", "GB/s read and written", spread(rates["copy"])),
        (f"{what}: linear", "GB/s read and written", spread(rates["linear"])),
        ("linear over `cp`", "", f"{spread(ratio)}×"),
    ]
    for method in ("linear", "ties"):
        mine, other = found[method], found[f"{method}, mergekit"]
        times = [b[0] / a[0] for a, b in zip(mine, other, strict=True)]
        rows += [
            (f"{what}: {method}", "s", spread([r[0] for r in mine])),
            (f"{what}: {method}, mergekit", "s", spread([r[0] for r in other])),
            (f"{method}: mergekit's time over ours", "", f"{spread(times)}×"),
            (
                f"{method}: peak memory, ours and mergekit's",
                "GB",
                f"{max(r[2] for r in mine) / 1e6:.2f} and {max(r[2] for r in other) / 1e6:.2f}",
            ),
        ]
    return rows


def large(folder: Path) -> list[tuple[str, ...]]:
    """As much of the 12B shape as fits: its memory, and its speed beside `cp`."""
    shape = SIZES["12b"]
    embedding = 2 * shape.vocab_size * shape.hidden_size
    layer = 2 * (shape.num_parameters - shape.vocab_size * shape.hidden_size) / shape.num_layers
    room = SHARE_OF_FREE_SPACE * shutil.disk_usage(folder).free / 3
    layers = min(shape.num_layers, int((room - embedding) / layer))
    shape = replace(shape, num_layers=layers)
    size = make_models(folder, shape)
    what = f"12B shape, {layers} of 48 layers, {size / 1e9:.1f} GB each"
    rows = []
    forget(folder)
    copied = 2 * size / copy(folder)[0] / 1e9
    for label, config in (("linear", LINEAR), ("ties", TIES)):
        forget(folder)
        seconds, _, peak = ours(folder, config)
        print(label, seconds, peak, file=sys.stderr, flush=True)
        rate = 3 * size / seconds / 1e9
        ratio = f", {rate / copied:.2f}× `cp`" if label == "linear" else ""
        rows += [
            (f"{what}: {label}", "s", f"{seconds:.0f}"),
            (f"{label}: read and written", "GB/s", f"{rate:.2f}{ratio}"),
            (
                f"{label}: peak memory, in largest tensors of {embedding / 1e9:.2f} GB",
                "",
                f"{1e3 * peak / embedding:.2f}",
            ),
        ]
    return rows


def make_models(folder: Path, shape: Gemma3Config) -> int:
    """Two models near each other; the bytes of one."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(NOISE, generator=generator).bfloat16()
    moved = base + (0.05 * torch.randn(NOISE, generator=generator)).bfloat16()
    specs = [
        TensorSpec(hf_name(name), size, torch.bfloat16)
        for name, size in parameter_shapes(shape).items()
    ]
    for label, noise in (("a", base), ("b", moved)):
        (folder / label).mkdir()
        shards = split_shards(specs)
        for file, inside in shards.items():
            with SequentialFile(folder / label / file) as out:
                out.write(file_header(inside))
                for piece in repeated(noise, sum(s.num_bytes for s in inside) // 2):
                    out.write(piece)
        write_index(folder / label, shards)
        write_settings(folder / label, shape, torch.bfloat16)
    return sum(spec.num_bytes for spec in specs)


def repeated(noise: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    while count > 0:
        yield noise[: min(count, len(noise))]
        count -= len(noise)


def forget(folder: Path) -> None:
    """Put everything on the disk and take the models out of the system's cache."""
    os.sync()
    for file in folder.rglob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy(folder: Path) -> tuple[float, ...]:
    """Seconds of `cp` of one model until it is on the disk."""
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", folder / "a", folder / "copy"], check=True)
    for file in (folder / "copy").iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    seconds = time.perf_counter() - begin
    shutil.rmtree(folder / "copy")
    return (seconds, 0.0, 0.0)


def ours(folder: Path, config: dict) -> tuple[float, ...]:
    """Seconds, processor seconds and peak memory in kB of our merge, written to the disk."""
    found = alone([sys.executable, "-c", OURS, json.dumps(config), folder], folder)
    shutil.rmtree(folder / "ours")
    return found


def theirs(folder: Path, method: str, peer: str) -> tuple[float, ...]:
    """The same of mergekit, until its files are on the disk."""
    found = alone([peer, "-c", THEIRS, json.dumps(FOR_PEER[method])], folder)
    begin = time.perf_counter()
    for file in (folder / "theirs").iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(folder / "theirs")
    return (found[0] + time.perf_counter() - begin, *found[1:])


def alone(command: list, folder: Path) -> tuple[float, ...]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return tuple(map(float, done.stdout.split()[-3:]))


def spread(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.2f} ({min(values):.2f}–{max(values):.2f})"


def write_table(part: str, rows: list[tuple[str, ...]]) -> None:
    """Replace a part of docs/performance.md that belongs to this script."""
    machine, versions = hardware(), package_versions()
    head = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"torch {versions['torch']}; measured {time.strftime('%Y-%m-%d')} by "
        "`python benchmarks/merge.py`."
    )
    lines = [head, "", "| what | unit | figure |", "|---|---|---|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    text = "\n".join(lines)
    print(text)
    file = ROOT / "docs" / "performance.md"
    begin, end = f"<!-- {part} -->", f"<!-- /{part} -->"
    pattern = re.compile(f"{begin}.*{end}", re.S)
    file.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", file.read_text()))


if __name__ == "__main__":
    main()
