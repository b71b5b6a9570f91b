"""The Gemma 3 text decoder in plain PyTorch: single device, no parallelism, no cache logic.

A model may have a vision part (`vision.py`), whose output the decoder takes at image tokens.

Shapes: B batch, T tokens, W hidden width, H query heads, K key heads, D head width, V vocabulary,
N images, I tokens of an image.
Source: arXiv 2503.19786. Delicate points, and what the tests hold them to: RMSNorm multiplies by
1 + weight in float32; queries and keys are normalised after projection and before RoPE;
embeddings are scaled by √width rounded to the weights' dtype; the head is tied. Unlike other
implementations the residual stream is float32 whatever the weights are: rounding it after every sum
is most of the noise of bfloat16, and costs nothing to leave out.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu

from singalaut.errors import DataError
from singalaut.model.attention import AttentionPlan, Dense, image_groups
from singalaut.model.config import Gemma3Config
from singalaut.model.linear import Linear, PackedKind
from singalaut.model.norm import RmsNorm
from singalaut.model.vision import Vision

Rotation = tuple[Float[Tensor, "B 1 T D"], Float[Tensor, "B 1 T D"]]


class Gemma3(nn.Module):
    """Token ids to hidden states to logits; parameters are uninitialised until loaded."""

    def __init__(self, config: Gemma3Config):
        super().__init__()
        self.config = config
        self.embedding = Linear(config.hidden_size, config.vocab_size)  # also the head
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.final_norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.vision: Vision | None = None
        if config.vision is not None:
            self.vision = Vision(config.vision, config.hidden_size)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        plan: AttentionPlan | None = None,
        images: Float[Tensor, "N I W"] | None = None,
    ) -> Float[Tensor, "B T W"]:
        """Final hidden states; `logits` turns those that are needed into logits.

        `positions` default to 0…T-1 in every row, `plan` to whole rows. `images` are what
        `vision` made of the images, in the order of their tokens; a plan that is given has to
        know of them too (`image_groups`).
        Raises: DataError if images and image tokens do not agree in number.
        """
        config = self.config
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x_BTW = self._embed(tokens, images)
        if plan is None:
            plan = Dense() if images is None else Dense(self.image_groups(tokens))
        local = rotation(positions, config.head_dim, config.rope_local_theta, 1.0, x_BTW.dtype)
        global_ = rotation(
            positions, config.head_dim, config.rope_theta, config.rope_factor, x_BTW.dtype
        )
        x_BTW = x_BTW.float()
        for layer in self.layers:
            x_BTW = layer(x_BTW, global_ if layer.is_global else local, plan)
        return self.final_norm(x_BTW)

    def image_groups(self, tokens: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """The number of the image that each token belongs to, -1 for text; for attention plans."""
        assert self.config.vision is not None
        return image_groups(tokens, self.config.vision.image_id)

    def _embed(
        self, tokens: Int[Tensor, "B T"], images: Float[Tensor, "N I W"] | None
    ) -> Float[Tensor, "B T W"]:
        """Embeddings of text scaled by √W; those of images are put in as they are."""
        weight = self.embedding.weight
        root = self.config.hidden_size**0.5
        scale = torch.tensor(root, dtype=weight.dtype, device=weight.device)
        if images is None:
            return embedding(tokens, weight) * scale
        if self.config.vision is None:
            raise DataError(
                f"{len(images)} images were given to a text-only model",
                hint="use a model with a vision tower, or leave the images out",
            )
        is_image_BT = tokens == self.config.vision.image_id
        if (places := int(is_image_BT.sum())) != images.shape[0] * images.shape[1]:
            raise DataError(
                f"{len(images)} images need {images.shape[0] * images.shape[1]} image tokens, "
                f"the text has {places}",
                hint="put one image placeholder into the text for each image",
            )
        x_BTW = embedding(tokens.masked_fill(is_image_BT, self.config.pad_id), weight) * scale
        return x_BTW.masked_scatter(is_image_BT[..., None], images.to(x_BTW.dtype))

    def logits(self, hidden: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch V"]:
        return self.embedding(hidden)

    def pack(self, kind: PackedKind | None = None) -> None:
        """Prepare the decoder's weights for a CPU, in fewer bits where a kind is given.

        To be called again after they change. The vision part stays as it is with fewer bits.
        """
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                module.pack(None if name.startswith("vision.") else kind)

    def unpack(self) -> None:
        for module in self.modules():
            if isinstance(module, Linear):
                module.unpack()


class Layer(nn.Module):
    """x += norm(attention(norm(x))), then x += norm(mlp(norm(x))); x is float32."""

    def __init__(self, config: Gemma3Config, index: int):
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.is_global = config.is_global(index)
        self.attention_norm = RmsNorm(width, eps)
        self.attention = Attention(config, index)
        self.attention_post_norm = RmsNorm(width, eps)
        self.mlp_norm = RmsNorm(width, eps)
        self.mlp = Mlp(width, config.intermediate_size)
        self.mlp_post_norm = RmsNorm(width, eps)

    def forward(
        self, x: Float[Tensor, "B T W"], rotation: Rotation, plan: AttentionPlan
    ) -> Float[Tensor, "B T W"]:
        out = self.attention(self.attention_norm(x), rotation, plan)
        x = x + self.attention_post_norm(out, torch.float32)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)), torch.float32)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: Gemma3Config, index: int):
        super().__init__()
        self.index = index
        self.head_dim = config.head_dim
        self.scale = config.query_scalar**-0.5
        self.window = None if config.is_global(index) else config.window
        query_width = config.num_heads * config.head_dim
        key_width = config.num_kv_heads * config.head_dim
        self.query = Linear(config.hidden_size, query_width)
        self.key = Linear(config.hidden_size, key_width)
        self.value = Linear(config.hidden_size, key_width)
        self.output = Linear(query_width, config.hidden_size)
        self.query_norm = RmsNorm(config.head_dim, config.norm_eps)
        self.key_norm = RmsNorm(config.head_dim, config.norm_eps)

    def forward(
        self, x: Float[Tensor, "B T W"], rotation: Rotation, plan: AttentionPlan
    ) -> Float[Tensor, "B T W"]:
        heads = (*x.shape[:2], -1, self.head_dim)
        q_BHTD = self.query_norm(self.query(x).view(heads)).transpose(1, 2)
        k_BKTD = self.key_norm(self.key(x).view(heads)).transpose(1, 2)
        v_BKTD = self.value(x).view(heads).transpose(1, 2)
        out_BHTD = plan.attend(
            self.index,
            rotate(q_BHTD, rotation),
            rotate(k_BKTD, rotation),
            v_BKTD,
            self.scale,
            self.window,
        )
        return self.output(out_BHTD.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """down(gelu_tanh(gate(x)) · up(x))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate = Linear(width, inner)
        self.up = Linear(width, inner)
        self.down = Linear(inner, width)

    def forward(self, x: Float[Tensor, "B T W"]) -> Float[Tensor, "B T W"]:
        return self.down(gelu(self.gate(x), approximate="tanh") * self.up(x))


def rotation(
    positions: Int[Tensor, "B T"], head_dim: int, theta: float, factor: float, dtype: torch.dtype
) -> Rotation:
    """Cosines and sines of position / factor · theta^(-2i/D), angles in float32 whatever `dtype`.

    The halves of a head form the pairs (i, i + D/2), so each angle stands twice in a row.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    frequency = 1.0 / (theta**exponent) / factor
    angle = positions[..., None].float() * frequency
    angle = torch.cat((angle, angle), dim=-1).unsqueeze(1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Float[Tensor, "B H T D"], rotation: Rotation) -> Float[Tensor, "B H T D"]:
    """Apply rotary positions to queries or keys."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def initialise(model: Gemma3, seed: int) -> Gemma3:
    """Random weights of a sensible scale, for tests and speed measurements; norms stay small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 0.1 if name.endswith("norm.weight") else 1 / math.sqrt(parameter.shape[-1])
            parameter.normal_(0.0, std, generator=generator)
    return model
