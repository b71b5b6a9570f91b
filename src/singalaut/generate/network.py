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
from singalaut.generate.kernels.sampling import SlotState
from singalaut.generate.weights import EngineWeights
from singalaut.model.gemma3 import Gemma3, rotation
from singalaut.model.paged import KINDS, PAGE_TOKENS, Kind, PagedCache

Attention = Callable[[int, Tensor], Tensor]  # of a layer, from its queries, keys and values


class Network:
    """A model's weights as kernels take them, and what the device knows of each slot.

    The slot after the last belongs to nobody: padding of a batch works there.
    """

    def __init__(self, model: Gemma3, cache: PagedCache, slots: int, pages: int, vocab_size: int):
        self.model, self.cache, self.vocab_size = model, cache, vocab_size
        self.config = model.config
        self.device = model.embedding.weight.device
        self.dtype = cache.stores["global"].dtype
        self.weights = EngineWeights(model, self.dtype)
        self.state = SlotState.empty(slots + 1, self.device)
        self.tables: dict[Kind, Tensor] = {
            kind: torch.zeros(slots + 1, pages, dtype=torch.int32, device=self.device)
            for kind in KINDS
        }
        self.scale = self.config.query_scalar**-0.5
        self._scratch: dict[Kind, AttentionScratch] = {}
        root = torch.tensor(self.config.hidden_size**0.5, dtype=self.dtype)
        self._embedding_scale = float(root)
        self._rope = {kind: self._turns(kind, pages * PAGE_TOKENS) for kind in KINDS}

    def decode(self, slots: Tensor) -> Tensor:
        """Logits [R, V] after the newest token of each slot, whose key and value are stored."""
        return self._decode_one(slots) if len(slots) == 1 else self._decode_many(slots)

    def read(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        *,
        plans: dict[Kind, ChunkPlan],
        pictures: Tensor | None,
    ) -> Tensor:
        """Final hidden states [T, W] of tokens of prompts, which are stored.

        `pictures` are the embeddings of the image tokens among them.
        """
        config, eps = self.config, self.config.norm_eps
        x, h = self._embed(tokens, None)
        if pictures is not None:
            assert config.vision is not None
            x[tokens == config.vision.image_id] = pictures.flatten(0, 1).to(x.dtype)
            h = self.model.get_submodule("layers.0.attention_norm")(x)

        def attention(layer: int, qkv: Tensor) -> Tensor:
            kind = self.kind(layer)
            keys, values = self.cache.layer(layer)
            mine = self.weights.layers[layer]
            finish_qkv(
                qkv, mine.query_norm, mine.key_norm, eps, *self._rope[kind], positions, slots,
                self.tables[kind], keys, values, config.num_heads, positions_by_slot=False,
            )  # fmt: skip
            return plans[kind].attend(qkv, keys, values, config.num_heads, self.scale)

        self._layers(x, h, attention)
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in float32: rounded to bfloat16 they would be the largest error of the engine."""
        table = self.weights.embedding[: self.vocab_size]
        if self.dtype == torch.float32:
            return torch.mm(hidden, table.T)
        return torch.mm(hidden, table.T, out_dtype=torch.float32)

    def _decode_many(self, slots: Tensor) -> Tensor:
        rows, state = len(slots), self.state
        config, eps = self.config, self.config.norm_eps
        splits = {kind: self._splits(rows, kind) for kind in KINDS}
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
            out = self._empty(rows, config.num_heads * config.head_dim)
            attend(
                qkv, keys, values, out, self._scratch[kind], state.position, slots, table,
                self.scale, self.window(kind), splits[kind], positions_by_slot=True,
            )  # fmt: skip
            return out

        self._layers(x, h, attention)
        return self.logits(h)

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
                self.window(kind), splits[kind], mine.gate_up,
            )  # fmt: skip
            single.matvec(mine.output, out, y)
            single.norm_matvec(
                x, y, mine.attention_post_norm, mine.mlp_norm, eps, other, mine.gate_up, inner,
                gated=True,
            )  # fmt: skip
            x, other = other, x
            single.matvec(mine.down, inner, y)
        single.add_norms_row(x, y, layers[-1].mlp_post_norm, weights.final_norm, eps, other, h)
        logits = torch.empty(1, self.vocab_size, dtype=torch.float32, device=self.device)
        single.matvec(weights.embedding[: self.vocab_size], h, logits)
        return logits

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
            out = attention(index, torch.mm(h, mine.qkv.T))
            y = torch.mm(out, mine.output.T)
            add_norms(x, y, mine.attention_post_norm, mine.mlp_norm, eps, h)
            gate_up = torch.mm(h, mine.gate_up.T)
            inner = self._empty(len(x), gate_up.shape[1] // 2)
            gelu_mul(gate_up, inner)
            y = torch.mm(inner, mine.down.T)
            last = index + 1 == len(layers)
            following = self.weights.final_norm if last else layers[index + 1].attention_norm
            add_norms(x, y, mine.mlp_post_norm, following, eps, h)

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
        """How many programs share a row's keys; room for their results is made beside."""
        config = self.config
        most = config.window if kind == "window" else self.tables[kind].shape[1] * PAGE_TOKENS
        splits = choose_splits(rows, config.num_kv_heads, most)
        programs = rows * config.num_kv_heads * splits
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
