"""Gradients of documents at once against one backward pass each, on this machine.

    python benchmarks/selection.py [--model demo:gemma-3-270m] [--documents 64] [--tokens 256]

Prints documents a second of both, and how far their gradients differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from singalaut.checkpoint.resolve import resolve_model
from singalaut.data.batches import Micro
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model
from singalaut.model.lora import add_adapter
from singalaut.select.features import project
from singalaut.select.gradients import sample_gradients, sample_losses
from singalaut.select.project import Sketch

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:gemma-3-270m")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--row-tokens", type=int, default=8192)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(resolve_model(given.model, base_folder=Path()), torch.float32, device)
    add_adapter(model, given.rank, 2.0 * given.rank, TARGETS, seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):
            parameter.data.normal_(std=0.01)
    rows = documents(given.documents, given.tokens, given.row_tokens, model.config.vocab_size)
    alone = [one(micro, place) for micro in rows for place in range(len(micro.lengths))]
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, {len(alone)} documents")
    print(f"largest difference, of the largest gradient: {difference(model, rows[0]):.1e}")
    sketch = Sketch(8192, 0, torch.device(device))
    ways: dict[str, Callable[[], object]] = {
        "one by one": lambda: backward_each(model, alone),
        "at once": lambda: [None for micro in rows for _ in sample_gradients(model, micro).pieces],
        "at once, projected": lambda: [
            project(sample_gradients(model, m), sketch, None) for m in rows
        ],
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm
    for _ in range(given.rounds):
        for name, way in ways.items():
            speeds[name].append(len(alone) / seconds(way, device))
    slow = statistics.median(speeds["one by one"])
    for name, found in speeds.items():
        middle = statistics.median(found)
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"{name:20} {middle:8.1f} documents/s ({spread}), {middle / slow:.2f}×")


def documents(count: int, tokens: int, row_tokens: int, vocabulary: int) -> list[Micro]:
    """Rows of documents with lengths from half to one and a half of `tokens`; half is learned."""
    generator = torch.Generator().manual_seed(0)
    low, high = tokens // 2, tokens * 3 // 2
    lengths = torch.randint(low, high, (count,), generator=generator).sort()[0].tolist()
    rows, row = [], list[int]()
    for length in lengths:
        if sum(row) + length > row_tokens:
            rows.append(row)
            row = []
        row.append(length)
    return [lay_out(row, vocabulary, generator) for row in [*rows, row]]


def lay_out(lengths: list[int], vocabulary: int, generator: torch.Generator) -> Micro:
    ids = torch.randint(200, vocabulary, (1, sum(lengths)), generator=generator)
    mask = torch.cat([torch.arange(length) >= length // 2 for length in lengths])
    return Micro(ids, mask[None], tuple(lengths))


def one(micro: Micro, place: int) -> Micro:
    start = sum(micro.lengths[:place])
    part = slice(start, start + micro.lengths[place])
    return Micro(micro.tokens[:, part], micro.mask[:, part], (micro.lengths[place],))


def backward_each(model: Gemma3, alone: list[Micro]) -> None:
    for micro in alone:
        sample_losses(model, micro)[0].backward()
        model.zero_grad(set_to_none=True)


def difference(model: Gemma3, micro: Micro) -> float:
    found = dict(sample_gradients(model, micro).pieces)
    worst = 0.0
    for place in range(min(4, len(micro.lengths))):
        sample_losses(model, one(micro, place))[0].backward()
        for name, piece in found.items():
            wanted = model.get_parameter(name).grad
            assert wanted is not None
            gap = (piece[place] - wanted.flatten()).abs().max() / wanted.abs().max()
            worst = max(worst, float(gap))
        model.zero_grad(set_to_none=True)
    return worst


def seconds(way: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    way()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
