"""What a training step costs before it is run: operations, and memory by part.

Operations are those that the mathematics asks for: what is computed twice to save memory is not
counted. Shapes: W hidden width, I inner width, H query heads, K key heads, D head width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

from singalaut.model.config import Gemma3Config


def layer_weights(config: Gemma3Config) -> int:
    """Weights in the matrices of one layer: W D (2 H + 2 K) + 3 W I."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)


def step_flops(config: Gemma3Config, lengths: Iterable[int], adapter: bool = False) -> float:
    """Floating-point operations of forward and backward over documents of these lengths.

    Two for each weight and token forward and four backward (two where weights are frozen), and
    4 H D for each query and key that meet, three times as much with the backward pass.
    """
    lengths = list(lengths)
    weights = config.num_layers * layer_weights(config) + config.vocab_size * config.hidden_size
    products = (4 if adapter else 6) * weights * sum(lengths)
    pairs = 0
    for index in range(config.num_layers):
        window = None if config.is_global(index) else config.window
        pairs += sum(_pairs(length, window) for length in lengths)
    return products + 12 * config.num_heads * config.head_dim * pairs


def _pairs(length: int, window: int | None) -> int:
    """Queries and keys that meet in a document under a causal mask."""
    if window is None or length <= window:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window
