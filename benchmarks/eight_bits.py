"""Products with weights in eight bits on a CUDA device, beside those in sixteen, at real shapes.

    python benchmarks/eight_bits.py [--sizes 1b 4b 27b] [--rows 1 8 16 64 128 256]

A line for each matrix of a layer: microseconds of `torch.mm` in bfloat16, of kernels that widen
int8 and FP8 weights (`narrow.py`; one row: `single.py`, also in bfloat16), of FP8 as a whole, and
of tiles of one size (`matmul.py`, int8). Weights take turns, so that no cache holds them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from device import BF16

from singalaut.generate.kernels import single
from singalaut.generate.kernels.matmul import Quantised, fp8_product, product
from singalaut.generate.kernels.narrow import SharesScratch, narrow_product
from singalaut.model.config import SIZES

REPEATS = 40
LEAST_BYTES = 200 << 20  # of all weights that take turns: more than the second-level cache


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="*", default=["1b", "4b", "27b"])
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 8, 16, 64, 128, 256])
    options = parser.parse_args()
    scratch = SharesScratch(torch.device("cuda"))
    names = ("bf16", "int8", "fp8", "whole fp8", "tiles")
    print(f"{'':28}" + "".join(f"{name:>10}" for name in names))
    for size in options.sizes:
        config = SIZES[size]
        width, inner = config.hidden_size, config.intermediate_size
        heads = config.num_heads * config.head_dim
        qkv = heads + 2 * config.num_kv_heads * config.head_dim
        shapes = {"qkv": (qkv, width), "output": (width, heads)}
        shapes |= {"gate, up": (2 * inner, width), "down": (width, inner)}
        for name, (count, columns) in shapes.items():
            copies = 1 + LEAST_BYTES // (count * columns)
            weights = [
                torch.randn(count, columns, device="cuda", dtype=BF16) * columns**-0.5
                for _ in range(copies)
            ]
            narrow = {k: [Quantised.of(w, k) for w in weights] for k in ("int8", "fp8")}
            for rows in options.rows:
                x = torch.randn(rows, columns, device="cuda", dtype=BF16)
                taken = row(x, weights, narrow, scratch)
                figures = "".join(f"{taken.get(each, 0):10.1f}" for each in names)
                print(f"{size} {name} {count}×{columns}, {rows}".ljust(28) + figures, flush=True)
            del weights, narrow
            torch.cuda.empty_cache()


def row(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    narrow: dict[str, list[Quantised]],
    scratch: SharesScratch,
) -> dict[str, float]:
    out = torch.empty(1, len(weights[0]), dtype=BF16, device="cuda")
    ways: dict[str, tuple[list, Callable]] = {"bf16": (weights, lambda w: torch.mm(x, w.T))}
    for kind in narrow:
        ways[kind] = narrow[kind], lambda w: narrow_product(x, w, scratch)
    if len(x) == 1:
        for kind, matrices in [("bf16", weights), *narrow.items()]:
            ways[kind] = matrices, lambda w: single.matvec(w, x, out)
    else:
        ways["whole fp8"] = narrow["fp8"], lambda w: fp8_product(x, w, BF16)
        ways["tiles"] = narrow["int8"], lambda w: product(x, w)
    return {name: microseconds(*way) for name, way in ways.items()}


def microseconds(matrices: list, run: Callable[[object], object]) -> float:
    """The time of one call inside a captured graph of many."""
    run(matrices[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(REPEATS):
            run(matrices[number % len(matrices)])
    taken = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(1000 * begin.elapsed_time(end) / REPEATS)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
