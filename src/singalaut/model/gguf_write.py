"""A text model as a GGUF file: its tensors, their formats, its metadata and its vocabulary.

Names, metadata and the 1 + w of norms are what llama.cpp expects of `gemma3`. Shapes that it would
run wrongly, because it takes some settings from the number of layers and not from the file, are
refused. The vocabulary arrives as arrays; K-quants are llama.cpp's own business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from singalaut.errors import RecipeError
from singalaut.model.config import Gemma3Config
from singalaut.model.gguf import LAYERS_OF_27B, gguf_name
from singalaut.model.gguf_stream import GgufEntry, write_file
from singalaut.model.hf import parameter_shapes

FORMATS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}  # and llama.cpp's file types
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
    entries = [
        GgufEntry(gguf_name(parameter), shape, tensor_format(parameter, quant))
        for parameter, shape in shapes.items()
    ]

    def add_metadata(writer: Any) -> None:
        writer.add_type("model")
        writer.add_name(name)
        if config.size_name != "custom":
            writer.add_size_label(config.size_name.upper())
        add_licence(writer)
        writer.add_file_type(FORMATS[quant])
        _add_shape(writer, config)
        _add_vocabulary(writer, config, pieces)
        if template:
            writer.add_chat_template(template)

    def stored() -> Iterator[Tensor]:
        for parameter, weight in zip(shapes, weights, strict=True):
            if parameter == EMBEDDING:
                yield weight[: len(pieces[0])]
            else:
                yield weight.float() + 1.0 if parameter.endswith("norm.weight") else weight

    write_file(file, "gemma3", add_metadata, entries, stored())


def add_licence(writer: Any) -> None:
    writer.add_license("gemma")
    writer.add_license_link(LICENCE)


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
