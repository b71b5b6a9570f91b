"""Facts about a checkpoint: sizes, dtypes, memory by context and batch, tokenizer checks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from singalaut.checkpoint.adapters import base_name, is_adapter
from singalaut.checkpoint.sources import beside, gguf_pieces
from singalaut.errors import CheckpointError
from singalaut.model.config import Gemma3Config, VisionConfig
from singalaut.model.gguf import GgufFile, check_shapes, config_from_gguf
from singalaut.model.hf import open_weights, read_config
from singalaut.model.lora import WEIGHTS, read_settings
from singalaut.model.mmproj import check_vision, is_mmproj, read_vision_config
from singalaut.model.tensors import TensorReader
from singalaut.text.template import read_template
from singalaut.text.tokenizer import Tokenizer
from singalaut.text.vocabulary import END_OF_TURN, NAMES

CONTEXTS = (2_048, 8_192, 32_768, 131_072)
BATCHES = (1, 8, 32)
NUMBER_BYTES = 2  # of a weight or a cache entry in bfloat16


def inspect(source: Path) -> dict[str, Any]:
    """What a GGUF file, a Hugging Face directory or a PEFT adapter holds; reads headers only."""
    if source.is_dir():
        return _adapter_facts(source) if is_adapter(source) else _directory_facts(source)
    file = GgufFile(source)
    if is_mmproj(file):
        width = int(file.metadata.get("clip.vision.projection_dim", 0))
        return {**_gguf_facts(file), **_projector_facts(file, width), "text_hidden_size": width}
    config = config_from_gguf(file)
    check_shapes(file, config)
    projector = beside(source)
    return {
        **_gguf_facts(file),
        **_shape_facts(config),
        "tokenizer": _gguf_tokenizer_facts(file, config),
        "projector_file": projector.name if projector else None,
        **(_projector_facts(GgufFile(projector), config.hidden_size) if projector else {}),
    }


def memory_rows(
    config: Gemma3Config, contexts: Sequence[int] = CONTEXTS, batches: Sequence[int] = BATCHES
) -> list[dict[str, int | float]]:
    """Memory in bfloat16 by context: of one sequence's cache, and in all by sequences at once.

    All is weights and caches, each sequence as long as the context; activations come on top.
    """
    fitting = [context for context in contexts if context <= config.max_positions]
    weights = NUMBER_BYTES * (config.num_parameters + config.num_vision_parameters)
    rows = []
    for context in fitting or [config.max_positions]:
        cache = cache_bytes(config, context)
        row: dict[str, int | float] = {
            "context_tokens": context,
            "cache_mib": round(cache / 2**20, 1),
        }
        for batch in batches:
            row[f"batch_{batch}_gib"] = round((weights + batch * cache) / 2**30, 2)
        rows.append(row)
    return rows


def cache_bytes(config: Gemma3Config, context: int) -> int:
    """Bytes of keys and values of one sequence; window layers keep at most their window."""
    per_token = 2 * config.num_kv_heads * config.head_dim * NUMBER_BYTES
    num_global = sum(config.is_global(i) for i in range(config.num_layers))
    kept = num_global * context + (config.num_layers - num_global) * min(context, config.window)
    return per_token * kept


def _projector_facts(file: GgufFile, text_width: int) -> dict[str, Any]:
    """Of a projector file, whose tensors are checked against what it says of itself."""
    vision = read_vision_config(file)
    check_vision(file, vision, text_width)
    return _vision_facts(vision, text_width)


def _adapter_facts(folder: Path) -> dict[str, Any]:
    settings = read_settings(folder)
    if not (file := folder / WEIGHTS).exists():
        raise CheckpointError(
            f"found no `{WEIGHTS}`",
            where=folder,
            hint="give an adapter directory with safetensors weights",
        )
    with TensorReader([file]) as reader:
        dtypes = Counter(reader.dtype(name) for name in reader)
        parameters = sum(math.prod(reader.shape(name)) for name in reader)
    targets = settings.get("target_modules")
    return {
        "format": "PEFT adapter",
        "files": 1,
        "bytes": file.stat().st_size,
        "dtypes": dict(dtypes.most_common()),
        "parameters": parameters,
        "base": base_name(folder),
        "kind": str(settings.get("peft_type")),
        "rank": settings.get("r"),
        "alpha": settings.get("lora_alpha"),
        "modules": ", ".join(sorted(targets)) if isinstance(targets, list) else targets,
    }


def _directory_facts(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    reader, places = open_weights(folder, config)
    with reader:
        weights = {reader.file(place) for place in places.values()}
        dtypes = Counter(reader.stored_as(place) for place in places.values())
    return {
        "format": "safetensors",
        "files": len(weights),
        "bytes": sum(file.stat().st_size for file in weights),
        "dtypes": dict(dtypes.most_common()),
        **_shape_facts(config),
        "tokenizer": _tokenizer_facts(folder, config),
    }


def _gguf_facts(file: GgufFile) -> dict[str, Any]:
    from gguf import GGMLQuantizationType

    dtypes = Counter(GGMLQuantizationType(t.type).name for t in file.tensors.values())
    return {
        "format": "gguf",
        "files": 1,
        "bytes": file.path.stat().st_size,
        "dtypes": dict(dtypes.most_common()),
    }


def _shape_facts(config: Gemma3Config) -> dict[str, Any]:
    return {
        "size": config.size_name,
        "parameters": config.num_parameters,
        **(_vision_facts(config.vision, config.hidden_size) if config.vision else {}),
        "embedding_parameters": config.vocab_size * config.hidden_size,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "heads": f"{config.num_heads} query, {config.num_kv_heads} key, width {config.head_dim}",
        "window_tokens": config.window,
        "context_tokens": config.max_positions,
        "rope_factor": config.rope_factor,
        "vocabulary_rows": config.vocab_size,
        "memory_bfloat16": memory_rows(config),
    }


def _vision_facts(vision: VisionConfig, text_width: int) -> dict[str, Any]:
    """Of a vision part; `parameters` are those of the text decoder."""
    return {
        "vision_parameters": vision.num_parameters,
        "projector_parameters": vision.hidden_size * (text_width + 1),
        "image_pixels": f"{vision.image_size} × {vision.image_size}",
        "tokens_per_image": vision.image_tokens,
    }


def _tokenizer_facts(folder: Path, config: Gemma3Config) -> dict[str, Any]:
    tokenizer = Tokenizer.load(folder)
    return {
        "vocabulary": tokenizer.vocab_size,
        "rows_beyond_vocabulary": config.vocab_size - tokenizer.vocab_size,
        "bos_agrees": tokenizer.bos_id == config.bos_id,
        "stops_at_end_of_turn": tokenizer.end_of_turn_id in config.eos_ids,
        **_image_token_facts(config, tokenizer.image_ids),
        "chat_template": read_template(folder) is not None,
    }


def _gguf_tokenizer_facts(file: GgufFile, config: Gemma3Config) -> dict[str, Any]:
    tokens = gguf_pieces(file).tokens
    ids = {token: index for index, token in enumerate(tokens)}
    return {
        "vocabulary": len(tokens),
        "rows_beyond_vocabulary": config.vocab_size - len(tokens),
        "bos_agrees": ids.get(NAMES["bos_token"]) == config.bos_id,
        "stops_at_end_of_turn": ids.get(END_OF_TURN) in config.eos_ids,
        "chat_template": "tokenizer.chat_template" in file.metadata,
    }


def _image_token_facts(config: Gemma3Config, found: tuple[int, int, int] | None) -> dict[str, bool]:
    if config.vision is None:
        return {}
    vision = config.vision
    return {"image_tokens_agree": found == (vision.start_id, vision.end_id, vision.image_id)}
