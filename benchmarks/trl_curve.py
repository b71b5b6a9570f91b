"""Fifty steps of fine-tuning a real model in bfloat16 beside TRL's, on the same conversations.

    python benchmarks/trl_curve.py --rows FILE [--model demo:gemma-3-270m] [--rate 1e-5]

FILE has JSON lines with `messages`. Weights are in bfloat16 beside a float32 copy here, in float32
under autocast there; the same in float32 is a test (`tests/train/test_trl.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from singalaut.checkpoint.resolve import resolve_model
from singalaut.contracts import Message
from singalaut.text.chat import ChatFormat
from singalaut.text.tokenizer import Tokenizer
from tests.train.test_trl import BATCH, STEPS, Rows, our_curve, trl_curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--model", default="demo:gemma-3-270m")
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--longest", type=int, default=512, help="tokens of a conversation")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = resolve_model(options.model, base_folder=Path())
    rows = conversations(options.rows, folder, options.longest)
    with tempfile.TemporaryDirectory() as work:
        theirs = trl_curve(folder, rows, options.rate, "bfloat16", Path(work), device)
        mine = our_curve(folder, rows, options.rate, "master", device)
    gaps = [abs(a - b) / b for a, b in zip(mine, theirs, strict=True)]
    print("step: ours, TRL's")
    for step in (0, 9, 19, 29, 39, 49):
        print(f"{step + 1}: {mine[step]:.4f}, {theirs[step]:.4f}")
    print(f"relative difference: mean {statistics.mean(gaps):.1e}, largest {max(gaps):.1e}")


def conversations(file: Path, model: Path, longest: int) -> Rows:
    """The first that are short enough and have one answer."""
    chat = ChatFormat.load(model, Tokenizer.load(model))
    rows: Rows = []
    for line in file.open(encoding="utf-8"):
        messages = [Message(**message) for message in json.loads(line)["messages"]]
        if len(messages) == 2:
            tokens, mask = chat.encode_with_mask(messages)
            if len(tokens) <= longest:
                rows.append((tokens, mask.index(True)))
        if len(rows) == STEPS * BATCH:
            return rows
    raise SystemExit(f"{file.name} has {len(rows)} such conversations, {STEPS * BATCH} are needed")


if __name__ == "__main__":
    main()
