"""Which keys a query sees, and attention over them, behind one interface.

The network hands queries, keys and values of one layer to an `AttentionPlan`; the plan knows
how the tokens lie (whole rows here, packed documents here, cached rows in `cache.py`).
`visible` is the one definition of the mask; every plan must agree with it. Tokens of one image
see each other both ways; which they are is told by groups, from `image_groups`.

Shapes: B batch, T queries, S keys, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from singalaut.model.flash import can_flash, flash_attention

ONE_MASK_TOKENS = 2048  # up to here one mask over the whole sequence is cheaper than many blocks


class AttentionPlan(Protocol):
    """How the tokens of one forward pass lie and what they may see."""

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "B H T D"],
        keys: Float[Tensor, "B K T D"],
        values: Float[Tensor, "B K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "B H T D"]:
        """Attention of one layer; `window` counts keys, the query's own included; None is all."""
        ...


def visible(
    query_positions: Int[Tensor, " T"],
    key_positions: Int[Tensor, " S"],
    window: int | None,
    images: Int[Tensor, " P"] | None = None,
) -> Bool[Tensor, "T S"]:
    """True where query t sees key s: not after it, or in the same image; and within the window.

    The window hides keys that are `window` or more before the query, also in an image. `images`
    has the image of the token at each position, -1 for text.
    """
    distance = query_positions[:, None] - key_positions[None, :]
    seen = distance >= 0
    if images is not None:
        query_images, key_images = images[query_positions, None], images[None, key_positions]
        seen |= (query_images == key_images) & (query_images >= 0)
    return seen if window is None else seen & (distance < window)


def image_groups(tokens: Int[Tensor, "B T"], image_id: int) -> Int[Tensor, "B T"]:
    """Numbers the runs of image tokens in each row from 0; text is -1."""
    is_image = tokens == image_id
    starts = is_image & ~is_image.roll(1, dims=1)
    starts[:, 0] = is_image[:, 0]
    return (starts.cumsum(1) - 1).masked_fill(~is_image, -1)


@dataclass(frozen=True)
class Dense:
    """Whole rows of equal length, every token at its own place; `images` are their groups."""

    images: Int[Tensor, "B T"] | None = None

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "B H T D"],
        keys: Float[Tensor, "B K T D"],
        values: Float[Tensor, "B K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "B H T D"]:
        if self.images is None:
            return causal_attention(queries, keys, values, scale, window)
        rows = (
            causal_attention(q[None], k[None], v[None], scale, window, images)
            for q, k, v, images in zip(queries, keys, values, self.images, strict=True)
        )
        return torch.cat(list(rows))


@dataclass(frozen=True)
class Packed:
    """One row that holds documents end to end; no document sees another.

    `lengths` are tokens of each document; they must add up to the row's length. `images` are the
    groups of the row's tokens.
    """

    lengths: tuple[int, ...]
    images: Int[Tensor, " T"] | None = None

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "B H T D"],
        keys: Float[Tensor, "B K T D"],
        values: Float[Tensor, "B K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "B H T D"]:
        if self.images is None and can_flash(queries):
            return flash_attention(queries, keys, values, scale, window, self.lengths)
        pieces = zip(
            queries.split(self.lengths, dim=2),
            keys.split(self.lengths, dim=2),
            values.split(self.lengths, dim=2),
            [None] * len(self.lengths) if self.images is None else self.images.split(self.lengths),
            strict=True,
        )
        return torch.cat(
            [causal_attention(q, k, v, scale, window, images) for q, k, v, images in pieces], dim=2
        )

    def positions(self) -> Int[Tensor, "1 T"]:
        """Positions of the row's tokens, restarted in each document."""
        return torch.cat([torch.arange(length) for length in self.lengths])[None]


def causal_attention(
    queries: Float[Tensor, "B H T D"],
    keys: Float[Tensor, "B K S D"],
    values: Float[Tensor, "B K S D"],
    scale: float,
    window: int | None,
    images: Int[Tensor, " S"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """Causal attention within one sequence, of which the queries are the last T tokens.

    `images` are the groups of all S tokens; no image may reach over the first query. A window
    costs memory linear in the length: in a long sequence the queries are cut into blocks, and a
    block of `window` queries sees at most 2·`window` - 1 keys and the rest of an image. Without
    a window, images cut the queries into blocks too, so that no mask is larger than a block.
    """
    if images is None and can_flash(queries):
        return flash_attention(queries, keys, values, scale, window)
    total = keys.shape[2]
    past = total - queries.shape[2]
    if images is None and past == 0 and (window is None or total <= window):
        return scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=True
        )
    positions = torch.arange(total, device=queries.device)
    if total <= ONE_MASK_TOKENS or (window is None and images is None):
        block = total
    else:
        block = window or ONE_MASK_TOKENS
    blocks = []
    for start in range(past, total, block):
        stop = min(start + block, total)
        first = 0 if window is None else max(0, start - window + 1)
        last = stop if images is None else _end_of_image(images, stop)
        mask_TS = visible(positions[start:stop], positions[first:last], window, images)
        blocks.append(
            scaled_dot_product_attention(
                queries[:, :, start - past : stop - past],
                keys[:, :, first:last],
                values[:, :, first:last],
                attn_mask=mask_TS,
                scale=scale,
                enable_gqa=True,
            )
        )
    return torch.cat(blocks, dim=2)


def _end_of_image(images: Int[Tensor, " S"], stop: int) -> int:
    """Where the image ends that the token before `stop` belongs to; `stop` itself for text."""
    if stop == len(images) or images[stop - 1] < 0:
        return stop
    return int((images == images[stop - 1]).nonzero()[-1]) + 1
