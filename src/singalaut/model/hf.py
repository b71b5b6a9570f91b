"""Hugging Face directories: names and shapes in and out, weights streamed.

Reads the text-only layout, the old hub layout of the multimodal models (`language_model.model.…`)
and the newer in-memory one (`model.language_model.…`). Writes the text-only layout, and the old
hub layout for a model that sees, with a `config.json` that old and new readers understand. What
concerns the vision part alone is in `hf_vision.py`, `config.json` in `hf_config.py`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from singalaut.artifact import write_atomic, write_json
from singalaut.errors import CheckpointError
from singalaut.licences import GEMMA_NOTICE
from singalaut.model.compressed import CompressedReader
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf_config import (
    config_from_hf,
    config_to_hf,
    generation_config,
    read_config,
)
from singalaut.model.hf_vision import (
    PROJECTOR_NAMES,
    PROJECTOR_PREFIXES,
    TOWER_PREFIXES,
    tower_name,
    vision_shapes,
    write_processor,
)
from singalaut.model.shard import WHOLE, Shard
from singalaut.model.tensors import TensorReader, TensorSpec, write_shards

__all__ = ["config_from_hf", "config_to_hf", "load_model", "read_config", "save_model"]

log = logging.getLogger("singalaut")

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
TOWER, PROJECTOR = "vision.tower.", "vision.projector."
# what `config.json` calls the sides of our parameters, to say which of them is wrong
FIELDS = {
    "embedding": ("vocab_size", "hidden_size"),
    "attention.query": ("num_attention_heads × head_dim", "hidden_size"),
    "attention.key": ("num_key_value_heads × head_dim", "hidden_size"),
    "attention.value": ("num_key_value_heads × head_dim", "hidden_size"),
    "attention.output": ("hidden_size", "num_attention_heads × head_dim"),
    "attention.query_norm": ("head_dim",),
    "attention.key_norm": ("head_dim",),
    "mlp.gate": ("intermediate_size", "hidden_size"),
    "mlp.up": ("intermediate_size", "hidden_size"),
    "mlp.down": ("hidden_size", "intermediate_size"),
}
VISION_FIELDS = {
    "tower.patches": ("hidden_size", "num_channels", "patch_size", "patch_size"),
    "tower.positions": ("(image_size / patch_size)²", "hidden_size"),
    "up": ("intermediate_size", "hidden_size"),
    "down": ("hidden_size", "intermediate_size"),
    "projector.weight": ("hidden_size", "text_config.hidden_size"),
}
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
# a second name of the embedding, and tables that older files hold
REDUNDANT = ("lm_head.weight", "inv_freq", "position_ids")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def hf_name(name: str, config: Gemma3Config | None = None) -> str:
    """The name of our parameter `layers.3.mlp.up.weight`, for example, in the layout we write.

    That is the text-only one, or the old hub layout for a `config` with a vision part.
    """
    if name.startswith(TOWER):
        return TOWER_PREFIXES[0] + tower_name(name.removeprefix(TOWER))
    if name.startswith(PROJECTOR):
        return PROJECTOR_PREFIXES[0] + PROJECTOR_NAMES[name.removeprefix(PROJECTOR)]
    if config is not None and config.vision is not None:
        return "language_model." + hf_name(name)
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
    vision = vision_shapes(config.vision, width) if config.vision else {}
    return {
        "embedding.weight": (config.vocab_size, width),
        **{
            f"layers.{index}.{name}.weight": shape
            for index in range(config.num_layers)
            for name, shape in layer.items()
        },
        "final_norm.weight": (width,),
        **{f"vision.{name}": shape for name, shape in vision.items()},
    }


def open_weights(folder: Path, config: Gemma3Config) -> tuple[TensorReader, dict[str, str]]:
    """The reader of a directory's weights, and where each of our parameters lies in it."""
    reader = CompressedReader.open(folder)
    return reader, find_weights(reader, folder, config)


