"""The shape of a Gemma 3 network, text and vision, and the five published sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt


@dataclass(frozen=True)
class VisionConfig:
    """The shape of the vision part; the defaults are those of the 4B, 12B and 27B models.

    An image of `image_size`² pixels becomes `image_tokens` tokens with the id `image_id`, between
    one token `start_id` and one `end_id`.
    """

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_layers: int = 27
    num_heads: int = 16
    image_size: int = 896
    patch_size: int = 14
    image_tokens: int = 256
    norm_eps: float = 1e-6
    start_id: int = 255_999
    end_id: int = 256_000
    image_id: int = 262_144

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.patches_per_side**2

    @property
    def pool_size(self) -> int:
        """Side of the square of patches whose average becomes one token."""
        return self.patches_per_side // isqrt(self.image_tokens)

    @property
    def num_parameters(self) -> int:
        """Weights of the tower, without the projector."""
        width, inner = self.hidden_size, self.intermediate_size
        patches = 3 * self.patch_size**2 * width + width + self.num_patches * width
        layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
        return patches + self.num_layers * layer + 2 * width


@dataclass(frozen=True)
class Gemma3Config:
    """Everything that decides the network; field names are ours, `model/hf.py` has the others'.

    Layer i attends globally iff (i + 1) is a multiple of `global_every`; the other layers see
    `window` keys, the query's own included. `rope_factor` divides the angles of global layers.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scalar: float  # queries are scaled by this to the power of -1/2
    window: int
    max_positions: int
    vocab_size: int = 262_144
    rope_factor: float = 1.0
    rope_theta: float = 1_000_000.0
    rope_local_theta: float = 10_000.0
    global_every: int = 6
    norm_eps: float = 1e-6
    pad_id: int = 0
    bos_id: int = 2
    eos_ids: tuple[int, ...] = (1,)
    vision: VisionConfig | None = None

    def is_global(self, layer: int) -> bool:
        return (layer + 1) % self.global_every == 0

    @property
    def num_parameters(self) -> int:
        """Weights of the text decoder, the tied embedding counted once."""
        width, inner = self.hidden_size, self.intermediate_size
        attention = width * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        norms = 4 * width + 2 * self.head_dim
        layer = attention + 3 * width * inner + norms
        return self.vocab_size * width + self.num_layers * layer + width

    @property
    def num_vision_parameters(self) -> int:
        """Weights of the tower and the projector; 0 in a text-only model."""
        if self.vision is None:
            return 0
        return self.vision.num_parameters + self.vision.hidden_size * (self.hidden_size + 1)

    @property
    def size_name(self) -> str:
        """The published size with this shape, or `custom`."""
        for name, size in SIZES.items():
            same = replace(self, vocab_size=size.vocab_size, eos_ids=size.eos_ids, vision=None)
            if same == size:
                return name
        return "custom"


SIZES: dict[str, Gemma3Config] = {
    "270m": Gemma3Config(640, 2048, 18, 4, 1, 256, 256.0, 512, 32_768),
    "1b": Gemma3Config(1152, 6912, 26, 4, 1, 256, 256.0, 512, 32_768),
    "4b": Gemma3Config(2560, 10240, 34, 8, 4, 256, 256.0, 1024, 131_072, 262_208, 8.0),
    "12b": Gemma3Config(3840, 15360, 48, 16, 8, 256, 256.0, 1024, 131_072, 262_208, 8.0),
    "27b": Gemma3Config(5376, 21504, 62, 32, 16, 128, 168.0, 1024, 131_072, 262_208, 8.0),
}
