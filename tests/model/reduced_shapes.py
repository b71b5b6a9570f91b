"""The published sizes with less depth and width, but with all their own rules."""

from __future__ import annotations

from dataclasses import replace

from singalaut.model.config import SIZES, Gemma3Config, VisionConfig
from singalaut.model.hf import hf_name

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


# 56² pixels → 4 × 4 patches → 2 × 2 tokens, with a head width that is no power of two
VISION = VisionConfig(
    hidden_size=36,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    image_size=56,
    image_tokens=4,
    start_id=290,
    end_id=291,
    image_id=292,
)
SEEING = ("4b", "12b", "27b")


def reduced_seeing(size: str) -> Gemma3Config:
    return replace(reduced(size), vision=VISION)


def oracle_name(name: str, config: Gemma3Config) -> str:
    """The name of our parameter inside `transformers`' network."""
    name = hf_name(name, config)
    for old, new in (
        ("language_model.model.", "model.language_model."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
