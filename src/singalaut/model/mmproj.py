"""The vision part as a GGUF file of its own: what llama.cpp calls the projector, or `mmproj`, file.

Names, metadata and formats are those of llama.cpp's converter: of all norms only the projector's is
stored as 1 + w, and its matrix stays [in, out] and is half precision unless all is F32. Older files
have the names of the two MLP matrices swapped, which their shapes tell. The text model is the
business of `gguf.py` and `gguf_write.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from singalaut.errors import CheckpointError, RecipeError
from singalaut.model.config import Gemma3Config, VisionConfig
from singalaut.model.gguf import GgufFile
from singalaut.model.gguf_stream import BLOCK, GgufEntry, write_file
from singalaut.model.gguf_write import add_licence
from singalaut.model.hf_vision import vision_shapes

log = logging.getLogger("singalaut")
ARCHITECTURE, PROJECTOR = "clip", "gemma3"
FORMATS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}  # and llama.cpp's file types
USUAL_POOL = 4  # what llama.cpp takes where the file does not say
TOP_NAMES = {
    "tower.positions": "v.position_embd.weight",
    "tower.patches.weight": "v.patch_embd.weight",
    "tower.patches.bias": "v.patch_embd.bias",
    "tower.final_norm.weight": "v.post_ln.weight",
    "tower.final_norm.bias": "v.post_ln.bias",
    "projector.weight": "mm.input_projection.weight",
    "projector.norm.weight": "mm.soft_emb_norm.weight",
}
LAYER_NAMES = {
    "attention_norm": "ln1",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_out",
    "mlp_norm": "ln2",
    "up": "ffn_up",
    "down": "ffn_down",
}
SIZES = {
    "hidden_size": "vision.embedding_length",
    "intermediate_size": "vision.feed_forward_length",
    "num_layers": "vision.block_count",
    "num_heads": "vision.attention.head_count",
    "image_size": "vision.image_size",
    "patch_size": "vision.patch_size",
}
LAYERS = SIZES["num_layers"]
WANTED = {  # of the metadata
    "projector_type": PROJECTOR,
    "use_gelu": True,
    "vision.image_mean": [0.5, 0.5, 0.5],
    "vision.image_std": [0.5, 0.5, 0.5],
}
ALWAYS_F32 = ("tower.positions", "tower.patches.weight")
NORM = "projector.norm.weight"


def mmproj_name(name: str) -> str:
    """The file's name of our `tower.layers.3.up.weight`, for example."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, _, index, rest = name.split(".", 3)
    module, _, leaf = rest.rpartition(".")
    return f"v.blk.{index}.{LAYER_NAMES[module]}.{leaf}"


def is_mmproj(file: GgufFile) -> bool:
    """Whether a GGUF file holds a vision part and no text model."""
    return file.metadata.get("general.architecture") == ARCHITECTURE


