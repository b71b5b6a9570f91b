"""Keys and values in pages of 32 tokens, and attention over them.

Global layers and window layers have pages of their own: a page of one kind holds 32 tokens in all
layers of that kind. Which page is whose is decided elsewhere (`generate/pages.py`); here a sequence
is a `Span` with two tables, from the number of a page in the sequence to its place in the store.

Shapes: R sequences, T new tokens, K key heads, G query heads a key head, S stored positions,
P pages, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from singalaut.model.attention import causal_attention
from singalaut.model.config import Gemma3Config
from singalaut.model.flash import can_flash, flash_attention

PAGE_TOKENS = 32
Kind = Literal["global", "window"]
KINDS: tuple[Kind, ...] = ("global", "window")


class PagedCache:
    """Room for a number of pages of each kind; page 0 is a place for what nobody reads."""

    def __init__(
        self,
        config: Gemma3Config,
        pages: dict[Kind, int],
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        self.config, self.pages = config, pages
        heads, width = config.num_kv_heads, config.head_dim
        self.stores: dict[Kind, Float[Tensor, "layers 2 K P 32 D"]] = {
            kind: torch.zeros(  # what is not a number, times a weight of zero, is not a number
                len(layers_of(config, kind)),
                2,
                heads,
                pages[kind],
                PAGE_TOKENS,
                width,
                dtype=dtype,
                device=device,
            )
            for kind in KINDS
        }
        self._place = {
            layer: (kind, index)
            for kind in KINDS
            for index, layer in enumerate(layers_of(config, kind))
        }

    def layer(self, layer: int) -> tuple[Float[Tensor, "K P 32 D"], Float[Tensor, "K P 32 D"]]:
        kind, index = self._place[layer]
        store = self.stores[kind][index]
        return store[0], store[1]

    def wipe(self, kind: Kind, pages: Sequence[int]) -> None:
        """Overwrite pages with zeros, so that nothing in them can spoil others' sums."""
        self.stores[kind][:, :, :, list(pages)] = 0

    def memory_bytes(self) -> int:
        return sum(store.numel() * store.element_size() for store in self.stores.values())


def layers_of(config: Gemma3Config, kind: Kind) -> list[int]:
    return [i for i in range(config.num_layers) if config.is_global(i) == (kind == "global")]


