"""GGUF files written: header and block formats by the `gguf` library, weights as a stream.

Names, metadata and the 1 + w of norms are what llama.cpp expects of `gemma3`. Shapes that it would
run wrongly, because it takes some settings from the number of layers and not from the file, are
refused. The vocabulary arrives as arrays; K-quants are llama.cpp's own business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from singalaut.errors import CheckpointError, RecipeError, from_os_error
from singalaut.model.config import Gemma3Config
from singalaut.model.gguf import CHUNK_ELEMENTS, LAYERS_OF_27B, gguf_name
from singalaut.model.hf import parameter_shapes

FORMATS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}  # and llama.cpp's file types
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EMBEDDING = "embedding.weight"
LICENCE = "https://ai.google.dev/gemma/terms"


def write_gguf(
    file: Path,
    config: Gemma3Config,
    quant: str,
    weights: Iterator[Tensor],
    pieces: tuple[Sequence[str], Sequence[float], Sequence[int]],
    *,
    name: str,
    template: str | None = None,
) -> None:
    """Write a text model whose weights arrive in the order of `parameter_shapes`.

    `quant` is one of `FORMATS`. Norms are always F32, and the embedding, which is also the output
    layer, is Q8_0 where the rest is Q4_0. `pieces` are tokens, scores and types; embedding rows
    beyond them are dropped. `file` appears only when complete.
    Raises: RecipeError for a shape that the format or llama.cpp cannot have, CheckpointError for
    weights that the format cannot hold.
    """
    refuse_custom_shapes(config)
    shapes = parameter_shapes(config)
    shapes[EMBEDDING] = (len(pieces[0]), config.hidden_size)
    formats = {parameter: tensor_format(parameter, quant) for parameter in shapes}
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        _write_header(temporary, config, quant, shapes, formats, pieces, name, template)
        with temporary.open("ab") as out:
            for parameter, weight in zip(shapes, weights, strict=True):
                out.write(b"\0" * (-out.tell() % 32))
                rows = weight[: shapes[parameter][0]] if parameter == EMBEDDING else weight
                assert tuple(rows.shape) == shapes[parameter], parameter
                for block in _blocks(parameter, rows, formats[parameter]):
                    out.write(block.data)
            out.write(b"\0" * (-out.tell() % 32))
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except OSError as error:
        raise from_os_error(error) from error
    finally:
        temporary.unlink(missing_ok=True)


def refuse_custom_shapes(config: Gemma3Config) -> None:
    """Raises RecipeError for what llama.cpp does not take from the file but assumes."""
    is_27b = config.num_layers == LAYERS_OF_27B
    scalar = config.hidden_size / config.num_heads if is_27b else config.head_dim
    layers = range(config.num_layers)
    for wrong, reason in (
        (
            config.query_scalar != scalar,
            f"queries are scaled by {config.query_scalar:g}^-1/2, but llama.cpp scales those of "
            f"every model with {config.num_layers} layers by {scalar:g}^-1/2",
        ),
        (
            any(config.is_global(i) != ((i + 1) % 6 == 0) for i in layers),
            f"every layer number {config.global_every} is global, but llama.cpp takes every 6th",
        ),
        (
            config.rope_local_theta != 1e4,
            f"window layers have RoPE base {config.rope_local_theta:g}, but llama.cpp takes 10000",
        ),
    ):
        if wrong:
            raise RecipeError(
                f"this shape cannot be a GGUF file: {reason}",
                where="config.json",
                hint="write a Hugging Face directory instead",
            )


def tensor_format(parameter: str, quant: str) -> str:
    """The block format of one parameter in a file of format `quant`."""
    if parameter.endswith("norm.weight"):
        return "F32"
    return "Q8_0" if quant == "Q4_0" and parameter == EMBEDDING else quant


def _write_header(
    file: Path,
    config: Gemma3Config,
    quant: str,
    shapes: dict[str, tuple[int, ...]],
    formats: dict[str, str],
    pieces: tuple[Sequence[str], Sequence[float], Sequence[int]],
    name: str,
    template: str | None,
) -> None:
    """Everything before the first weight."""
    import gguf

    writer = gguf.GGUFWriter(file, "gemma3")
    try:
        writer.add_type("model")
        writer.add_name(name)
        if config.size_name != "custom":
            writer.add_size_label(config.size_name.upper())
        writer.add_license("gemma")
        writer.add_license_link(LICENCE)
        writer.add_file_type(FORMATS[quant])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, config)
        _add_vocabulary(writer, config, pieces)
        if template:
            writer.add_chat_template(template)
        for parameter, shape in shapes.items():
            kind = gguf.GGMLQuantizationType[formats[parameter]]
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            if shape[-1] % block:
                raise RecipeError(
                    f"`{gguf_name(parameter)}` has rows of {shape[-1]} weights, which {kind.name} "
                    f"cannot cut into blocks of {block}",
                    where="config.json",
                    hint="use BF16, F16 or F32",
                )
            size = int(np.prod(shape)) // block * block_bytes
            writer.add_tensor_info(gguf_name(parameter), shape, np.dtype("f4"), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _add_shape(writer: Any, config: Gemma3Config) -> None:
    import gguf

    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_sliding_window(config.window)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_factor)


def _add_vocabulary(
    writer: Any,
    config: Gemma3Config,
    pieces: tuple[Sequence[str], Sequence[float], Sequence[int]],
) -> None:
    """The tokenizer; of several tokens that end an answer the second is the end of a turn."""
    tokens, scores, types = pieces
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(tokens))
    writer.add_token_scores(list(scores))
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(config.bos_id)
    writer.add_eos_token_id(config.eos_ids[0])
    if len(config.eos_ids) > 1:
        writer.add_eot_token_id(config.eos_ids[1])
    if "<unk>" in tokens:
        writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_pad_token_id(config.pad_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _blocks(parameter: str, weight: Tensor, quant: str) -> Iterator[np.ndarray]:
    """The bytes of a tensor, in pieces that bound the memory of large ones."""
    from gguf import GGMLQuantizationType, quantize

    rows = weight.detach().reshape(-1, weight.shape[-1])
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        values = rows[start : start + step].cpu()
        if parameter.endswith("norm.weight"):
            values = values.float() + 1.0
        values = values.to(FLOATS.get(quant, torch.float32))
        if not torch.isfinite(values).all():
            whole = torch.isfinite(rows[start : start + step]).all()
            raise CheckpointError(
                f"`{parameter}` holds values that are not finite"
                + (f" in {quant}, such as {rows.abs().max().item():g}" if whole else ""),
                where=gguf_name(parameter),
                hint="use BF16 or F32"
                if whole
                else "the training has diverged; use a checkpoint from before",
            )
        if quant in FLOATS:
            yield values.contiguous().view(torch.uint8).numpy()
        else:
            yield quantize(values.numpy(), GGMLQuantizationType[quant])
