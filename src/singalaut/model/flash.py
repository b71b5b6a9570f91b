"""Attention on a CUDA device by FlashAttention's variable-length kernel.

Documents, windows, grouped heads and a past are arguments of that kernel, so nothing is masked,
padded or repeated, and it has a backward pass. Source: arXiv 2307.08691.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST_HEAD = 256


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
    from torch.nn.attention.varlen import varlen_attn

    rows, _, new, _ = queries.shape
    query_lengths = list(lengths) if lengths else [new] * rows
    key_lengths = list(stored or lengths or [keys.shape[2]] * rows)
    out: Any = varlen_attn(
        queries.transpose(1, 2).flatten(0, 1),
        keys.transpose(1, 2).flatten(0, 1),
        values.transpose(1, 2).flatten(0, 1),
        _starts(query_lengths, queries.device),
        _starts(key_lengths, queries.device),
        max(query_lengths),
        max(key_lengths),
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **_grouping(varlen_attn),
    )
    return out.unflatten(0, (rows, new)).transpose(1, 2)


def _grouping(kernel: Any) -> dict[str, Any]:
    """Newer versions want to be told that heads are grouped; torch 2.11 just does it."""
    known = inspect.signature(kernel).parameters
    return {"enable_gqa": True} if "enable_gqa" in known else {}


def _starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
