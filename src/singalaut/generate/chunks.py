"""Attention of prompt chunks in one kind of layer: over themselves and what was stored before.

What the layers of a kind share (which keys, which spans, which images) is found out once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from singalaut.generate.plain import image_groups_of
from singalaut.generate.scheduler import Chunk
from singalaut.model.attention import causal_attention
from singalaut.model.flash import Spans, attend_spans, can_flash
from singalaut.model.paged import PAGE_TOKENS

Send = Callable[[object, torch.dtype], Tensor]


@dataclass(frozen=True)
class ChunkPlan:
    """Which keys the chunks of a step see in one kind of layer."""

    counts: list[int]
    key_counts: list[int]
    window: int | None
    query_spans: Spans
    key_spans: Spans
    gather: Tensor | None  # places in the store of all keys, where some were stored before
    images: list[Tensor | None] | None

    @classmethod
    def of(
        cls,
        chunks: Sequence[Chunk],
        table: np.ndarray,
        window: int | None,
        device: torch.device,
        send: Send,
    ) -> ChunkPlan:
        """`table` has the pages of every slot."""
        counts = [chunk.end - chunk.start for chunk in chunks]
        firsts = [0 if window is None else max(0, c.start - window + 1) for c in chunks]
        key_counts = [c.end - first for c, first in zip(chunks, firsts, strict=True)]
        gather = None
        if key_counts != counts:
            places = []
            for chunk, first in zip(chunks, firsts, strict=True):
                at = np.arange(first, chunk.end)
                pages = table[chunk.answer.slot][at // PAGE_TOKENS].astype(np.int64)
                places.append(pages * PAGE_TOKENS + at % PAGE_TOKENS)
            gather = send(np.concatenate(places), torch.int64)
        images = None
        if any(chunk.answer.image_runs for chunk in chunks):
            images = [
                None if groups is None else groups[first:]
                for chunk, first in zip(chunks, firsts, strict=True)
                for groups in [image_groups_of(chunk.answer, chunk.end, device)]
            ]
        spans = Spans.of(counts, device), Spans.of(key_counts, device)
        return cls(counts, key_counts, window, *spans, gather, images)

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor, heads: int, scale: float) -> Tensor:
        """[T, H · D] from `qkv` [T, (H + 2 K) · D] and the store of one layer, [K, P, 32, D]."""
        key_heads, width = keys.shape[0], keys.shape[-1]
        parts = qkv.view(len(qkv), -1, width).transpose(0, 1)[None]
        q, k, v = parts.split([heads, key_heads, key_heads], dim=1)
        if self.gather is not None:
            k, v = (s.flatten(1, 2).index_select(1, self.gather)[None] for s in (keys, values))
        if self.images is None and can_flash(q):
            out = attend_spans(q, k, v, scale, self.window, self.query_spans, self.key_spans)
        else:
            pieces = zip(
                q.split(self.counts, 2),
                k.split(self.key_counts, 2),
                v.split(self.key_counts, 2),
                self.images or [None] * len(self.counts),
                strict=True,
            )
            out = torch.cat(
                [causal_attention(*p[:3], scale, self.window, p[3]) for p in pieces], dim=2
            )
        return out[0].transpose(0, 1).flatten(1)
