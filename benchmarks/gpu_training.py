"""The network's share of a training step on one CUDA device, by what layers keep; prints a table.

Random weights in the real shapes, bfloat16, adapters on all projections.

    python benchmarks/gpu_training.py [--shape 1b:8192]

Without a CUDA device, toy shapes are run, to try the script.
"""

from __future__ import annotations

import argparse

import torch
from device import DEVICE, allocated, build, seconds

from singalaut.model.attention import Packed
from singalaut.model.config import SIZES, Gemma3Config
from singalaut.model.lora import add_adapter
from singalaut.model.training import checkpoint_layers, compile_layers
from singalaut.train.config import ALL_PROJECTIONS

TINY = Gemma3Config(32, 64, 6, 4, 2, 16, 16.0, 8, 512, 512, 8.0)
DOCUMENTS = 4  # in the row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", nargs="*", default=["1b:8192"])
    options = parser.parse_args()
    shapes = [each.split(":") for each in options.shape] if DEVICE == "cuda" else [["", "256"]]
    print("| what | tokens/s | peak memory, GiB |\n|---|---|---|")
    for size, length in shapes:
        config = SIZES[size] if size else TINY
        for keep in ("all", "products", "attention", "inputs"):
            for compiled in (False, True):
                speed, peak = measure(config, int(length), keep, compiled)
                how = f"keeps {keep}{', compiled' if compiled else ''}"
                what = f"{config.size_name}, {int(length):,} tokens, {how}"
                print(f"| {what} | {speed:,.0f} | {peak:.1f} |")


def measure(config: Gemma3Config, length: int, keep: str, compiled: bool) -> tuple[float, float]:
    """Tokens per second of forward and backward, and the peak of memory in GiB."""
    model = add_adapter(build(config), 16, 32.0, ALL_PROJECTIONS, seed=0).train()
    if keep != "all":
        checkpoint_layers(model, keep)
    if compiled:
        torch._dynamo.reset()
        compile_layers(model, "inductor" if DEVICE == "cuda" else "eager")
    length -= length % DOCUMENTS
    plan = Packed((length // DOCUMENTS,) * DOCUMENTS, device=DEVICE)
    tokens = torch.randint(5, config.vocab_size - 64, (1, length), device=DEVICE)

    def step() -> None:
        model(tokens, plan.positions(), plan).float().square().mean().backward()

    seconds(step, 2)
    allocated()
    taken = min(seconds(step, 3))
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
    return length / taken, peak


if __name__ == "__main__":
    main()
