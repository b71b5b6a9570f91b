"""Merging on a CUDA device: the same as on the CPU, but for the order of sums."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from singalaut.artifact import Work
from singalaut.merge.config import MergeConfig
from singalaut.merge.methods import METHODS
from singalaut.merge.stream import run_merge
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import save_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIG = Gemma3Config(32, 64, 6, 4, 2, 16, 16.0, 8, 512, 512, 8.0, global_every=3)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_same_as_on_the_cpu(method, tmp_path):
    labels = ("base", "a", "b")[: 2 if method == "passthrough" else 3]
    for seed, name in enumerate(labels):
        save_model(initialise(Gemma3(CONFIG), seed=seed), tmp_path / name, torch.float32)
    settings = {"models": [{"from": name} for name in labels[1:]], "method": method}
    known = {**METHODS[method].of_models, **METHODS[method].shared}
    wanted = {"density": 0.4, "t": 0.3, "select_topk": 0.5}
    settings["parameters"] = {n: v for n, v in wanted.items() if n in known}
    if METHODS[method].base == "needed":
        settings["base"] = "base"
    found = []
    for device in ("cpu", "cuda"):
        config = MergeConfig.model_validate({**settings, "device": device})
        work = Work(tmp_path / device)
        work.path.mkdir()
        models = {label: tmp_path / name for label, name in config.inputs().items()}
        run_merge(config, models=models, adapters={}, work=work, seed=0)
        found.append(load_file(work.path / "model" / "model.safetensors"))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-6, atol=1e-6)