def find_weights(reader: TensorReader, folder: Path, config: Gemma3Config) -> dict[str, str]:
    """Where each of our parameters lies in the weights of a directory.

    Every parameter is there and has the shape that `config` asks for, else CheckpointError.
    """
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
    towers = [p for p in TOWER_PREFIXES if f"{p}post_layernorm.weight" in reader]
    projectors = [p for p in PROJECTOR_PREFIXES if f"{p}{PROJECTOR_NAMES['weight']}" in reader]
    prefixes = {"": prefix, TOWER: [*towers, ""][0], PROJECTOR: [*projectors, ""][0]}
    if config.vision and not (towers and projectors):
        raise CheckpointError(
            "`config.json` has a `vision_config`, but there are no weights of a vision tower",
            where=folder,
            hint="take `vision_config` out and set `model_type` to `gemma3_text`, or fetch the "
            "whole checkpoint",
        )
    places = {}
    for name, shape in parameter_shapes(config).items():
        places[name] = place = _place(name, prefixes)
        _check_tensor(reader, folder, name, place, shape)
    _check_depth(reader, config, prefixes)
    _report_unread(reader, folder, config, places)
    return places


def load_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    vision: bool = True,
    shard: Shard = WHOLE,
) -> Gemma3:
    """The network with the weights of a Hugging Face directory, in memory of its own.

    With the vision part if the checkpoint has one, unless `vision` is off. Of a `shard` no more is
    read than its weights; the vision part belongs to the first.
    """
    if dtype not in DTYPES.values():
        raise CheckpointError(
            f"Gemma 3 cannot run in {str(dtype).removeprefix('torch.')}: its residual stream "
            "overflows float16",
            hint="use bfloat16 or float32",
        )
    config = read_config(folder, vision=vision)
    with torch.device("meta"):
        model = Gemma3(shard.of_config(config))
    if shard.rank:
        model.vision = None
    reader, places = open_weights(folder, config)
    with reader:
        names = {
            place: name
            for name, place in places.items()
            if not (shard.rank and name.startswith("vision."))
        }
        for place, weight in reader.stream(names):
            part = shard.of_weight(names[place], weight, config)
            part = part.to(device=device, dtype=dtype, copy=True)
            set_parameter(model, names[place], part.contiguous())
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
    shapes = parameter_shapes(config)
    specs = [TensorSpec(hf_name(name, config), shape, dtype) for name, shape in shapes.items()]
    write_shards(folder, specs, (weight.to(dtype) for weight in weights))
    write_settings(folder, config, dtype)


def write_settings(folder: Path, config: Gemma3Config, dtype: torch.dtype) -> None:
    """Write what a model directory holds beside weights and tokenizer; `config.json` comes last."""
    write_json(folder / "generation_config.json", generation_config(config))
    if config.vision:
        write_processor(folder, config.vision)
    (folder / "NOTICE").write_text(f"{GEMMA_NOTICE}\n", encoding="utf-8")
    write_json(folder / "config.json", config_to_hf(config, dtype))


def copy_companions(source: Path, target: Path) -> None:
    """Copy what belongs to a model but is neither weights nor configuration: tokenizer, notices.

    The chat template is then in both places where readers look for it, if the source has one.
    """
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
    template = _template_of(source)
    if template is not None and (settings := target / "tokenizer_config.json").exists():
        write_atomic(target / "chat_template.jinja", template.encode())
        write_json(settings, {**json.loads(settings.read_bytes()), "chat_template": template})


