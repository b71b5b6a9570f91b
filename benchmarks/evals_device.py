"""A whole evaluation by the engine: seconds in total, and the share that the engine had.

All rows of a pack that are there, at most 100 a task and language, one run. Without `--model` a
network of the 270M's shape with random weights answers: as much work as the real one, and answers
that end only at the tasks' own limits, which is more to read and score than a tuned model writes.

    python benchmarks/evals_device.py --pack DIR --tokenizer DIR [--profile v1.0]
    python benchmarks/evals_device.py --pack DIR --model DIR
"""

from __future__ import annotations

import argparse
import gzip
import logging
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from singalaut.artifact import Work, content_hash, hardware
from singalaut.evals.config import EvaluateConfig
from singalaut.evals.evaluate import Subject, run_evaluate
from singalaut.generate.engine import open_engine
from singalaut.model.config import SIZES
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import save_model

ROOT = Path(__file__).parents[1]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="a model's folder; its files may be gzipped")
    parser.add_argument("--model", type=Path, help="a model directory instead of random weights")
    parser.add_argument("--size", default="270m", choices=sorted(SIZES))
    parser.add_argument("--profile", default="card")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--task", action="append", default=[], help="only this task")
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()
    if options.model is None and options.tokenizer is None:
        parser.error("give `--tokenizer` or `--model`")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            model = random_model(options.size, options.tokenizer, Path(folder) / "model")
        asked = {name: getattr(options, name) for name in ("profile", "limit")}
        asked |= {"pack": str(options.pack), "tasks": tuple(options.task)}
        config = EvaluateConfig.model_validate(
            {"models": ("model",), **asked, "extras": True, "protocol": {"seeds": 1}}
        )
        seconds, timing = evaluate(config, model, Path(folder) / "run", options.batch_size)
    kind = "random weights" if options.model is None else options.model.name
    write_table(rows(timing, seconds, f"{options.size} shape, {kind}", config))


def random_model(size: str, tokenizer: Path, folder: Path) -> Path:
    """A checkpoint of a real shape with random weights and a real tokenizer."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.no_grad():
        model = Gemma3(SIZES[size])
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.1 if name.endswith("norm.weight") else weight.shape[-1] ** -0.5)
    torch.set_default_dtype(torch.float32)
    save_model(model.cpu(), folder, torch.bfloat16)
    for name in TOKENIZER:
        packed = tokenizer / f"{name}.gz"
        if packed.is_file():
            (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
        else:
            (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder


def evaluate(
    config: EvaluateConfig, model: Path, folder: Path, batch_size: int | None
) -> tuple[float, dict[str, Any]]:
    """Seconds from reading the pack to the written report, and what the stage says of them."""
    folder.mkdir()
    work = Work(folder)
    subject = Subject(content_hash(model), lambda: open_engine(model, batch_size), model)
    begin = time.perf_counter()
    run_evaluate(
        config,
        subjects={"model": subject},
        pack=Path(config.pack),
        work=work,
        seed=1,
        store=folder / "store.sqlite",
    )
    return time.perf_counter() - begin, work.facts["timing"]["model"]


def rows(
    timing: dict[str, Any], seconds: float, what: str, config: EvaluateConfig
) -> list[tuple[str, str]]:
    engine, opening = timing["engine_seconds"], timing["opening_seconds"]
    tokens = timing["completion_tokens"]
    return [
        (f"{what}: questions, ≤ {config.limit} a task and language", f"{timing['asked']:,}"),
        ("tokens read", f"{timing['prompt_tokens']:,}"),
        ("tokens written", f"{tokens:,}"),
        ("total, from the pack to the report", f"{seconds:.1f} s"),
        ("opening the model", f"{opening:.1f} s"),
        ("in the engine", f"{engine:.1f} s, {tokens / engine:,.0f} tokens/s"),
        ("share of the engine: of all", f"{100 * engine / seconds:.1f} %"),
        ("share of the engine: of all but opening", f"{100 * engine / (seconds - opening):.1f} %"),
    ]


def write_table(table: list[tuple[str, str]]) -> None:
    """Print the figures, and put them where docs/performance.md keeps them."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else hardware()["cpu"]
    head = (
        f"{device}; torch {torch.__version__}; measured {time.strftime('%Y-%m-%d')} by "
        "`python benchmarks/evals_device.py`."
    )
    lines = [head, "", "| what | figure |", "|---|---|"]
    text = "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in table])
    print(text)
    if cuda:
        file = ROOT / "docs" / "performance.md"
        begin, end = "<!-- evals-device -->", "<!-- /evals-device -->"
        pattern = re.compile(f"{begin}.*{end}", re.S)
        file.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", file.read_text()))


if __name__ == "__main__":
    main()
