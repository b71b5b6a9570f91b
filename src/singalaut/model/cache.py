"""Keys and values of several growing sequences, one row each.

Global layers keep every position; window layers keep a ring of `window` positions, so their
memory does not grow. Rows 0…n-1 are the active ones: releasing a row moves the last one into
its place. Keys are stored rotated, so a ring never needs its positions again.

Shapes: R rows, B active rows, K key heads, G query heads a key head, S stored positions,
D head width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from singalaut.model.attention import causal_attention
from singalaut.model.config import Gemma3Config

GROWTH_TOKENS = 256


class Cache:
    """Room for `rows` sequences; global layers grow as the longest sequence needs."""

    def __init__(
        self, config: Gemma3Config, rows: int, dtype: torch.dtype, device: torch.device | str
    ):
        self.config = config
        self.rows = rows
        self.lengths: list[int] = []  # tokens stored in each active row
        self._capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        for _ in range(config.num_layers):
            for store in (self._keys, self._values):
                store.append(
                    torch.zeros(
                        rows, config.num_kv_heads, 0, config.head_dim, dtype=dtype, device=device
                    )
                )

    def reserve(self, tokens: int) -> None:
        """Make room for sequences of up to `tokens` tokens."""
        if tokens <= self._capacity:
            return
        self._capacity = -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS
        for layer in range(self.config.num_layers):
            room = self._room(layer)
            for store in (self._keys, self._values):
                old = store[layer]
                if old.shape[2] < room:
                    new = old.new_zeros(*old.shape[:2], room, old.shape[3])
                    new[:, :, : old.shape[2]] = old
                    store[layer] = new

    def prefill(
        self, source: int = 0, shared: int = 0, images: Int[Tensor, " S"] | None = None
    ) -> _Prefill:
        """A plan for the forward pass over a new sequence, which becomes the last active row.

        Its first `shared` tokens are those of row `source` and are copied from there; the pass is
        over the tokens after them. `can_share` says whether that row still has them all. `images`
        are the image groups of the whole sequence; `shared` may not end inside an image.
        """
        return _Prefill(self, source, shared, images)

    def can_share(self, row: int) -> bool:
        """Whether no window layer has overwritten the beginning of a row."""
        return self.lengths[row] <= self.config.window

    def decode(self) -> _Decode:
        """A plan for one more token in every active row."""
        return _Decode(self)

    def release(self, row: int) -> None:
        """Free a row; the last active row takes its index."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in range(self.config.num_layers):
                stored = min(self.lengths[last], self._room(layer))
                for store in (self._keys[layer], self._values[layer]):
                    store[row, :, :stored] = store[last, :, :stored]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def clear(self) -> None:
        """Free all rows and give their memory back."""
        self.lengths.clear()
        self._capacity = 0
        self._keys = [keys[:, :, :0].clone() for keys in self._keys]
        self._values = [values[:, :, :0].clone() for values in self._values]

    def memory_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values))

    def _room(self, layer: int) -> int:
        if self.config.is_global(layer):
            return self._capacity
        return min(self._capacity, self.config.window)


class _Prefill:
    """Attention of a new sequence within itself; its keys and values go to a free row."""

    def __init__(
        self, cache: Cache, source: int, shared: int, images: Int[Tensor, " S"] | None = None
    ):
        assert not shared or cache.can_share(source)
        self.cache, self.source, self.shared, self.images = cache, source, shared, images
        self.row = len(cache.lengths)

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "1 H T D"],
        keys: Float[Tensor, "1 K T D"],
        values: Float[Tensor, "1 K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "1 H T D"]:
        cache, shared = self.cache, self.shared
        length = shared + keys.shape[2]
        if layer == 0:
            cache.reserve(length + 1)
            cache.lengths.append(length)
        stored = cache._keys[layer], cache._values[layer]
        if shared:
            keys, values = (
                torch.cat((store[self.source, None, :, :shared], new), dim=2)
                for store, new in zip(stored, (keys, values), strict=True)
            )
        kept = length if window is None else min(length, window)
        places = torch.arange(length - kept, length, device=keys.device) % cache._room(layer)
        for store, all_rows in zip(stored, (keys, values), strict=True):
            store[self.row][:, places] = all_rows[0, :, length - kept :]
        return causal_attention(queries, keys, values, scale, window, self.images)


class _Decode:
    """Attention of one new token in each active row over what the row has stored."""

    def __init__(self, cache: Cache):
        self.cache = cache
        longest = max(cache.lengths) + 1
        cache.reserve(longest)
        device = cache._keys[0].device
        self.rows = torch.arange(len(cache.lengths), device=device)
        self.positions: Int[Tensor, " B"] = torch.tensor(cache.lengths, device=device)
        self._hidden = {}  # layer kind -> additive mask over stored places
        self._places = {}
        self._stored = {}
        window = cache.config.window
        for kind, room in (("global", longest), ("window", min(longest, window))):
            ring = cache._capacity if kind == "global" else min(cache._capacity, window)
            self._stored[kind] = room
            self._places[kind] = self.positions % ring
            empty = torch.arange(room, device=device) > self.positions[:, None]
            self._hidden[kind] = empty[:, None, None, :]
        for row in range(len(cache.lengths)):
            cache.lengths[row] += 1

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "B H 1 D"],
        keys: Float[Tensor, "B K 1 D"],
        values: Float[Tensor, "B K 1 D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "B H 1 D"]:
        kind = "global" if window is None else "window"
        count, stored = len(self.rows), self._stored[kind]
        all_keys, all_values = self.cache._keys[layer], self.cache._values[layer]
        all_keys[self.rows, :, self._places[kind]] = keys[:, :, 0]
        all_values[self.rows, :, self._places[kind]] = values[:, :, 0]
        heads = keys.shape[1]
        q_BKGD = queries.reshape(count, heads, -1, queries.shape[-1]) * scale
        scores_BKGS = q_BKGD @ all_keys[:count, :, :stored].transpose(-1, -2)
        scores_BKGS = scores_BKGS.masked_fill(self._hidden[kind], float("-inf"))
        weights_BKGS = scores_BKGS.softmax(-1, dtype=torch.float32).to(values.dtype)
        return (weights_BKGS @ all_values[:count, :, :stored]).reshape(queries.shape)
