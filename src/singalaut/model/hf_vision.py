"""The vision part in Hugging Face directories: names, shapes, configuration, processor files.

Weights are read in the old hub layout (`vision_tower.vision_model.…`) and in newer ones, and
written in the old one, which every reader knows. `hf.py` does the reading and writing.
"""

from __future__ import annotations

import json
from math import isqrt
from pathlib import Path
from typing import Any

from singalaut.artifact import write_json
from singalaut.errors import CheckpointError
from singalaut.model.config import VisionConfig

TOWER_PREFIXES = (
    "vision_tower.vision_model.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.",
)
PROJECTOR_PREFIXES = ("multi_modal_projector.", "model.multi_modal_projector.")
TOWER_NAMES = {
    "patches.weight": "embeddings.patch_embedding.weight",
    "patches.bias": "embeddings.patch_embedding.bias",
    "positions": "embeddings.position_embedding.weight",
    "final_norm.weight": "post_layernorm.weight",
    "final_norm.bias": "post_layernorm.bias",
}
LAYER_NAMES = {
    "attention_norm": "layer_norm1",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
PROJECTOR_NAMES = {
    "norm.weight": "mm_soft_emb_norm.weight",
    "weight": "mm_input_projection_weight",
}
CONFIG_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
}
TOKEN_KEYS = {
    "start_id": "boi_token_index",
    "end_id": "eoi_token_index",
    "image_id": "image_token_index",
}


def tower_name(name: str) -> str:
    """The library's name, below the tower, of our `layers.3.up.weight` for example."""
    if name in TOWER_NAMES:
        return TOWER_NAMES[name]
    _, index, rest = name.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    return f"encoder.layers.{index}.{LAYER_NAMES[module]}.{leaf}"


def vision_shapes(config: VisionConfig, text_width: int) -> dict[str, tuple[int, ...]]:
    """Every parameter of the vision part, by our names, in the network's order."""
    width, inner, patch = config.hidden_size, config.intermediate_size, config.patch_size
    square = (width, width)
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (width,),
        **{f"attention.{name}": square for name in ("query", "key", "value", "output")},
        "mlp_norm": (width,),
        "up": (inner, width),
        "down": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "tower.positions": (config.num_patches, width),
        "tower.patches.weight": (width, 3, patch, patch),
        "tower.patches.bias": (width,),
    }
    for index in range(config.num_layers):
        for name, shape in layer.items():
            shapes[f"tower.layers.{index}.{name}.weight"] = shape
            shapes[f"tower.layers.{index}.{name}.bias"] = shape[:1]
    return {
        **shapes,
        "tower.final_norm.weight": (width,),
        "tower.final_norm.bias": (width,),
        "projector.weight": (width, text_width),
        "projector.norm.weight": (width,),
    }


def vision_from_hf(raw: dict[str, Any], where: Path | str) -> VisionConfig | None:
    """The vision part that a `gemma3` configuration describes, None where it has none."""
    vision = raw.get("vision_config")
    if not vision:
        return None
    for key, wanted in {
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "num_channels": 3,
        "vision_use_head": False,
    }.items():
        if vision.get(key, wanted) != wanted:
            raise CheckpointError(
                f"`vision_config.{key}` is {json.dumps(vision[key])}; Gemma 3 has "
                f"{json.dumps(wanted)}",
                where=where,
                hint="this checkpoint is of another architecture",
            )
    missing = [key for key in CONFIG_KEYS.values() if key not in vision]
    if missing:
        raise CheckpointError(
            f"`vision_config.{missing[0]}` is missing",
            where=where,
            hint="Gemma 3 checkpoints state every shape; take `config.json` from the original",
        )
    sizes = {f"vision_config.{key}": vision[key] for key in CONFIG_KEYS.values()}
    sizes["mm_tokens_per_image"] = raw.get("mm_tokens_per_image", 256)
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"`{key}` is {json.dumps(value)}, a whole number above 0 is needed",
                where=where,
                hint="take `config.json` from the original",
            )
    config = VisionConfig(
        **{ours: vision[theirs] for ours, theirs in CONFIG_KEYS.items()},
        image_tokens=raw.get("mm_tokens_per_image", 256),
        norm_eps=vision.get("layer_norm_eps", 1e-6),
        **{ours: raw[theirs] for ours, theirs in TOKEN_KEYS.items() if theirs in raw},
    )
    _check_squares(config, where)
    return config


def vision_to_hf(config: VisionConfig, text: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of a model that sees, around the configuration of its text decoder."""
    dtype, eos = text["dtype"], text["eos_token_id"]
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        **{theirs: getattr(config, ours) for ours, theirs in TOKEN_KEYS.items()},
        "mm_tokens_per_image": config.image_tokens,
        "eos_token_id": eos,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        "text_config": {k: v for k, v in text.items() if k != "architectures"},
        "vision_config": {
            "model_type": "siglip_vision_model",
            **{theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()},
            "layer_norm_eps": config.norm_eps,
            "hidden_act": "gelu_pytorch_tanh",
            "attention_dropout": 0.0,
            "num_channels": 3,
            "vision_use_head": False,
            "torch_dtype": dtype,
            "dtype": dtype,
        },
    }


def write_processor(folder: Path, config: VisionConfig) -> None:
    """The two files by which `transformers` prepares images for the model."""
    size = {"height": config.image_size, "width": config.image_size}
    names = {"processor_class": "Gemma3Processor", "image_seq_length": config.image_tokens}
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Gemma3ImageProcessor",
            **names,
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_pan_and_scan": None,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "pan_and_scan_max_num_crops": None,
            "pan_and_scan_min_crop_size": None,
            "pan_and_scan_min_ratio_to_activate": None,
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": size,
        },
    )
    write_json(folder / "processor_config.json", names)


def _check_squares(config: VisionConfig, where: Path | str) -> None:
    """Patches must pool into whole squares, and heads divide the width."""
    side, tokens = config.patches_per_side, isqrt(config.image_tokens)
    if tokens**2 != config.image_tokens or not tokens or side % tokens:
        raise CheckpointError(
            f"`mm_tokens_per_image` is {config.image_tokens}, but {side} × {side} patches "
            "(`image_size` / `patch_size`) do not pool into that many",
            where=where,
            hint="Gemma 3 pools 64 × 64 patches to 256 tokens",
        )
    if config.hidden_size % config.num_heads:
        raise CheckpointError(
            f"`vision_config.num_attention_heads` is {config.num_heads}, which does not divide "
            f"`vision_config.hidden_size` {config.hidden_size}",
            where=where,
            hint="take `config.json` from the original",
        )
