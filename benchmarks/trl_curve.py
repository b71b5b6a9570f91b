"""Fifty steps of fine-tuning the real 270M in bfloat16 beside TRL's, on the same conversations.

    python benchmarks/trl_curve.py [--model demo:gemma-3-270m] [--rate 1e-5]

Weights are in bfloat16 beside a float32 copy here, in float32 under autocast there; the same in
float32 is a test (`tests/train/test_trl.py`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from singalaut.checkpoint.resolve import resolve_model
from tests.train.test_trl import BATCH, STEPS, conversations, our_curve, trl_curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:gemma-3-270m")
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--longest", type=int, default=32)
    options = parser.parse_args()
    folder = resolve_model(options.model, base_folder=Path())
    rows = conversations(STEPS * BATCH, options.longest, 262_144)
    with tempfile.TemporaryDirectory() as work:
        theirs = trl_curve(folder, rows, options.rate, "bfloat16", Path(work))
    mine = our_curve(folder, rows, options.rate, "master")
    gaps = [abs(a - b) / b for a, b in zip(mine, theirs, strict=True)]
    print(f"loss of the first step {mine[0]:.4f} and {theirs[0]:.4f}, of the last {mine[-1]:.4f}")
    print(f"relative difference: mean {statistics.mean(gaps):.1e}, largest {max(gaps):.1e}")


if __name__ == "__main__":
    main()