def page_bytes(config: Gemma3Config, kind: Kind, dtype: torch.dtype) -> int:
    """Bytes of one page in all layers of its kind."""
    per_token = 2 * config.num_kv_heads * config.head_dim * dtype.itemsize
    return len(layers_of(config, kind)) * PAGE_TOKENS * per_token


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence: `count` of them after `start` stored ones.

    `tables` give the page of each 16 tokens; entries left of the window are never read. `images`
    are the image groups of the sequence up to the end of the span, -1 for text; no image may reach
    over `start` or the end. `seen` tokens are seen by a single new one that belongs to an image of
    which more is stored; else those up to itself are.
    """

    tables: dict[Kind, np.ndarray]
    start: int
    count: int
    images: Int[Tensor, " S"] | None = None
    seen: int | None = None

    @property
    def end(self) -> int:
        return self.start + self.count


class PagedPlan:
    """An attention plan for new tokens of several sequences, laid end to end in one row.

    Spans of one token come first and are computed together, or each `alone`, where all spans must
    be single tokens; `positions` are those of all tokens.
    """

    def __init__(self, cache: PagedCache, spans: Sequence[Span], *, alone: bool = False):
        self.cache = cache
        self.spans = list(spans)
        self.singles = 0
        while self.singles < len(spans) and _is_single(spans[self.singles]):
            self.singles += 1
        device = cache.stores["global"].device
        positions = np.concatenate([np.arange(span.start, span.end) for span in spans])
        self.positions = torch.from_numpy(positions)[None].to(device)
        self._writes = {
            kind: torch.from_numpy(np.concatenate([_places(s, kind) for s in spans])).to(device)
            for kind in KINDS
        }
        together = 1 if alone else max(1, self.singles)
        if alone:
            self.singles = len(spans)
        self._groups = [
            slice(first, first + together) for first in range(0, self.singles, together)
        ]
        self._reads = {
            kind: [self._read_plan(kind, self.spans[some], device) for some in self._groups]
            for kind in KINDS
        }

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "1 H T D"],
        keys: Float[Tensor, "1 K T D"],
        values: Float[Tensor, "1 K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "1 H T D"]:
        kind: Kind = "global" if window is None else "window"
        stored = self.cache.layer(layer)
        for store, new in zip(stored, (keys, values), strict=True):
            store.flatten(1, 2)[:, self._writes[kind]] = new[0]
        parts = []
        for some, seen in zip(self._groups, self._reads[kind], strict=True):
            parts.append(self._attend_singles(seen, queries[0, :, some], stored, scale))
        rest = self.spans[self.singles :]
        if rest:
            q, k, v = (t[:, :, self.singles :] for t in (queries, keys, values))
            parts.append(self._attend_rest(kind, rest, q, k, v, stored, scale, window))
        return torch.cat(parts, dim=2)

    def _read_plan(
        self, kind: Kind, spans: Sequence[Span], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Pages [R, P] that spans of one token see, and which places [R, S] hide nothing."""
        window = self.cache.config.window
        first = np.array([s.end - window if kind == "window" else 0 for s in spans]).clip(0)
        end = np.array([s.seen or s.end for s in spans])
        first_page, end_page = first // PAGE_TOKENS, -(-end // PAGE_TOKENS)
        columns = np.arange((end_page - first_page).max())
        numbers = first_page[:, None] + columns
        tables = np.stack([s.tables[kind] for s in spans])
        pages = np.take_along_axis(tables, np.minimum(numbers, tables.shape[1] - 1), axis=1)
        pages[numbers >= end_page[:, None]] = 0
        places = numbers[:, :, None] * PAGE_TOKENS + np.arange(PAGE_TOKENS)
        places = places.reshape(len(spans), -1)
        hidden = (places < first[:, None]) | (places >= end[:, None])
        return torch.from_numpy(pages).long().to(device), torch.from_numpy(hidden).to(device)

    def _attend_singles(
        self,
        seen: tuple[Tensor, Tensor],
        queries: Float[Tensor, "H R D"],
        stored: tuple[Tensor, Tensor],
        scale: float,
    ) -> Float[Tensor, "1 H R D"]:
        pages_RP, hidden_RS = seen
        rows = len(pages_RP)
        heads, _, _, width = stored[0].shape
        keys_KRSD, values_KRSD = (
            store.flatten(2).index_select(1, pages_RP.flatten()).view(heads, rows, -1, width)
            for store in stored
        )
        q_KRGD = queries.unflatten(0, (heads, -1)).transpose(1, 2) * scale
        scores_KRGS = q_KRGD @ keys_KRSD.transpose(-1, -2)
        scores_KRGS = scores_KRGS.masked_fill(hidden_RS[:, None], float("-inf"))
        weights_KRGS = scores_KRGS.softmax(-1, dtype=torch.float32).to(values_KRSD.dtype)
        return (weights_KRGS @ values_KRSD).transpose(1, 2).flatten(0, 1)[None]

    def _attend_rest(
        self,
        kind: Kind,
        spans: Sequence[Span],
        queries: Float[Tensor, "1 H T D"],
        keys: Float[Tensor, "1 K T D"],
        values: Float[Tensor, "1 K T D"],
        stored: tuple[Tensor, Tensor],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "1 H T D"]:
        counts = [span.count for span in spans]
        new = zip(*(t.split(counts, dim=2) for t in (queries, keys, values)), strict=True)
        seen = [
            (q, *self._seen(kind, span, k, v, stored))
            for span, (q, k, v) in zip(spans, new, strict=True)
        ]
        if can_flash(queries) and all(span.images is None for span in spans):
            q, k, v = (torch.cat(parts, dim=2) for parts in zip(*seen, strict=True))
            stored_counts = [part[1].shape[2] for part in seen]
            return flash_attention(q, k, v, scale, window, counts, stored_counts)
        outs = []
        for span, (q, k, v) in zip(spans, seen, strict=True):
            images = None if span.images is None else span.images[span.end - k.shape[2] :]
            outs.append(causal_attention(q, k, v, scale, window, images))
        return torch.cat(outs, dim=2)

    def _seen(
        self, kind: Kind, span: Span, keys: Tensor, values: Tensor, stored: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The keys and values that a span's tokens may see, its own included."""
        window = self.cache.config.window
        first = 0 if kind == "global" else max(0, span.start - window + 1)
        if first == span.start:
            return keys, values
        page = first // PAGE_TOKENS
        pages = span.tables[kind][page : -(-span.start // PAGE_TOKENS)]
        index = torch.from_numpy(np.ascontiguousarray(pages)).long().to(keys.device)
        past = (
            store.index_select(1, index).flatten(1, 2)[
                None, :, first - page * PAGE_TOKENS : span.start - page * PAGE_TOKENS
            ]
            for store in stored
        )
        past_keys, past_values = past
        return torch.cat((past_keys, keys), dim=2), torch.cat((past_values, values), dim=2)


def _is_single(span: Span) -> bool:
    return span.count == 1 and span.start > 0


def _places(span: Span, kind: Kind) -> np.ndarray:
    """Where the new tokens of a span go, as page · 32 + place in the page."""
    positions = np.arange(span.start, span.end)
    return span.tables[kind][positions // PAGE_TOKENS].astype(np.int64) * PAGE_TOKENS + (
        positions % PAGE_TOKENS
    )
