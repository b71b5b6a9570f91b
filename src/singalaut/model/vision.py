"""The vision part of Gemma 3: pixels to the embeddings that stand at the image tokens.

A SigLIP tower turns an image into one vector a patch, average pooling makes a few tokens of many
patches, a projector brings them to the width of the text decoder. What comes out replaces token
embeddings as it is: it is not scaled by √width. Reading files and resizing is `images.py`'s work.

Shapes: N images, S image side, P patches, I image tokens, W tower width, H heads, D head width,
O width of the text decoder. Source: arXiv 2303.15343 (SigLIP), 2503.19786.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu, scaled_dot_product_attention

from singalaut.model.config import VisionConfig
from singalaut.model.norm import RmsNorm

__all__ = ["Projector", "Vision", "VisionConfig", "VisionTower"]


class Vision(nn.Module):
    """Tower and projector; pixels in [-1, 1], as `images.normalise` gives them."""

    def __init__(self, config: VisionConfig, text_width: int):
        super().__init__()
        self.tower = VisionTower(config)
        self.projector = Projector(config, text_width)

    def forward(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N I O"]:
        weight = self.projector.weight
        return self.projector(self.tower(pixels.to(weight.device, weight.dtype)))


class VisionTower(nn.Module):
    """A vision transformer: every patch of an image sees every other one."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(config.num_patches, width))
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(width, config.norm_eps)

    def forward(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N P W"]:
        x_NPW = self.patches(pixels).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x_NPW = layer(x_NPW)
        return self.final_norm(x_NPW)


class VisionLayer(nn.Module):
    """x += attention(norm(x)), then x += down(gelu_tanh(up(norm(x))))."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = nn.LayerNorm(width, config.norm_eps)
        self.attention = VisionAttention(width, config.num_heads)
        self.mlp_norm = nn.LayerNorm(width, config.norm_eps)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "N P W"]) -> Float[Tensor, "N P W"]:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class VisionAttention(nn.Module):
    """Plain attention over all patches, scaled by D^-0.5."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "N P W"]) -> Float[Tensor, "N P W"]:
        q_NHPD, k_NHPD, v_NHPD = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        out_NHPD = scaled_dot_product_attention(q_NHPD, k_NHPD, v_NHPD)
        return self.output(out_NHPD.transpose(1, 2).flatten(2))


class Projector(nn.Module):
    """RmsNorm of the pooled patches, times a matrix that is stored [in, out]."""

    def __init__(self, config: VisionConfig, text_width: int):
        super().__init__()
        self.side, self.pool = config.patches_per_side, config.pool_size
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.weight = nn.Parameter(torch.empty(config.hidden_size, text_width))

    def forward(self, patches: Float[Tensor, "N P W"]) -> Float[Tensor, "N I O"]:
        square = patches.transpose(1, 2).unflatten(-1, (self.side, self.side)).contiguous()
        tokens_NIW = avg_pool2d(square, self.pool).flatten(2).transpose(1, 2)
        return self.norm(tokens_NIW) @ self.weight
