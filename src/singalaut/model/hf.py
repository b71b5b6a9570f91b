"""Hugging Face directories: names and shapes in and out, weights streamed.

Reads the text decoder from the text-only layout, the old hub layout of the multimodal models
(`language_model.model.…`) and the newer in-memory one (`model.language_model.…`). Writes the
text-only layout with a `config.json` that old and new readers understand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from singalaut.artifact import write_json
from singalaut.errors import CheckpointError
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.tensors import TensorReader, TensorSpec, write_shards

TOP_NAMES = {"embedding": "embed_tokens", "final_norm": "norm"}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "mlp_post_norm": "post_feedforward_layernorm",
}
PREFIXES = ("model.", "language_model.model.", "model.language_model.")
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def hf_name(name: str) -> str:
    """Our parameter name in the text-only layout, `layers.3.mlp.up.weight` for example."""
    module, _, leaf = name.rpartition(".")
    if module in TOP_NAMES:
        return f"model.{TOP_NAMES[module]}.{leaf}"
    _, index, rest = module.split(".", 2)
    return f"model.layers.{index}.{LAYER_NAMES[rest]}.{leaf}"


def parameter_shapes(config: Gemma3Config) -> dict[str, tuple[int, ...]]:
    """Every parameter of the network, by our names, in the network's order."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (width,),
        "attention.query": (queries, width),
        "attention.key": (keys, width),
        "attention.value": (keys, width),
        "attention.output": (width, queries),
        "attention.query_norm": (config.head_dim,),
        "attention.key_norm": (config.head_dim,),
        "attention_post_norm": (width,),
        "mlp_norm": (width,),
        "mlp.gate": (inner, width),
        "mlp.up": (inner, width),
        "mlp.down": (width, inner),
        "mlp_post_norm": (width,),
    }
    return {
        "embedding.weight": (config.vocab_size, width),
        **{
            f"layers.{index}.{name}.weight": shape
            for index in range(config.num_layers)
            for name, shape in layer.items()
        },
        "final_norm.weight": (width,),
    }


def read_config(folder: Path) -> Gemma3Config:
    """The shape that `config.json` describes. Raises CheckpointError for what we cannot run."""
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            "no `config.json` found", where=folder, hint="give a Hugging Face model directory"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"not valid JSON: {error}", where=file) from error
    return config_from_hf(raw, where=file)


def config_from_hf(raw: dict[str, Any], where: Path | str) -> Gemma3Config:
    """Translate a `gemma3` or `gemma3_text` configuration, in either dialect."""
    kind = raw.get("model_type")
    if kind not in ("gemma3", "gemma3_text"):
        raise CheckpointError(
            f"`model_type` is `{kind}`; only `gemma3` and `gemma3_text` are supported",
            where=where,
            hint="give a Gemma 3 checkpoint",
        )
    text = raw.get("text_config", raw) if kind == "gemma3" else raw
    _refuse_unsupported(text, where)
    rope = text.get("rope_parameters") or {}
    full, sliding = rope.get("full_attention", {}), rope.get("sliding_attention", {})
    scaling = text.get("rope_scaling") or {}
    eos = raw.get("eos_token_id", text.get("eos_token_id", 1))
    try:
        config = Gemma3Config(
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_layers=text["num_hidden_layers"],
            num_heads=text["num_attention_heads"],
            num_kv_heads=text["num_key_value_heads"],
            head_dim=text["head_dim"],
            query_scalar=float(text["query_pre_attn_scalar"]),
            window=text["sliding_window"],
            max_positions=text["max_position_embeddings"],
            vocab_size=text["vocab_size"],
            rope_factor=float(full.get("factor", scaling.get("factor", 1.0))),
            rope_theta=float(full.get("rope_theta", text.get("rope_theta", 1e6))),
            rope_local_theta=float(
                sliding.get("rope_theta", text.get("rope_local_base_freq", 1e4))
            ),
            global_every=_global_every(text, where),
            norm_eps=text.get("rms_norm_eps", 1e-6),
            pad_id=text.get("pad_token_id") or 0,
            bos_id=text.get("bos_token_id") or 2,
            eos_ids=tuple(eos) if isinstance(eos, list) else (eos,),
        )
    except KeyError as error:
        raise CheckpointError(
            f"`{error.args[0]}` is missing",
            where=where,
            hint="Gemma 3 checkpoints state every shape; take `config.json` from the original",
        ) from None
    return config


