"""Low-rank adapters: W + scale · B A with W frozen, stored in PEFT's file format.

Source: arXiv 2106.09685. Files are what `peft` reads and writes: `adapter_config.json` and
`adapter_model.safetensors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from singalaut.artifact import write_json
from singalaut.errors import CheckpointError
from singalaut.model.gemma3 import Attention, Gemma3, Mlp
from singalaut.model.hf import LAYER_NAMES, hf_name
from singalaut.model.linear import Linear
from singalaut.model.tensors import TensorReader, TensorSpec, write_tensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class LoraLinear(nn.Module):
    """y = x Wᵀ + scale · x Aᵀ Bᵀ; A is [rank, in], B is [out, rank] and begins at zero."""

    def __init__(self, base: Linear, rank: int, alpha: float):
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        weight = base.weight
        self.a = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        return self.base(x) + linear(linear(x, self.a), self.b) * self.scale


def add_adapter(
    model: Gemma3, rank: int, alpha: float, targets: tuple[str, ...], seed: int
) -> Gemma3:
    """Freeze the model and put an adapter on the `targets` (`query`, `up`, …) of every layer.

    A is uniform in ±1/√in from `seed`, on the CPU whatever the device, in the model's order.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for block in model.modules():
        if isinstance(block, Attention | Mlp):
            for name, child in list(block.named_children()):
                if name in targets and isinstance(child, Linear):
                    adapted = LoraLinear(child, rank, alpha)
                    bound = 1 / math.sqrt(adapted.a.shape[1])
                    values = torch.empty(adapted.a.shape).uniform_(
                        -bound, bound, generator=generator
                    )
                    adapted.a.data.copy_(values)
                    setattr(block, name, adapted)
    return model


def adapters(model: Gemma3) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted projections, by the name of the projection."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


@torch.no_grad()
def merge_adapter(model: Gemma3) -> Gemma3:
    """Fold every adapter into its weight, W + scale · B A, and remove it."""
    for name, adapted in list(adapters(model)):
        weight = adapted.base.weight
        update = adapted.scale * (adapted.b.float() @ adapted.a.float())
        weight.copy_((weight.float() + update).to(weight.dtype))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, adapted.base)
    return model


def save_adapter(
    model: Gemma3, folder: Path, base_name: str, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter of a model; `base_name` says what it belongs to.

    `weights` has its parameters by name where the model's own are in pieces.
    """
    own = dict(model.named_parameters()) if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    found = dict(adapters(model))
    tensors = {}
    for name in found:
        stem = peft_stem(name, nested=model.config.vision is not None)
        tensors[f"{stem}.lora_A.weight"] = own[f"{name}.a"].detach()
        tensors[f"{stem}.lora_B.weight"] = own[f"{name}.b"].detach()
    specs = [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    write_tensors(folder / WEIGHTS, specs, tensors.values())
    first = next(iter(found.values()))
    rank = first.a.shape[0]
    targets: list[str] | str = sorted({_hf_leaf(name) for name in found})
    if model.config.vision is not None:  # the tower has projections of the same names
        targets = rf".*language_model.*\.({'|'.join(targets)})"
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "r": rank,
            "lora_alpha": first.scale * rank,
            "target_modules": targets,
            "bias": "none",
            "lora_dropout": 0.0,
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None,
            "use_rslora": False,
            "use_dora": False,
        },
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration says. Raises CheckpointError where it cannot be read."""
    try:
        raw = json.loads((folder / CONFIG).read_bytes())
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(
            f"no readable `{CONFIG}`: {error}", where=folder, hint="fetch the adapter again"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"`{CONFIG}` is not a JSON object", where=folder, hint="fetch the adapter again"
        )
    return raw


def load_adapter(model: Gemma3, folder: Path) -> Gemma3:
    """Put a PEFT adapter on a model. Raises CheckpointError for kinds that we do not have."""
    file, raw = folder / CONFIG, read_settings(folder)
    _refuse_unsupported(raw, file)
    ours = {hf.rpartition(".")[2]: name.rpartition(".")[2] for name, hf in LAYER_NAMES.items()}
    wanted = raw["target_modules"]
    if not isinstance(wanted, list):  # a pattern; the weights say what it hit
        wanted = _adapted_leaves(folder)
    unknown = [t for t in wanted if t not in ours]
    if unknown:
        projections = ", ".join(sorted(name for name in ours if name.endswith("_proj")))
        raise CheckpointError(
            f"the adapter changes `{unknown[0]}`, which is not a projection of Gemma 3",
            where=file,
            hint=f"adapters on {projections} can be used",
        )
    add_adapter(model, raw["r"], raw["lora_alpha"], tuple(ours[t] for t in wanted), seed=0)
    with TensorReader([folder / WEIGHTS]) as reader:
        if tower := next((place for place in reader if ".vision_tower." in place), None):
            raise CheckpointError(
                f"the adapter changes the vision tower (`{tower}`)",
                where=folder / WEIGHTS,
                hint="adapters on the projections of the text decoder can be used",
            )
        for name, adapted in adapters(model):
            stem = peft_stem(name, nested=is_nested(reader))
            for leaf, parameter in (("lora_A", adapted.a), ("lora_B", adapted.b)):
                place = f"{stem}.{leaf}.weight"
                if place not in reader or reader.shape(place) != tuple(parameter.shape):
                    found = list(reader.shape(place)) if place in reader else "nothing"
                    raise CheckpointError(
                        f"`{place}`: found {found}, needed {list(parameter.shape)}",
                        where=folder / WEIGHTS,
                        hint="the adapter belongs to another model",
                    )
                parameter.data.copy_(reader.read(place))
    return model


def _refuse_unsupported(raw: dict[str, object], where: Path) -> None:
    for key, allowed in (
        ("peft_type", ("LORA",)),
        ("bias", (None, "none")),
        ("use_dora", (None, False)),
        ("use_rslora", (None, False)),
        ("modules_to_save", (None, [])),
        ("rank_pattern", (None, {})),
        ("alpha_pattern", (None, {})),
        ("layers_to_transform", (None, [])),
    ):
        if raw.get(key) not in allowed:
            raise CheckpointError(
                f"`{key}` is {json.dumps(raw.get(key))}; only plain LoRA can be read", where=where
            )


def peft_stem(name: str, nested: bool) -> str:
    """Where `peft` has the adapter of one of our projections; models that see nest the decoder."""
    place = hf_name(f"{name}.weight").removeprefix("model.").removesuffix(".weight")
    return f"base_model.model.model.{'language_model.' if nested else ''}{place}"


def is_nested(places: Iterable[str]) -> bool:
    """Whether an adapter with these tensors was made for a model that sees."""
    return any(".language_model." in place for place in places)


def _adapted_leaves(folder: Path) -> list[str]:
    """The projections that have weights in an adapter, such as `q_proj`."""
    with TensorReader([folder / WEIGHTS]) as reader:
        return sorted({place.split(".")[-3] for place in reader if ".lora_" in place})


def _hf_leaf(name: str) -> str:
    return hf_name(f"{name}.weight").rpartition(".")[0].rpartition(".")[2]
