"""Runs mergekit on configurations; for a Python that has it.

    python run_mergekit.py [--stable] CONFIG...

The result of `x.yml` is the folder `x`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml


def sort_stably() -> None:
    """Make equal entries come in the order of their places, which the library leaves open.

    Without it, which of several equal entries mergekit keeps depends on the processor.
    """
    argsort, sort = torch.argsort, torch.sort

    def topk(values: torch.Tensor, k: int, largest: bool = True):
        found = sort(values, descending=largest, stable=True)
        return found.values[:k], found.indices[:k]

    torch.argsort = lambda *args, **options: argsort(*args, **options, stable=True)
    torch.sort = lambda *args, **options: sort(*args, **options, stable=True)
    torch.topk = topk


def main() -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    if "--stable" in sys.argv:
        sort_stably()
    for file in map(Path, sys.argv[1:]):
        if file.suffix == ".yml":
            config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
            options = MergeOptions(
                quiet=True,
                random_seed=0,
                lora_merge_cache=str(file.with_suffix(".lora")),
                write_model_card=False,
            )
            run_merge(config, str(file.with_suffix("")), options)


if __name__ == "__main__":
    main()
