"""Seconds of a step of reinforcement learning on one CUDA device; writes docs/performance.md.

Random weights in the real shapes, prompts of random tokens, a reward that costs nothing: right for
speed, no statement about quality. Every answer has the full length.

    python benchmarks/rl.py [--cases 270m:8:8:64:256 1b:32:8:256:1024]

A case is the size, prompts, answers to each, tokens of a prompt and of an answer. The peer's 9.99 s
for the first case is TRL's (`dr_grpo`, generation by `transformers`) on an H100.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from device import BF16, DEVICE, randomise, write_section
from engine import Pieces

from singalaut.contracts import Message, Sample, Score
from singalaut.generate.engine import Engine, EngineSettings
from singalaut.model.config import SIZES, Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.training import compile_layers
from singalaut.rl.ask import Asking, Task, roll_out
from singalaut.rl.config import RlConfig
from singalaut.rl.learn import learn
from singalaut.train.optim import adamw

TINY = Gemma3Config(32, 64, 6, 4, 2, 16, 16.0, 8, 512, 512, 8.0)
TRL_SECONDS = {"270m:8:8:64:256": 9.99}
SETTLE, MEASURED = 2, 5


class Drawn:
    """A reward that differs among the answers of a group."""

    def score(self, prompt, completions, sample):
        return [Score(float(sum(c.token_ids) % 7)) for c in completions]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", default=["270m:8:8:64:256", "1b:32:8:256:1024"])
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    lines = ["| step | seconds | generate | learn | engine, tokens/s | beside TRL |"]
    lines.append("|---|---|---|---|---|---|")
    for case in options.cases if DEVICE == "cuda" else ["tiny:2:3:5:7"]:
        with tempfile.TemporaryDirectory() as scratch:
            lines.append(measure(case, options.compile, Path(scratch)))
        print(lines[-1], flush=True)
    if DEVICE == "cuda":
        write_section("rl", lines)


def measure(case: str, compiled: bool, scratch: Path) -> str:
    size, *numbers = case.split(":")
    prompts, samples, prompt_tokens, tokens = map(int, numbers)
    shape = TINY if size == "tiny" else replace(SIZES[size], vision=None)
    shape = replace(shape, eos_ids=())
    torch.set_default_dtype(BF16 if DEVICE == "cuda" else torch.float32)
    with torch.device(DEVICE):
        model = Gemma3(shape)
    torch.set_default_dtype(torch.float32)
    randomise(model)
    model.requires_grad_(True)
    if compiled:
        compile_layers(model)
    config = RlConfig.model_validate(
        {
            "prompts": [{"generate": 1}],
            "reward": {"parts": [{"kind": "language"}]},
            "steps": 1,
            "prompts_per_step": prompts,
            "samples": samples,
            "max_tokens": tokens,
            "truncated": "keep",
            "micro_tokens": 16_384,
            "precision": "master" if DEVICE == "cuda" else "float32",
        }
    )
    optimizer = adamw(model, 1e-6, 0.0, config.precision)
    room = EngineSettings(batch_size=prompts * samples, context_tokens=prompt_tokens + tokens + 32)
    engine = Engine(model, Pieces(), None, "random", room)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(5, shape.vocab_size - 64, (64, prompt_tokens), generator=generator)
    sample = Sample([Message("user", "?")], "p", "en", "random")
    tasks = [Task(sample, tuple(row)) for row in drawn.tolist()]

    def draw(first: int, count: int) -> list[tuple[int, Task]]:
        return [(at, tasks[at % 64]) for at in range(first, first + count)]

    asking = Asking(config, engine, Drawn(), draw, 3, scratch)
    found = []
    for step in range(SETTLE + MEASURED):
        begin = time.perf_counter()
        rollouts = roll_out(asking, step * prompts, step)
        between = time.perf_counter()
        learn(config, model, None, optimizer, rollouts, step)
        engine.weights_changed()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        end = time.perf_counter()
        written = sum(len(answer.tokens) for answer in rollouts.answers)
        found.append((end - begin, between - begin, end - between, written))
    seconds, generate, learning, written = (
        statistics.median(values) for values in zip(*found[SETTLE:], strict=True)
    )
    beside = f"{TRL_SECONDS[case] / seconds:.1f}×" if case in TRL_SECONDS else "—"
    speed = written / generate
    return (
        f"| {size}, {prompts} × {samples}, {prompt_tokens} → {tokens} tokens | {seconds:.3f} | "
        f"{generate:.3f} ({generate / seconds:.0%}) | {learning:.3f} | {speed:,.0f} | {beside} |"
    )


if __name__ == "__main__":
    main()
