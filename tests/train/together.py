"""Several trainings by one job: `torchrun … together.py FOLDER MODEL CASES`, for tests of layouts.

CASES is JSON, from the name of a folder to settings of a stage; `base` among them is a folder of
FOLDER that is the model instead, `rows` a file of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from singalaut.artifact import Work
from singalaut.train.config import SftConfig
from singalaut.train.sft import run_sft

SETTINGS = {
    "steps": 4,
    "batch_size": 6,
    "max_tokens": 256,
    "micro_tokens": 64,
    "learning_rate": 1e-2,
    "save_every": 2,
    "held_out": 2,
    "validate_every": 3,
}


def train(folder: Path, model: Path, name: str, settings: dict) -> Work:
    """Train on `rows.jsonl` of the folder; the result is in a folder of the name beside it."""
    (folder / name).mkdir(exist_ok=True)
    work = Work(folder / name)
    given = {**SETTINGS, **settings}
    if (base := given.pop("base", None)) is not None:
        model = folder / base
    rows = folder / given.pop("rows", "rows.jsonl")
    config = SftConfig.model_validate({"data": [{"path": "rows.jsonl"}], **given})
    run_sft(config, model=model, data=[rows], work=work, seed=5)
    return work


if __name__ == "__main__":
    for name, settings in json.loads(sys.argv[3]).items():
        train(Path(sys.argv[1]), Path(sys.argv[2]), name, settings)
