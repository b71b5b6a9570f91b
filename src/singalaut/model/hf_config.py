"""`config.json` and its companion in Hugging Face directories, from and to our configuration.

Two dialects are in use, and a model that sees nests its text decoder's settings; what we write
holds both dialects, what we read may be in either. The vision part is in `hf_vision.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from singalaut.errors import CheckpointError
from singalaut.model.config import Gemma3Config
from singalaut.model.hf_settings import (
    check_values,
    read_pattern,
    read_rope,
    refuse_unsupported,
)
from singalaut.model.hf_vision import vision_from_hf, vision_to_hf

# what the published `config.json` of 4B, 12B and 27B leave out where it is the library's default
OMITTED = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131_072,
    "vocab_size": 262_208,
}


def read_config(folder: Path, *, vision: bool = True) -> Gemma3Config:
    """The shape that `config.json` describes, without the vision part where `vision` is off.

    Raises: CheckpointError for what we cannot run.
    """
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            "no `config.json` found", where=folder, hint="give a Hugging Face model directory"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"not valid JSON: {error}", where=file) from error
    config = config_from_hf(raw, where=file)
    return config if vision else replace(config, vision=None)


def config_from_hf(raw: dict[str, Any], where: Path | str) -> Gemma3Config:
    """Translate a `gemma3` or `gemma3_text` configuration, in either dialect."""
    if not isinstance(raw, dict) or not isinstance(raw.get("text_config", {}), dict):
        raise CheckpointError(
            "the configuration is not a JSON object", where=where, hint="fetch the file again"
        )
    kind = raw.get("model_type")
    if kind not in ("gemma3", "gemma3_text"):
        raise CheckpointError(
            f"`model_type` is `{kind}`; only `gemma3` and `gemma3_text` are supported",
            where=where,
            hint="give a Gemma 3 checkpoint",
        )
    text = {**OMITTED, **raw.get("text_config", raw)} if kind == "gemma3" else raw
    refuse_unsupported(text, where)
    eos = raw.get("eos_token_id", text.get("eos_token_id", 1))
    try:
        rope = read_rope(text, where)
        config = Gemma3Config(
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_layers=text["num_hidden_layers"],
            num_heads=text["num_attention_heads"],
            num_kv_heads=text["num_key_value_heads"],
            head_dim=text["head_dim"],
            query_scalar=text["query_pre_attn_scalar"],
            window=text["sliding_window"],
            max_positions=text["max_position_embeddings"],
            vocab_size=text["vocab_size"],
            rope_factor=rope.factor,
            rope_theta=rope.theta,
            rope_local_theta=rope.local_theta,
            global_every=read_pattern(text, where),
            norm_eps=text.get("rms_norm_eps", 1e-6),
            pad_id=text.get("pad_token_id") or 0,
            bos_id=text.get("bos_token_id") or 2,
            eos_ids=tuple(eos) if isinstance(eos, list) else (eos,),
            vision=vision_from_hf(raw, where) if kind == "gemma3" else None,
        )
    except KeyError as error:
        raise CheckpointError(
            f"`{error.args[0]}` is missing",
            where=where,
            hint="Gemma 3 checkpoints state every shape; take `config.json` from the original",
        ) from None
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"a setting has the wrong kind of value: {error}",
            where=where,
            hint="take `config.json` from the original",
        ) from error
    check_values(config, where)
    return config


def config_to_hf(config: Gemma3Config, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` of a checkpoint, with the keys of old and of new readers."""
    text = _text_to_hf(config, dtype)
    return vision_to_hf(config.vision, text) if config.vision else text


def _text_to_hf(config: Gemma3Config, dtype: torch.dtype) -> dict[str, Any]:
    factor = {"rope_type": "linear", "factor": config.rope_factor}
    scaled = config.rope_factor != 1.0
    dtype_name = str(dtype).removeprefix("torch.")
    eos = list(config.eos_ids)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": _plain(config.query_scalar),
        "sliding_window": config.window,
        "sliding_window_pattern": config.global_every,
        "layer_types": [
            "full_attention" if config.is_global(i) else "sliding_attention"
            for i in range(config.num_layers)
        ],
        "max_position_embeddings": config.max_positions,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": config.rope_local_theta,
        "rope_scaling": factor if scaled else None,
        "rope_parameters": {
            "full_attention": {
                **(factor if scaled else {"rope_type": "default"}),
                "rope_theta": config.rope_theta,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_local_theta},
        },
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "initializer_range": 0.02,
        "use_cache": True,
        "tie_word_embeddings": True,
        "pad_token_id": config.pad_id,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos if len(eos) > 1 else eos[0],
        "torch_dtype": dtype_name,
        "dtype": dtype_name,
    }


def generation_config(config: Gemma3Config) -> dict[str, Any]:
    """`generation_config.json`, with the sampling settings that Gemma 3 is published with."""
    eos = list(config.eos_ids)
    return {
        "bos_token_id": config.bos_id,
        "eos_token_id": eos if len(eos) > 1 else eos[0],
        "pad_token_id": config.pad_id,
        "do_sample": True,
        "top_k": 64,
        "top_p": 0.95,
        "cache_implementation": "hybrid",
    }


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number