def config_to_hf(config: Gemma3Config, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` of a text-only checkpoint, with the keys of old and of new readers."""
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


def open_weights(folder: Path, config: Gemma3Config) -> tuple[TensorReader, dict[str, str]]:
    """The reader of a directory's weights, and where each of our parameters lies in it.

    Every parameter is there and has the shape that `config` asks for, else CheckpointError.
    """
    reader = TensorReader.open(folder)
    prefix = next((p for p in PREFIXES if f"{p}embed_tokens.weight" in reader), None)
    if prefix is None:
        first = next(iter(reader), "no tensor at all")
        raise CheckpointError(
            f"`model.embed_tokens.weight` is missing (the first tensor is `{first}`)",
            where=folder,
            hint="this is not a Gemma 3 checkpoint in a layout of `transformers`",
        )
    if config.num_layers > (found := sum(1 for _ in reader)):
        raise CheckpointError(
            f"`config.json` says {config.num_layers} layers, but there are only {found} tensors",
            where=folder,
            hint="`config.json` and weights are of different models",
        )
    places = {}
    for name, shape in parameter_shapes(config).items():
        place = prefix + hf_name(name).removeprefix("model.")
        if place not in reader:
            raise CheckpointError(
                f"tensor `{place}` is missing",
                where=folder,
                hint="a shard is missing or `config.json` belongs to another model",
            )
        if reader.shape(place) != shape:
            raise CheckpointError(
                f"tensor `{place}` has shape {list(reader.shape(place))}, "
                f"`config.json` asks for {list(shape)}",
                where=reader.file(place).name,
                hint="`config.json` and weights are of different models",
            )
        if reader.dtype(place) not in ("F32", "BF16", "F16"):
            raise CheckpointError(
                f"tensor `{place}` is {reader.dtype(place)}; F32, BF16 and F16 can be read",
                where=reader.file(place).name,
                hint="convert the quantised checkpoint to bfloat16 first",
            )
        places[name] = place
    return reader, places


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Gemma3:
    """The network with the weights of a Hugging Face directory, in memory of its own."""
    if dtype not in DTYPES.values():
        raise CheckpointError(
            f"Gemma 3 cannot run in {str(dtype).removeprefix('torch.')}: its residual stream "
            "overflows float16",
            hint="use bfloat16 or float32",
        )
    config = read_config(folder)
    with torch.device("meta"):
        model = Gemma3(config)
    reader, places = open_weights(folder, config)
    with reader:
        for name, place in places.items():
            weight = reader.read(place)
            set_parameter(model, name, weight.to(device=device, dtype=dtype, copy=True))
    return model.eval()


def set_parameter(model: nn.Module, name: str, weight: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(weight, requires_grad=False))


def save_model(model: Gemma3, folder: Path, dtype: torch.dtype) -> None:
    """Write `config.json`, `generation_config.json` and the weights of a network in memory."""
    names = list(parameter_shapes(model.config))
    state = model.state_dict()
    save_weights(folder, model.config, dtype, (state[name] for name in names))


def save_weights(
    folder: Path, config: Gemma3Config, dtype: torch.dtype, weights: Iterator[Tensor]
) -> None:
    """Write a model whose weights arrive as a stream in the order of `parameter_shapes`."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = [TensorSpec(hf_name(n), s, dtype) for n, s in parameter_shapes(config).items()]
    write_shards(folder, specs, (weight.to(dtype) for weight in weights))
    write_json(folder / "generation_config.json", _generation_config(config))
    write_json(folder / "config.json", config_to_hf(config, dtype))


def copy_companions(source: Path, target: Path) -> None:
    """Copy what belongs to a model but is neither weights nor configuration: tokenizer, notices."""
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype to write a descendant of this checkpoint in: its own, but never float16."""
    with TensorReader.open(folder) as reader:
        found = {reader.dtype(name) for name in reader}
    return torch.float32 if found == {"F32"} else torch.bfloat16


def _generation_config(config: Gemma3Config) -> dict[str, Any]:
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


def _global_every(text: dict[str, Any], where: Path | str) -> int:
    """The distance of global layers; a layout that is not regular is refused."""
    kinds = text.get("layer_types")
    if not kinds:
        return text.get("sliding_window_pattern", 6)
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
    wanted = [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(len(kinds))
    ]
    if kinds != wanted or len(kinds) != text.get("num_hidden_layers"):
        raise CheckpointError(
            "`layer_types` is not one global layer after a fixed number of window layers",
            where=where,
            hint="only Gemma 3's regular pattern is supported",
        )
    return every


def _refuse_unsupported(text: dict[str, Any], where: Path | str) -> None:
    """Settings that Gemma 3 never uses and that would silently change the result."""
    wanted = {
        "hidden_activation": (None, "gelu_pytorch_tanh"),
        "attention_bias": (None, False),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "use_bidirectional_attention": (None, False),
        "tie_word_embeddings": (None, True),
    }
    for key, allowed in wanted.items():
        if text.get(key) not in allowed:
            raise CheckpointError(
                f"`{key}` is {json.dumps(text[key])}; Gemma 3 has {json.dumps(allowed[-1])}",
                where=where,
                hint="this checkpoint is of another architecture",
            )


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number