def _template_of(folder: Path) -> str | None:
    """The template of a directory, from the file that newer readers take or from the older place.

    Older files may hold several by name; these are copied as they are.
    """
    alone, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if alone.exists():
            return alone.read_text("utf-8")
        found = json.loads(settings.read_bytes()).get("chat_template")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the chat template cannot be read: {error}",
            where=settings,
            hint="fetch the tokenizer's files again",
        ) from error
    return found if isinstance(found, str) else None


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype to write a descendant of this checkpoint in: its own, but never float16."""
    with CompressedReader.open(folder) as reader:
        found = {reader.dtype(name) for name in reader}
    return torch.float32 if found == {"F32"} else torch.bfloat16


def _place(name: str, prefixes: dict[str, str]) -> str:
    """Where a parameter lies in a checkpoint whose parts have these prefixes."""
    if name.startswith(TOWER):
        return prefixes[TOWER] + tower_name(name.removeprefix(TOWER))
    if name.startswith(PROJECTOR):
        return prefixes[PROJECTOR] + PROJECTOR_NAMES[name.removeprefix(PROJECTOR)]
    return prefixes[""] + hf_name(name).removeprefix("model.")


def _check_tensor(
    reader: TensorReader, folder: Path, name: str, place: str, shape: tuple[int, ...]
) -> None:
    """Raise CheckpointError unless a tensor is there, of the right shape, in a readable dtype."""
    if place not in reader:
        raise CheckpointError(
            f"tensor `{place}` is missing",
            where=folder,
            hint="a shard is missing or `config.json` belongs to another model",
        )
    if (found := reader.shape(place)) != shape:
        field, wanted, has = _wrong_side(name, shape, found)
        raise CheckpointError(
            f"tensor `{place}` has shape {list(found)}, `config.json` asks for {list(shape)}",
            where=reader.file(place).name,
            hint=f"`{field}` is {wanted} in `config.json`, {has} in the weights: they are of "
            "different models",
        )
    if reader.dtype(place) not in ("F32", "BF16", "F16"):
        raise CheckpointError(
            f"tensor `{place}` is {reader.dtype(place)}; F32, BF16 and F16 can be read",
            where=reader.file(place).name,
            hint="convert the quantised checkpoint to bfloat16 first",
        )


def _wrong_side(
    name: str, shape: tuple[int, ...], found: tuple[int, ...]
) -> tuple[str, int | str, int | str]:
    """The field of `config.json` that a misshapen tensor contradicts, and the two sizes."""
    if len(shape) != len(found):
        return "the number of dimensions", len(shape), len(found)
    side = next(i for i, (a, b) in enumerate(zip(shape, found, strict=True)) if a != b)
    table, prefix = (VISION_FIELDS, "vision_config.") if name.startswith("vision") else (FIELDS, "")
    fields = next(
        (fields for key, fields in table.items() if f".{key}." in f".{name}."), ("hidden_size",)
    )
    field = fields[side] if side < len(fields) else "hidden_size"
    return (field if "text_config" in field else prefix + field), shape[side], found[side]


def _check_depth(reader: TensorReader, config: Gemma3Config, prefixes: dict[str, str]) -> None:
    """Raise CheckpointError if there are weights of layers that `config.json` does not count."""
    deeper = {f"{prefixes['']}layers.{config.num_layers}.": ("", config.num_layers)}
    if config.vision:
        count = config.vision.num_layers
        deeper[f"{prefixes[TOWER]}encoder.layers.{count}."] = ("vision_config.", count)
    for name in reader:
        for start, (part, count) in deeper.items():
            if name.startswith(start):
                raise CheckpointError(
                    f"`{part}num_hidden_layers` is {count}, but there is a tensor `{name}`",
                    where=reader.file(name).name,
                    hint="`config.json` and weights are of different models",
                )


def _report_unread(
    reader: TensorReader, folder: Path, config: Gemma3Config, places: dict[str, str]
) -> None:
    """Warn of tensors that have no place in the network: what they did will be missing.

    Not of a tied `lm_head`, of computed tables, nor of a vision part that is not asked for.
    """
    ignored = () if config.vision else (*TOWER_PREFIXES, *PROJECTOR_PREFIXES)
    known = set(places.values())
    unread = sorted(
        name
        for name in reader
        if name not in known and not name.startswith(ignored) and not name.endswith(REDUNDANT)
    )
    if unread:
        names = ", ".join(f"`{name}`" for name in unread[:3]) + (", …" if len(unread) > 3 else "")
        log.warning(
            "%s: not read, as Gemma 3 has no such weights: %s (%d)", folder.name, names, len(unread)
        )
