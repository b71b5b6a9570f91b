"""Attention on a CUDA device by FlashAttention's variable-length kernel.

Documents, windows, grouped heads and a past are arguments of that kernel, so nothing is masked,
padded or repeated, and it has a backward pass. Tokens of one image, which see each other both ways,
are a second call over the images alone. What the kernel is told of a row, `Spans` and `ImageRuns`,
is made once for all layers.

Shapes: B batch, T queries, S keys, H query heads, K key heads, D head width, N spans.
Source: arXiv 2307.08691.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

LARGEST_HEAD = 256
# newer versions want to be told that heads are grouped; torch 2.11 just does it
GROUPED: dict[str, Any] = {"enable_gqa": True} if torch.__version__ >= "2.12" else {}
SHORTEST = 128  # of what `longest` is rounded up to


@dataclass(frozen=True)
class Spans:
    """A row cut into pieces: N + 1 ends in int32, and a bound of the longest piece.

    The bound is a power of two, so that compiled code sees few different ones.
    """

    starts: Int[Tensor, " N1"]
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> Spans:
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        longest = SHORTEST
        while longest < max(lengths, default=0):
            longest *= 2
        return cls(starts, longest)


@dataclass(frozen=True)
class ImageRuns:
    """The image tokens of a packed row, and for each image the tokens up to its end.

    `queries` and `keys` are places in the row, cut by image into spans.
    """

    queries: Int[Tensor, " Q"]
    keys: Int[Tensor, " S"]
    query_spans: Spans
    key_spans: Spans

    @classmethod
    def of(
        cls, lengths: Sequence[int], images: Int[Tensor, " T"], device: torch.device | str
    ) -> ImageRuns | None:
        """From the documents of a row and the groups of its tokens; None without an image."""
        groups = images.tolist()
        queries: list[range] = []
        keys: list[range] = []
        for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
            place = start
            while place < start + length:
                stop = place + 1
                if groups[place] >= 0:
                    while stop < start + length and groups[stop] == groups[place]:
                        stop += 1
                    queries.append(range(place, stop))
                    keys.append(range(start, stop))
                place = stop
        if not queries:
            return None
        return cls(
            torch.tensor([i for run in queries for i in run], device=device),
            torch.tensor([i for run in keys for i in run], device=device),
            Spans.of([len(run) for run in queries], device),
            Spans.of([len(run) for run in keys], device),
        )


def can_flash(queries: Tensor) -> bool:
    """Whether the kernel takes such queries: bfloat16 on a CUDA device, heads of at most 256."""
    return queries.is_cuda and queries.dtype == torch.bfloat16 and queries.shape[-1] <= LARGEST_HEAD


def flash_attention(
    queries: Float[Tensor, "B H T D"],
    keys: Float[Tensor, "B K S D"],
    values: Float[Tensor, "B K S D"],
    scale: float,
    window: int | None,
    lengths: Sequence[int] | None = None,
    stored: Sequence[int] | None = None,
) -> Float[Tensor, "B H T D"]:
    """Causal attention; each row is one document, or `lengths` cut the only row into several.

    Queries are the last T of S tokens; of several documents, `stored` are the keys of each where
    they are more than its queries. `window` counts keys, the query's own included.
    """
    rows, _, new, _ = queries.shape
    if lengths is not None:
        query_spans = Spans.of(lengths, queries.device)
        key_spans = Spans.of(stored or lengths, queries.device)
    else:
        ends = torch.arange(rows + 1, dtype=torch.int32, device=queries.device)
        query_spans, key_spans = Spans(ends * new, new), Spans(ends * keys.shape[2], keys.shape[2])
    return attend_spans(queries, keys, values, scale, window, query_spans, key_spans)


def packed_flash_attention(
    queries: Float[Tensor, "1 H T D"],
    keys: Float[Tensor, "1 K T D"],
    values: Float[Tensor, "1 K T D"],
    scale: float,
    window: int | None,
    documents: Spans,
    images: ImageRuns | None = None,
) -> Float[Tensor, "1 H T D"]:
    """Causal attention within each document; an image also sees the rest of itself.

    The queries of an image end where its keys do, so without a limit to the right they see all of
    their image and, of what is before it, as much as the window lets them.
    """
    out = attend_spans(queries, keys, values, scale, window, documents, documents)
    if images is None:
        return out
    seeing = attend_spans(
        queries[:, :, images.queries],
        keys[:, :, images.keys],
        values[:, :, images.keys],
        scale,
        window,
        images.query_spans,
        images.key_spans,
        causal=False,
    )
    return out.index_copy(2, images.queries, seeing)


def attend_spans(
    queries: Float[Tensor, "B H T D"],
    keys: Float[Tensor, "B K S D"],
    values: Float[Tensor, "B K S D"],
    scale: float,
    window: int | None,
    query_spans: Spans,
    key_spans: Spans,
    causal: bool = True,
) -> Float[Tensor, "B H T D"]:
    """Attention between spans of queries and of keys; queries are the last of their keys."""
    from torch.nn.attention.varlen import varlen_attn  # loads the compiler, which takes seconds

    out: Any = varlen_attn(
        queries.transpose(1, 2).flatten(0, 1),
        keys.transpose(1, 2).flatten(0, 1),
        values.transpose(1, 2).flatten(0, 1),
        query_spans.starts,
        key_spans.starts,
        query_spans.longest,
        key_spans.longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0 if causal else -1),
        **GROUPED,
    )
    return out.unflatten(0, (queries.shape[0], queries.shape[2])).transpose(1, 2)
