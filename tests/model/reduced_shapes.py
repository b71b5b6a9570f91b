"""The published sizes with less depth and width, but with all their own rules."""

from __future__ import annotations

from dataclasses import replace

from singalaut.model.config import SIZES, Gemma3Config

WINDOW = 16
# every size's own heads, head width, scales and RoPE rules; depth, width and window reduced
REDUCED = {
    "270m": replace(SIZES["270m"], hidden_size=64, intermediate_size=96, num_layers=7),
    "1b": replace(SIZES["1b"], hidden_size=48, intermediate_size=96, num_layers=6),
    "4b": replace(SIZES["4b"], hidden_size=64, intermediate_size=128, num_layers=7),
    "12b": replace(SIZES["12b"], hidden_size=64, intermediate_size=128, num_layers=6),
    "27b": replace(SIZES["27b"], hidden_size=64, intermediate_size=96, num_layers=7),
}


def reduced(size: str) -> Gemma3Config:
    return replace(REDUCED[size], vocab_size=300, window=WINDOW, max_positions=256)
