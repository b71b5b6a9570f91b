"""Facts about a checkpoint: sizes, dtypes, memory per context, tokenizer checks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from singalaut.model.config import Gemma3Config
from singalaut.model.gguf import GgufFile, config_from_gguf
from singalaut.model.hf import open_weights, read_config
from singalaut.text.tokenizer import Tokenizer

CONTEXTS = (2_048, 8_192, 32_768, 131_072)
CACHE_BYTES = 2  # of an entry in bfloat16


def inspect(source: Path) -> dict[str, Any]:
    """What a GGUF file or a Hugging Face directory holds; reads headers only."""
    facts: dict[str, Any]
    if source.is_file():
        gguf = GgufFile(source)
        config = config_from_gguf(gguf)
        from gguf import GGMLQuantizationType

        tensors = gguf.tensors.values()
        facts = {"format": "gguf", "files": 1, "bytes": source.stat().st_size}
        dtypes = Counter(GGMLQuantizationType(t.type).name for t in tensors)
        tokenizer: dict[str, Any] = {"vocabulary": len(gguf.metadata["tokenizer.ggml.tokens"])}
    else:
        config = read_config(source)
        reader, places = open_weights(source, config)
        with reader:
            weights = {reader.file(place) for place in places.values()}
            dtypes = Counter(reader.dtype(place) for place in places.values())
        size = sum(file.stat().st_size for file in weights)
        facts = {"format": "safetensors", "files": len(weights), "bytes": size}
        tokenizer = _tokenizer_facts(source, config)
    return {
        **facts,
        "size": config.size_name,
        "parameters": config.num_parameters,
        **_vision_facts(config),
        "embedding_parameters": config.vocab_size * config.hidden_size,
        "dtypes": dict(dtypes.most_common()),
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "heads": f"{config.num_heads} query, {config.num_kv_heads} key, width {config.head_dim}",
        "window_tokens": config.window,
        "context_tokens": config.max_positions,
        "rope_factor": config.rope_factor,
        "vocabulary_rows": config.vocab_size,
        "cache_mib_bfloat16": {
            str(context): round(cache_bytes(config, context) / 2**20, 1)
            for context in CONTEXTS
            if context <= config.max_positions
        },
        "tokenizer": tokenizer,
    }


def cache_bytes(config: Gemma3Config, context: int) -> int:
    """Bytes of keys and values of one sequence; window layers keep at most their window."""
    per_token = 2 * config.num_kv_heads * config.head_dim * CACHE_BYTES
    num_global = sum(config.is_global(i) for i in range(config.num_layers))
    kept = num_global * context + (config.num_layers - num_global) * min(context, config.window)
    return per_token * kept


def _vision_facts(config: Gemma3Config) -> dict[str, Any]:
    """Of a model that sees; `parameters` are those of its text decoder."""
    if config.vision is None:
        return {}
    return {
        "vision_parameters": config.vision.num_parameters,
        "projector_parameters": config.num_vision_parameters - config.vision.num_parameters,
        "image_pixels": f"{config.vision.image_size} × {config.vision.image_size}",
        "tokens_per_image": config.vision.image_tokens,
    }


def _tokenizer_facts(folder: Path, config: Gemma3Config) -> dict[str, Any]:
    tokenizer = Tokenizer.load(folder)
    return {
        "vocabulary": tokenizer.vocab_size,
        "rows_beyond_vocabulary": config.vocab_size - tokenizer.vocab_size,
        "bos_agrees": tokenizer.bos_id == config.bos_id,
        "stops_at_end_of_turn": tokenizer.end_of_turn_id in config.eos_ids,
    }
