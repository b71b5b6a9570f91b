"""The passes of the network over kernels: one row, many rows that decode, chunks of prompts.

Which slots take part, where their pages are and when this runs is `fast.py`'s business; here are
the weights, the tables and the state on the device, and in which order kernels work on them.

Shapes: R rows, T tokens of prompts, W hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from singalaut.generate.chunks import ChunkPlan
from singalaut.generate.kernels import single
from singalaut.generate.kernels.attention import AttentionScratch, attend, choose_splits
from singalaut.generate.kernels.elementwise import add_norms, embed, finish_qkv, gelu_mul
from singalaut.generate.kernels.matmul import (
    Matrix,
    Quantised,
    fp8_product,
    product,
    rows_of,
    values_of,
)
from singalaut.generate.kernels.narrow import SharesScratch, narrow_product
from singalaut.generate.kernels.sampling import SlotState
from singalaut.generate.ranks import ALONE, Ranks
from singalaut.generate.weights import EngineWeights
from singalaut.model.gemma3 import Gemma3, rotation
from singalaut.model.paged import KINDS, PAGE_TOKENS, Kind, PagedCache

Attention = Callable[[int, Tensor], Tensor]  # of a layer, from its queries, keys and values
FP8_ROWS = 64  # from here on products are in FP8 as a whole, below only weights are
USUAL_ROWS = 64  # for which keys are split where the number of rows may not matter
ALONE_ROWS = 512  # whose attention is computed together where each row is on its own


class Network:
    """A model's weights as kernels take them, and what the device knows of each slot.

    The slot after the last belongs to nobody: padding of a batch works there. `weights` are held in
    int8 or fp8 where it says so. `batch_invariant`: tokens of prompts and of answers go through the
    same kernels, in which no row's numbers depend on how many rows there are. Of several `ranks`
    each has the layers' shares, all embeddings, and the logits of some tokens.
    """

    def __init__(
        self,
        model: Gemma3,
        cache: PagedCache,
        slots: int,
        pages: int,
        vocab_size: int,
        ranks: Ranks = ALONE,
        *,
        batch_invariant: bool,
        weights: str | None,
    ):
        self.model, self.cache, self.vocab_size = model, cache, vocab_size
        self.batch_invariant, self.ranks = batch_invariant, ranks
        self.config = model.config
        self.device = model.embedding.weight.device
        self.dtype = cache.stores["global"].dtype
        self.weights = EngineWeights(model, self.dtype, weights)
        self.state = SlotState.empty(slots + 1, self.device)
        self.tables: dict[Kind, Tensor] = {
            kind: torch.zeros(slots + 1, pages, dtype=torch.int32, device=self.device)
            for kind in KINDS
        }
        self.scale = self.config.query_scalar**-0.5
        self._scratch: dict[Kind, AttentionScratch] = {}
        self._shares = SharesScratch(self.device) if weights else None
        root = torch.tensor(self.config.hidden_size**0.5, dtype=self.dtype)
        self._embedding_scale = float(root)
        self._rope = {kind: self._turns(kind, pages * PAGE_TOKENS) for kind in KINDS}

    def decode(self, slots: Tensor) -> Tensor:
        """Logits [R, V] after the newest token of each slot, whose key and value are stored."""
        if len(slots) == 1 and not self.batch_invariant:
            return self._decode_one(slots)
        return self._decode_many(slots)

    def read(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        *,
        plans: dict[Kind, ChunkPlan] | None,
        lasts: Tensor | None = None,
        pictures: Tensor | None,
    ) -> Tensor:
        """Final hidden states [T, W] of tokens of prompts, which are stored.

        `pictures` are the embeddings of the image tokens among them. Without `plans` each token is
        a row of its own, which sees the keys up to its `lasts` or else its position.
        """
        config, eps = self.config, self.config.norm_eps
        x, h = self._embed(tokens, None)
        if pictures is not None:
            assert config.vision is not None
            is_image = tokens == config.vision.image_id
            x[is_image] = pictures.flatten(0, 1).to(x.dtype)
            h[is_image] = self.model.get_submodule("layers.0.attention_norm")(x[is_image])

        def attention(layer: int, qkv: Tensor) -> Tensor:
            kind = self.kind(layer)
            keys, values = self.cache.layer(layer)
            mine = self.weights.layers[layer]
            finish_qkv(
                qkv, mine.query_norm, mine.key_norm, eps, *self._rope[kind], positions, slots,
                self.tables[kind], keys, values, config.num_heads, positions_by_slot=False,
            )  # fmt: skip
            if plans is None:
                return self._attend(layer, qkv, positions, slots, lasts, by_slot=False)
            return plans[kind].attend(qkv, keys, values, config.num_heads, self.scale)

        self._layers(x, h, attention)
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in float32: rounded to bfloat16 they would be the largest error of the engine."""
        table = self._head()
        if self.batch_invariant:
            logits = product(hidden, table, torch.float32)
        elif isinstance(table, Quantised):
            logits = narrow_product(hidden, table, self._shares, torch.float32)
        elif self.dtype == torch.float32:
            logits = torch.mm(hidden, table.T)
        else:
            logits = torch.mm(hidden, table.T, out_dtype=torch.float32)
        return self.ranks.join_columns(logits, self._head_rows(), self.vocab_size)

    def _decode_many(self, slots: Tensor) -> Tensor:
        state, config, eps = self.state, self.config, self.config.norm_eps
        x, h = self._embed(state.token, slots)

        def attention(layer: int, qkv: Tensor) -> Tensor:
            kind = self.kind(layer)
            keys, values = self.cache.layer(layer)
            table = self.tables[kind]
            mine = self.weights.layers[layer]
            finish_qkv(
                qkv, mine.query_norm, mine.key_norm, eps, *self._rope[kind], state.position,
                slots, table, keys, values, config.num_heads, positions_by_slot=True,
            )  # fmt: skip
            return self._attend(layer, qkv, state.position, slots, None, by_slot=True)

        self._layers(x, h, attention)
        return self.logits(h)

    def _attend(
        self,
        layer: int,
        qkv: Tensor,
        positions: Tensor,
        slots: Tensor,
        lasts: Tensor | None,
        *,
        by_slot: bool,
    ) -> Tensor:
        """Attention of rows over stored keys; `positions` are those of rows or of slots."""
        rows, kind, config = len(slots), self.kind(layer), self.config
        together = ALONE_ROWS if self.batch_invariant else rows
        splits = self._splits(together, kind)
        out = self._empty(rows, config.num_heads * config.head_dim)
        for first in range(0, rows, together):
            some = slice(first, first + together)
            attend(
                qkv[some], *self.cache.layer(layer), out[some], self._scratch[kind],
                positions if by_slot else positions[some], slots[some], self.tables[kind],
                self.scale, self.window(kind), splits, positions_by_slot=by_slot,
                lasts=None if lasts is None else lasts[some],
            )  # fmt: skip
        return out

    def _decode_one(self, slots: Tensor) -> Tensor:
        """The same for one row, by kernels that only read weights."""
        config, weights, state = self.config, self.weights, self.state
        eps, width = config.norm_eps, config.hidden_size
        layers = weights.layers
        x, h = self._embed(state.token, slots)
        other, y = self._residual(1), self._empty(1, width)
        heads = config.num_heads + 2 * config.num_kv_heads
        qkv = self._empty(1, heads * config.head_dim)
        out = self._empty(1, config.num_heads * config.head_dim)
        inner = self._empty(1, config.intermediate_size)
        splits = {kind: self._splits(1, kind) for kind in KINDS}
        for index, mine in enumerate(layers):
            kind = self.kind(index)
            if index == 0:
                single.matvec(mine.qkv, h, qkv)
            else:
                post = layers[index - 1].mlp_post_norm
                single.norm_matvec(
                    x, y, post, mine.attention_norm, eps, other, mine.qkv, qkv, gated=False
                )
                x, other = other, x
            keys, values = self.cache.layer(index)
            single.attend_row(
                qkv, mine.query_norm, mine.key_norm, eps, *self._rope[kind], state.position, slots,
                self.tables[kind], keys, values, out, self._scratch[kind], self.scale,
                self.window(kind), splits[kind],
            )  # fmt: skip
            single.matvec(mine.output, out, y)
            self.ranks.sum(y)
            single.norm_matvec(
                x, y, mine.attention_post_norm, mine.mlp_norm, eps, other, mine.gate_up, inner,
                gated=True,
            )  # fmt: skip
            x, other = other, x
            single.matvec(mine.down, inner, y)
            self.ranks.sum(y)
        single.add_norms_row(x, y, layers[-1].mlp_post_norm, weights.final_norm, eps, other, h)
        table = self._head()
        count = len(values_of(table))
        logits = torch.empty(1, count, dtype=torch.float32, device=self.device)
        single.matvec(table, h, logits)
        return self.ranks.join_columns(logits, self._head_rows(), self.vocab_size)

    def _head_rows(self) -> int:
        """Rows of the head that each process multiplies, the last ones perhaps fewer."""
        size = self.ranks.size
        return self.vocab_size if size == 1 else 64 * -(-self.vocab_size // (64 * size))

    def _head(self) -> Matrix:
        """The rows of the head that this process multiplies."""
        each = self._head_rows()
        first = self.ranks.rank * each
        return rows_of(self.weights.head, first, min(first + each, self.vocab_size))

    def _embed(self, tokens: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream of tokens, or of the newest ones of slots, and its first norm."""
        rows = len(tokens if slots is None else slots)
        x, h = self._residual(rows), self._empty(rows, self.config.hidden_size)
        norm, scale = self.weights.layers[0].attention_norm, self._embedding_scale
        embed(tokens, slots, self.weights.embedding, scale, norm, self.config.norm_eps, x, h)
        return x, h

    def _layers(self, x: Tensor, h: Tensor, attention: Attention) -> None:
        """All layers over rows of tokens; `h` ends as the final hidden states."""
        eps, layers = self.config.norm_eps, self.weights.layers
        for index, mine in enumerate(layers):
            out = attention(index, self._product(h, mine.qkv))
            y = self.ranks.sum(self._product(out, mine.output))
            add_norms(x, y, mine.attention_post_norm, mine.mlp_norm, eps, h)
            gate_up = self._product(h, mine.gate_up)
            inner = self._empty(len(x), gate_up.shape[1] // 2)
            gelu_mul(gate_up, inner)
            y = self.ranks.sum(self._product(inner, mine.down))
            last = index + 1 == len(layers)
            following = self.weights.final_norm if last else layers[index + 1].attention_norm
            add_norms(x, y, mine.mlp_post_norm, following, eps, h)

    def _product(self, x: Tensor, weight: Matrix) -> Tensor:
        if isinstance(weight, Quantised):
            is_fp8 = weight.values.dtype == torch.float8_e4m3fn
            if self.batch_invariant:
                return product(x, weight)
            if is_fp8 and x.is_cuda and len(x) >= FP8_ROWS:
                return fp8_product(x, weight, self.dtype)
            return narrow_product(x, weight, self._shares)
        return product(x, weight) if self.batch_invariant else torch.mm(x, weight.T)

    def kind(self, layer: int) -> Kind:
        return "global" if self.config.is_global(layer) else "window"

    def window(self, kind: Kind) -> int | None:
        return self.config.window if kind == "window" else None

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device=self.device)

    def _residual(self, rows: int) -> Tensor:
        shape = (rows, self.config.hidden_size)
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def _splits(self, rows: int, kind: Kind) -> int:
        """How many programs share a row's keys; room for their results is made beside.

        Rows that must not know of others get as many as rows of a batch of some size.
        """
        config = self.config
        most = config.window if kind == "window" else self.tables[kind].shape[1] * PAGE_TOKENS
        company = USUAL_ROWS if self.batch_invariant else rows
        splits = choose_splits(company, config.num_kv_heads, most)
        # never more than the least room, which captured graphs hold on to: one share needs none
        programs = rows * config.num_kv_heads * splits if splits > 1 else 0
        known = self._scratch.get(kind)
        if known is None or len(known.counters) < programs:
            self._scratch[kind] = AttentionScratch(
                max(programs, 2048), config.head_dim, self.device
            )
        return splits

    def _turns(self, kind: Kind, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all positions, [positions, D / 2], as the network rounds them."""
        config = self.config
        theta = config.rope_theta if kind == "global" else config.rope_local_theta
        factor = config.rope_factor if kind == "global" else 1.0
        positions = torch.arange(length, device=self.device)[None]
        both = rotation(positions, config.head_dim, theta, factor, self.dtype)
        cos, sin = (turn[0, 0, :, : config.head_dim // 2].contiguous() for turn in both)
        return cos, sin
