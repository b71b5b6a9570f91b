"""Losses of packed rows against documents alone; writes its table into docs/performance.md.

Gemma 3 270M in float32 on the demonstration conversations: the loss of every token in rows that
`PackedBatches` made, and in a forward pass over its document alone. The window is the model's own,
longer than all documents, and one that is shorter than nearly all. A plan without borders, which
must give other losses, shows that the comparison can fail.

    python benchmarks/packing.py [--rows 2]
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from singalaut.data.batches import Micro
    from singalaut.model.gemma3 import Gemma3

ROOT = Path(__file__).parents[1]
ROW_TOKENS = 512
SHORT_WINDOW = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2)
    options = parser.parse_args()
    write_table(measure(options.rows))


@torch.no_grad()
def measure(count: int) -> list[tuple[str, ...]]:
    """A line of the table for each window."""
    from singalaut.checkpoint.resolve import resolve_model
    from singalaut.data.batches import PackedBatches, lay_out
    from singalaut.data.config import PrepareConfig
    from singalaut.data.mix import mixture
    from singalaut.data.prepare import make_store
    from singalaut.data.store import Store
    from singalaut.model.gemma3 import Gemma3
    from singalaut.model.hf import load_model

    folder = resolve_model("demo:gemma-3-270m", base_folder=ROOT)
    data = ROOT / "recipes" / "data" / "quickstart.jsonl"
    settings = {"data": [{"path": data.name}], "max_tokens": ROW_TOKENS, "workers": 1}
    with tempfile.TemporaryDirectory() as work:
        make_store(
            PrepareConfig.model_validate(settings),
            model=folder,
            data=[data],
            packs=[],
            out=Path(work),
            scratch=Path(work) / "scratch",
            identify=None,
            sight=None,
        )
        store = Store.open(Path(work) / "data")
        mixed = mixture(store, 0, weights=[1.0], limits=[None])
        batches = PackedBatches(store, mixed, row_tokens=ROW_TOKENS, rows_in_batch=1)
        rows = [next(batches)[0] for _ in range(count)]
        alone = [[lay_out(store, [document]) for document in row.documents] for row in rows]
    network = load_model(folder, torch.float32).eval()
    lengths = [length for row in rows for length in row.lengths]
    found: list[tuple[str, ...]] = []
    for window in (SHORT_WINDOW, network.config.window):
        model = Gemma3(replace(network.config, window=window)).eval()
        model.load_state_dict(network.state_dict(), assign=True)
        expected = [torch.cat([losses(model, one, one.lengths) for one in row]) for row in alone]
        packed = [losses(model, row, row.lengths) for row in rows]
        broken = [losses(model, row, (sum(row.lengths),)) for row in rows]
        longer = sum(length > window for length in lengths)
        found.append(
            (
                f"{window}",
                f"{longer} of {len(lengths)}",
                f"{sum(len(part) for part in expected):,}",
                f"{worst(packed, expected):.1e}",
                f"{worst(broken, expected):.1e}",
            )
        )
    return found


def losses(model: Gemma3, row: Micro, lengths: tuple[int, ...]) -> Tensor:
    """Loss of every token that is learned, in nats, where documents have these `lengths`."""
    from singalaut.loss.sft import sft_loss
    from singalaut.model.attention import Packed

    plan = Packed(lengths)
    hidden = model(row.tokens, plan.positions(), plan)
    return sft_loss(hidden, model.embedding.weight, row.tokens, row.mask, 1.0)[1]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the loss where that is above one nat."""
    return max(
        ((a - b).abs() / b.abs().clamp(min=1)).max().item()
        for a, b in zip(found, expected, strict=True)
    )


def write_table(rows: list[tuple[str, ...]]) -> None:
    """Replace the part of docs/performance.md that belongs to this script."""
    from singalaut.artifact import hardware, package_versions

    machine, versions = hardware(), package_versions()
    lines = [
        f"Gemma 3 270M, float32, rows of {ROW_TOKENS} tokens; {machine['cpu']}; torch "
        f"{versions['torch']}; measured {time.strftime('%Y-%m-%d')} by "
        "`python benchmarks/packing.py`.",
        "",
        "| window | documents longer than it | learned tokens | largest difference of a loss, "
        "packed and alone | the same with borders left open |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(cells) + " |" for cells in rows),
    ]
    text = "\n".join(lines)
    print(text)
    file = ROOT / "docs" / "performance.md"
    begin, end = "<!-- packing -->", "<!-- /packing -->"
    pattern = re.compile(f"{begin}.*{end}", re.S)
    file.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", file.read_text()))


if __name__ == "__main__":
    main()
