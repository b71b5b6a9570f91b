"""Which keys a query sees, and attention over them, behind one interface.

The network hands queries, keys and values of one layer to an `AttentionPlan`; the plan knows
how the tokens lie (whole rows here, packed documents here, cached rows in `cache.py`).
`visible` is the one definition of the mask; every plan must agree with it. Tokens of one image
see each other both ways; which they are is told by groups, from `image_groups`. Kernels of CUDA
devices are `flash.py`'s work.

Shapes: B batch, T queries, S keys, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from singalaut.model.flash import (
    ImageRuns,
    Spans,
    can_flash,
    flash_attention,
    packed_flash_attention,
)

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
    images: Int[Tensor, "*B P"] | None = None,
    documents: Int[Tensor, " P"] | None = None,
) -> Bool[Tensor, "*B T S"]:
    """True where query t sees key s: not after it, or in the same image; and within the window.

    The window hides keys that are `window` or more before the query, also in an image. `images`
    has the image of the token at each position, -1 for text; `documents` the document, outside
    which nothing is seen.
    """
    distance = query_positions[:, None] - key_positions[None, :]
    seen = distance >= 0
    if images is not None:
        of_queries, of_keys = images[..., query_positions, None], images[..., None, key_positions]
        seen = seen | ((of_queries == of_keys) & (of_queries >= 0))
    if window is not None:
        seen = seen & (distance < window)
    if documents is None:
        return seen
    return seen & (documents[query_positions, None] == documents[None, key_positions])


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
        if torch.compiler.is_compiling() and not (self.images is None and can_flash(queries)):
            return _masked_attention(queries, keys, values, scale, window, self.images)
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
    groups of the row's tokens. What the layers need on their `device` is made here, once.
    """

    lengths: tuple[int, ...]
    images: Int[Tensor, " T"] | None = None
    device: torch.device | str = "cpu"
    documents: Int[Tensor, " T"] = field(init=False, repr=False)
    spans: Spans = field(init=False, repr=False)
    runs: ImageRuns | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        numbers = torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        images = self.images
        made = {
            "documents": numbers.to(self.device),
            "spans": Spans.of(self.lengths, self.device),
            "runs": None if images is None else ImageRuns.of(self.lengths, images, self.device),
            "images": None if images is None else images.to(self.device),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "B H T D"],
        keys: Float[Tensor, "B K T D"],
        values: Float[Tensor, "B K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "B H T D"]:
        if can_flash(queries):
            return packed_flash_attention(
                queries, keys, values, scale, window, self.spans, self.runs
            )
        if torch.compiler.is_compiling():
            return _masked_attention(
                queries, keys, values, scale, window, self.images, self.documents
            )
        if self.images is None and queries.is_cuda and len(self.lengths) > 1:
            return self.similar.attend(queries, keys, values, scale, window)
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

    @cached_property
    def similar(self) -> Similar:
        """The documents in groups of similar length."""
        return Similar.of(self.lengths, self.device)

    def positions(self) -> Int[Tensor, "1 T"]:
        """Positions of the row's tokens, restarted in each document."""
        places = torch.cat([torch.arange(length) for length in self.lengths])
        return places[None].to(self.device)


@dataclass(frozen=True)
class Similar:
    """Documents of a row in groups whose lengths have one power of two above them.

    Those of a group are filled up and attended to in one call, for devices where a call costs more
    than what is filled up. `groups` [N, L] have places in the row, a document's last repeated;
    `back` has for each token of the row its place in all groups end to end.
    """

    groups: tuple[Int[Tensor, "N L"], ...]
    back: Int[Tensor, " T"]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> Similar:
        by_size: dict[int, list[tuple[int, int]]] = {}
        for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
            by_size.setdefault((length - 1).bit_length(), []).append((start, length))
        groups, back, size = [], torch.empty(sum(lengths), dtype=torch.int64), 0
        for spans in by_size.values():
            longest = max(length for _, length in spans)
            starts, counts = torch.tensor(spans).unbind(1)
            inside = torch.arange(longest).expand(len(spans), longest)
            real = inside < counts[:, None]
            places = starts[:, None] + inside.minimum(counts[:, None] - 1)
            back[places[real]] = size + real.flatten().nonzero()[:, 0]
            size += places.numel()
            groups.append(places.to(device))
        return cls(tuple(groups), back.to(device))

    def attend(
        self,
        queries: Float[Tensor, "1 H T D"],
        keys: Float[Tensor, "1 K T D"],
        values: Float[Tensor, "1 K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "1 H T D"]:
        """Causal attention within each document."""
        found = []
        for places in self.groups:
            q, k, v = (
                each[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1)
                for each in (queries, keys, values)
            )
            out = causal_attention(q, k, v, scale, window)
            found.append(out.transpose(0, 1).flatten(1, 2))
        return torch.cat(found, 1).index_select(1, self.back)[None]


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


def _masked_attention(
    queries: Float[Tensor, "B H T D"],
    keys: Float[Tensor, "B K T D"],
    values: Float[Tensor, "B K T D"],
    scale: float,
    window: int | None,
    images: Int[Tensor, "*B T"] | None,
    documents: Int[Tensor, " T"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """With one mask over whole rows: no branch depends on lengths, which compiled code needs."""
    places = torch.arange(queries.shape[2], device=queries.device)
    mask = visible(places, places, window, images, documents)
    if mask.ndim == 3:
        mask = mask[:, None]  # the same for all heads
    return scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=True
    )


def _end_of_image(images: Int[Tensor, " S"], stop: int) -> int:
    """Where the image ends that the token before `stop` belongs to; `stop` itself for text."""
    if stop == len(images) or images[stop - 1] < 0:
        return stop
    return int((images == images[stop - 1]).nonzero()[-1]) + 1
