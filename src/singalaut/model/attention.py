"""Which keys a query sees, and attention over them, behind one interface.

The network hands queries, keys and values of one layer to an `AttentionPlan`; the plan knows
how the tokens lie (whole rows here, packed documents here, cached rows in `cache.py`).
`visible` is the one definition of the mask; every plan must agree with it.

Shapes: B batch, T queries, S keys, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
) -> Bool[Tensor, "T S"]:
    """True where key s is not after query t and, with a window, fewer than `window` before it."""
    distance = query_positions[:, None] - key_positions[None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


@dataclass(frozen=True)
class Dense:
    """Whole rows of equal length, every token at its own place."""

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "B H T D"],
        keys: Float[Tensor, "B K T D"],
        values: Float[Tensor, "B K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "B H T D"]:
        return causal_attention(queries, keys, values, scale, window)


@dataclass(frozen=True)
class Packed:
    """One row that holds documents end to end; no document sees another.

    `lengths` are tokens of each document; they must add up to the row's length.
    """

    lengths: tuple[int, ...]

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "B H T D"],
        keys: Float[Tensor, "B K T D"],
        values: Float[Tensor, "B K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "B H T D"]:
        pieces = zip(
            queries.split(self.lengths, dim=2),
            keys.split(self.lengths, dim=2),
            values.split(self.lengths, dim=2),
            strict=True,
        )
        return torch.cat([causal_attention(q, k, v, scale, window) for q, k, v in pieces], dim=2)

    def positions(self) -> Int[Tensor, "1 T"]:
        """Positions of the row's tokens, restarted in each document."""
        return torch.cat([torch.arange(length) for length in self.lengths])[None]


def causal_attention(
    queries: Float[Tensor, "B H T D"],
    keys: Float[Tensor, "B K S D"],
    values: Float[Tensor, "B K S D"],
    scale: float,
    window: int | None,
) -> Float[Tensor, "B H T D"]:
    """Causal attention within one sequence, of which the queries are the last T tokens.

    A window costs memory linear in the length: in a long sequence the queries are cut into blocks,
    and a block of `window` queries sees at most 2·`window` - 1 keys.
    """
    total = keys.shape[2]
    past = total - queries.shape[2]
    if past == 0 and (window is None or total <= window):
        return scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=True
        )
    positions = torch.arange(total, device=queries.device)
    block = total if window is None or total <= ONE_MASK_TOKENS else window
    blocks = []
    for start in range(past, total, block):
        stop = min(start + block, total)
        first = 0 if window is None else max(0, start - window + 1)
        mask_TS = visible(positions[start:stop], positions[first:stop], window)
        blocks.append(
            scaled_dot_product_attention(
                queries[:, :, start - past : stop - past],
                keys[:, :, first:stop],
                values[:, :, first:stop],
                attn_mask=mask_TS,
                scale=scale,
                enable_gqa=True,
            )
        )
    return torch.cat(blocks, dim=2)
