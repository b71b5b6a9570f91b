"""Learning from several answers to a prompt: the prompt computed once, or with each of them.

Random weights in the real shape, bfloat16, an adapter; both ways in turn on the same answers.
Prints a row a case: seconds of a step (median, smallest and largest), the median of the ratios of
neighbouring runs, and how far apart the norms of the gradients are.

    python benchmarks/shared_prompts.py [--size 270m] [--rl 6:8:48:16] [--pairs 4:200:60]

`--rl` is prompts, answers to each, tokens of a prompt and of an answer; `--pairs` is pairs, tokens
of a prompt and of an answer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from device import DEVICE, build, seconds

from singalaut.contracts import Score
from singalaut.data import pair_batches
from singalaut.data.pair_batches import pack_pairs
from singalaut.model.config import SIZES
from singalaut.model.gemma3 import Gemma3
from singalaut.model.lora import add_adapter
from singalaut.rl.config import RlConfig
from singalaut.rl.policy import policy_step
from singalaut.rl.rollouts import Rollout, Rollouts
from singalaut.train.config import AdapterConfig
from singalaut.train.optim import adamw
from singalaut.train.pairs import PairLosses, pair_step, reference_logprobs
from singalaut.train.parallel import World

REPEATS = 5
LEARNED = np.uint32(1 << 31)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="270m")
    parser.add_argument("--rl", nargs="*", default=["6:8:48:16", "2:8:256:64"])
    parser.add_argument("--pairs", nargs="*", default=["4:200:60"])
    options = parser.parse_args()
    model = build(replace(SIZES[options.size], vision=None)).train()
    targets = AdapterConfig.model_validate({"rank": 16}).targets
    add_adapter(model, 16, 32.0, targets, seed=1)
    print("| a step of | shared, s | each alone, s | ratio | norms apart |")
    print("|---|---|---|---|---|")
    for case in options.rl:
        report(f"reinforcement, {case}", *policies(model, *map(int, case.split(":"))))
    for case in options.pairs:
        report(f"alignment, {case}", *alignments(model, *map(int, case.split(":"))))


def report(name: str, shared: Callable[[], float], alone: Callable[[], float]) -> None:
    apart = abs(shared() / alone() - 1)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        times[0].extend(seconds(shared, 1))
        times[1].extend(seconds(alone, 1))
    shown = [f"{statistics.median(t):.3f} ({min(t):.3f}–{max(t):.3f})" for t in times]
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    print(f"| {name} | {shown[0]} | {shown[1]} | {ratio:.2f}× | {apart:.1e} |", flush=True)


def policies(
    model: Gemma3, prompts: int, samples: int, prompt_tokens: int, tokens: int
) -> tuple[Callable[[], float], Callable[[], float]]:
    draw = np.random.default_rng(0)
    answers = []
    for place in range(prompts):
        prompt = tuple(draw.integers(5, 9_000, prompt_tokens).tolist())
        for index in range(samples):
            answer = tuple(draw.integers(5, 9_000, tokens).tolist())
            worth = (-1.0) ** index
            known = (-9.0,) * tokens
            answers.append(
                Rollout("p", place, "en", "s", prompt, answer, known, "", "stop", Score(0.0), worth)
            )
    alone = [replace(answer, place=number) for number, answer in enumerate(answers)]
    config = RlConfig.model_validate(
        {
            "prompts": [{"generate": 1}],
            "reward": {"parts": [{"kind": "language"}]},
            "steps": 1,
            "samples": samples,
            "max_tokens": tokens,
        }
    )
    optimizer = adamw(model, 0.0, 0.0)

    def step(given: list[Rollout]) -> float:
        rollouts = Rollouts(tuple(given), prompts, 0, 0, {})
        return policy_step(model, optimizer, rollouts, config, 0.0).gradient_norm

    return lambda: step(answers), lambda: step(alone)


def alignments(
    model: Gemma3, count: int, prompt_tokens: int, tokens: int
) -> tuple[Callable[[], float], Callable[[], float]]:
    draw = np.random.default_rng(0)

    class Drawn:
        both: ClassVar = [
            tuple(
                np.concatenate(
                    [prompt, draw.integers(5, 9_000, tokens).astype(np.uint32) | LEARNED]
                )
                for _ in range(2)
            )
            for prompt in draw.integers(5, 9_000, (count, prompt_tokens)).astype(np.uint32)
        ]

        def words(self, pair: int) -> tuple[np.ndarray, ...]:
            return self.both[pair]

    here = World(device=torch.device(DEVICE))
    shared = pack_pairs(Drawn(), np.arange(count), 8192)
    real, pair_batches.common_beginning = pair_batches.common_beginning, lambda *_: 0
    alone = pack_pairs(Drawn(), np.arange(count), 8192)
    pair_batches.common_beginning = real
    optimizer = adamw(model, 0.0, 0.0)
    answers = np.full((count, 2), tokens)
    reference = reference_logprobs(model, alone, count, here)
    loss = PairLosses("apo-zero", 0.1, 0.0)

    def step(rows: list[pair_batches.PairRow]) -> float:
        done = pair_step(model, optimizer, rows, answers, reference, loss, 0.0, 1.0, here)
        return done.gradient_norm

    return lambda: step(shared), lambda: step(alone)


if __name__ == "__main__":
    print(f"{DEVICE}, torch {torch.__version__}")
    main()