def read_vision_config(file: GgufFile) -> VisionConfig:
    """The shape of the vision part; its token ids are in the text model's vocabulary.

    Raises: CheckpointError for a file of another kind of model.
    """

    if not is_mmproj(file):
        raise CheckpointError(
            f"the architecture is `{file.metadata.get('general.architecture')}`, not that of a "
            "projector file",
            where=file.path.name,
            hint="give the `mmproj` file of a Gemma 3 model",
        )
    _check_kind(file)
    counts = {ours: _count(file, theirs) for ours, theirs in SIZES.items()}
    pool = _count(file, "vision.projector.scale_factor", USUAL_POOL)
    eps = file.metadata.get("clip.vision.attention.layer_norm_epsilon", 1e-6)
    config = VisionConfig(**counts, norm_eps=round(eps, 12) if isinstance(eps, float) else 0.0)
    whole = config.patches_per_side % pool == config.hidden_size % config.num_heads == 0
    if not whole or config.norm_eps <= 0:
        raise CheckpointError(
            f"{config.patches_per_side} patches a side do not pool by {pool}, "
            f"{config.num_heads} heads do not divide a width of {config.hidden_size}, or "
            f"{eps} is no epsilon",
            where=file.path.name,
            hint="the file was made wrongly; use another one",
        )
    return replace(config, image_tokens=(config.patches_per_side // pool) ** 2)


def _check_kind(file: GgufFile) -> None:
    """Raise CheckpointError for the projector of another kind of model."""
    found = {key: file.metadata.get(f"clip.{key}") for key in WANTED}
    found["projector_type"] = found["projector_type"] or file.metadata.get(
        "clip.vision.projector_type"
    )
    for key, wanted in WANTED.items():
        if found[key] != wanted:
            raise CheckpointError(
                f"`clip.{key}` is {found[key]}; Gemma 3 has {wanted}",
                where=file.path.name,
                hint="this is the projector of another model",
            )


def _count(file: GgufFile, key: str, default: int | None = None) -> int:
    """A number of the metadata that must be positive; of layers, not more than tensors."""
    value = file.metadata.get(f"clip.{key}", default)
    if not isinstance(value, int) or value < 1 or (key == LAYERS and value > len(file.tensors)):
        raise CheckpointError(
            f"metadata `clip.{key}` is " + ("missing" if value is None else f"{value}"),
            where=file.path.name,
            hint="the download is incomplete or damaged; fetch it again",
        )
    return value


def check_vision(file: GgufFile, config: VisionConfig, text_width: int) -> None:
    """Raise CheckpointError unless every tensor is there and of the right shape."""
    for name, shape in vision_shapes(config, text_width).items():
        tensor = file.tensors.get(_stored_name(file, name, config))
        if tensor is None:
            raise CheckpointError(
                f"tensor `{mmproj_name(name)}` is missing",
                where=file.path.name,
                hint="the download is incomplete or damaged; fetch it again",
            )
        if tensor.shape != shape:
            other = name == "projector.weight" and tensor.shape[0] == shape[0]
            raise CheckpointError(
                f"tensor `{tensor.name}` has shape {list(tensor.shape)}, needed {list(shape)}",
                where=file.path.name,
                hint="text model and projector are of different models"
                if other
                else "the file was made wrongly; use another one",
            )


def read_vision(file: GgufFile, name: str, config: VisionConfig, dtype: torch.dtype) -> Tensor:
    """One parameter of the vision part, by our name for it."""
    place = _stored_name(file, name, config)
    if name == NORM:
        return (file.read(place, torch.float32) - 1.0).to(dtype)
    return file.read(place, dtype)


def write_mmproj(
    file: Path, config: Gemma3Config, quant: str, weights: Iterator[Tensor], *, name: str
) -> None:
    """Write the vision part of `config`, whose weights arrive in the order of `vision_shapes`.

    `quant` is one of `FORMATS`. Vectors, patches and positions are always F32; rows that Q8_0
    cannot cut into blocks are F16. `file` appears only when complete.
    """
    vision = config.vision
    assert vision is not None
    if vision.intermediate_size == vision.hidden_size:
        raise RecipeError(
            f"`vision_config.intermediate_size` and `hidden_size` are both {vision.hidden_size}: "
            "llama.cpp would take the MLP's matrices for each other",
            where="config.json",
            hint="write a Hugging Face directory instead",
        )
    shapes = vision_shapes(vision, config.hidden_size)
    entries = [
        GgufEntry(mmproj_name(parameter), shape, tensor_format(parameter, shape, quant))
        for parameter, shape in shapes.items()
    ]

    def add_metadata(writer: Any) -> None:
        writer.add_type("mmproj")
        writer.add_name(name)
        add_licence(writer)
        writer.add_file_type(FORMATS[quant])
        _add_shape(writer, vision, config.hidden_size)

    def stored() -> Iterator[Tensor]:
        rounded = 0
        for entry, parameter, weight in zip(entries, shapes, weights, strict=True):
            if entry.format == "F16" and weight.dtype == torch.bfloat16:
                rounded += int((weight.half().to(weight.dtype) != weight).sum())
            yield weight.float() + 1.0 if parameter == NORM else weight
        if rounded:
            share = 100 * rounded / vision.num_parameters
            log.info("%d weights (%.2g %%) are too small for F16 and were rounded", rounded, share)

    write_file(file, ARCHITECTURE, add_metadata, entries, stored())


def tensor_format(parameter: str, shape: tuple[int, ...], quant: str) -> str:
    """The block format of one parameter in a file of format `quant`."""
    if len(shape) == 1 or parameter in ALWAYS_F32 or quant == "F32":
        return "F32"
    if parameter == "projector.weight" or (quant == "Q8_0" and shape[-1] % BLOCK):
        return "F16"
    return quant


def _add_shape(writer: Any, vision: VisionConfig, text_width: int) -> None:
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(PROJECTOR)
    writer.add_vision_projection_dim(text_width)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_layers)
    writer.add_vision_head_count(vision.num_heads)
    writer.add_vision_attention_layernorm_eps(vision.norm_eps)
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    if vision.pool_size != USUAL_POOL:
        writer.add_vision_projector_scale_factor(vision.pool_size)


def _stored_name(file: GgufFile, name: str, config: VisionConfig) -> str:
    """Where a parameter lies in a file that may have the MLP's two matrices swapped."""
    down = file.tensors.get("v.blk.0.ffn_down.weight")
    swapped = down is not None and down.shape == (config.intermediate_size, config.hidden_size)
    place = mmproj_name(name)
    if not swapped or config.intermediate_size == config.hidden_size:
        return place
    if ".ffn_up." in place:
        return place.replace("ffn_up", "ffn_down")
    return place.replace("ffn_down", "ffn_up")
