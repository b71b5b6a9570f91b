"""The state of a training run in one safetensors file, replaced whole.

Data order and initialisation are functions of the seed, so weights, optimiser moments and the
step number are all that exact resumption needs.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from singalaut.model.tensors import TensorReader, TensorSpec, write_tensors

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the trainable weights and their moments after `step` steps."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, parameter in _trainable(model):
        tensors[f"weight.{name}"] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    specs = [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    write_tensors(file, specs, tensors.values(), {"progress": json.dumps({"step": step})})


def load_state(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bring weights and moments back; returns the number of steps done, 0 without a file."""
    if not file.exists():
        return 0
    with TensorReader([file]) as reader, torch.no_grad():
        for name, parameter in _trainable(model):
            parameter.copy_(reader.read(f"weight.{name}"))
            optimizer.state[parameter] = {
                # AdamW keeps its step counts on the CPU and its moments beside the weights
                moment: reader.read(f"{moment}.{name}").to(
                    "cpu" if moment == "step" else parameter.device, copy=True
                )
                for moment in MOMENTS
            }
    with safe_open(file, "pt") as handle:
        return json.loads(handle.metadata()["progress"])["step"]


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
