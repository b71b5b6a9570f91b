"""The network on a CUDA device: decoding by captured graphs, the host a step behind.

One graph holds a whole decoding step of up to so many rows: embeddings, layers, logits, sampling
and the state that the next step begins with. The host only says which slots take part and which
pages they have got, and reads tokens while the next step runs. Prompts are read by a pass of their
own between two graphs. Answers whose sampling needs more than the device's sampler can do go
through the host's (`sampling.py`).

Shapes: R rows, T tokens of prompts, W hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from singalaut.generate.answer import Answer
from singalaut.generate.images import ImageEmbeddings
from singalaut.generate.kernels import single
from singalaut.generate.kernels.attention import AttentionScratch, attend, choose_splits
from singalaut.generate.kernels.elementwise import (
    add_norms,
    embed,
    finish_qkv,
    gelu_mul,
    set_pages,
)
from singalaut.generate.kernels.sampling import BAD_TOKEN, LARGEST_TOP_K, Picked, SlotState
from singalaut.generate.kernels.sampling import sample as sample_on_device
from singalaut.generate.pages import PageTables
from singalaut.generate.plain import (
    Outcome,
    first_bad_layer,
    image_groups_of,
    score_prompt,
    see,
)
from singalaut.generate.sampling import sample
from singalaut.generate.scheduler import Chunk, Step
from singalaut.generate.weights import EngineWeights
from singalaut.model.attention import causal_attention
from singalaut.model.flash import Spans, attend_spans, can_flash
from singalaut.model.gemma3 import Gemma3, rotation
from singalaut.model.paged import KINDS, Kind, PagedCache

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
LAUNCHED, FILTERED, ON_HOST = range(3)  # how an answer is sampled, the more expensive the higher


@dataclass
class Part:
    """Rows that were sampled together, on their way to the host."""

    answers: list[Answer]
    results: Tensor  # on the host: tokens, and log-probabilities as the bits of integers


@dataclass
class Launched:
    """A step under way; `wait` gives its tokens."""

    answers: list[Answer] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    known: list[Outcome] = field(default_factory=list)
    event: torch.cuda.Event | None = None

    def wait(self) -> Outcome:
        if self.event is not None:
            self.event.synchronize()
        found = list(self.known)
        for part in self.parts:
            count = len(part.answers)
            tokens = part.results[0, :count].tolist()
            logprobs = part.results[1, :count].view(torch.float32).tolist()
            bad = [token == BAD_TOKEN for token in tokens]
            found.append(Outcome(part.answers, tokens, logprobs, None, bad))
        if len(found) == 1:
            return found[0]
        return Outcome.joined(found)


@dataclass
class Graph:
    """A captured step of `rows`: the slots it works on, and what it gives."""

    replay: Callable[[], object]
    slots: Tensor
    picked: Picked
    logits: Tensor
    known: list[int] = field(default_factory=list)  # the slots that are there already


class FastRunner:
    """Runs steps ahead of the host."""

    keeps_ahead = True

    def __init__(
        self,
        model: Gemma3,
        images: ImageEmbeddings,
        cache: PagedCache,
        tables: PageTables,
        vocab_size: int,
        image_id: int | None,
    ):
        self.model, self.images, self.cache, self.tables = model, images, cache, tables
        self.vocab_size = vocab_size
        self.hidden_id = -1 if image_id is None or image_id >= vocab_size else image_id
        self.device = model.embedding.weight.device
        self._on_gpu = self.device.type == "cuda"
        self.config = config = model.config
        self.dtype = cache.stores["global"].dtype
        self.weights = EngineWeights(model, self.dtype)
        self.scale = config.query_scalar**-0.5
        slots, width = tables.tables["global"].shape
        self.nobody = slots
        self.state = SlotState.empty(slots + 1, self.device)
        self.page_tables: dict[Kind, Tensor] = {
            kind: torch.zeros(slots + 1, width, dtype=torch.int32, device=self.device)
            for kind in KINDS
        }
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._pool: Any = None
        self._scratch: dict[Kind, AttentionScratch] = {}
        root = torch.tensor(config.hidden_size**0.5, dtype=self.dtype)
        self._embedding_scale = float(root)
        self._rope = {kind: self._turns(kind, width * 32) for kind in KINDS}

    def refresh(self) -> None:
        """Take note of new weights."""
        self.weights.refresh()

    def close(self) -> None:
        """Let go of graphs and copies of the weights."""
        if self._on_gpu:
            torch.cuda.synchronize(self.device)
        self._graphs.clear()

    def first_bad_layer(self, answer: Answer) -> str | None:
        with torch.inference_mode():
            return first_bad_layer(self.model, answer, self.images)

    @torch.inference_mode()
    def launch(self, step: Step) -> Launched:
        """Queue a step on the device; its tokens are fetched by `wait`."""
        self._send_pages()
        launched = Launched()
        if step.decode:
            self._decode(step.decode, launched)
        if step.chunks:
            self._read(step.chunks, launched)
        launched.answers = [a for part in launched.parts for a in part.answers]
        launched.answers += [a for outcome in launched.known for a in outcome.answers]
        if launched.parts and self._on_gpu:
            launched.event = torch.cuda.Event()
            launched.event.record()
        return launched

    # decoding

    def _decode(self, answers: list[Answer], launched: Launched) -> None:
        kind = max(_sampler_of(answer) for answer in answers)
        rows = next((b for b in BUCKETS if b >= len(answers)), len(answers))
        graph = self._graph(rows, kind)
        slots = [answer.slot for answer in answers]
        if slots != graph.known:
            padded = slots + [self.nobody] * (rows - len(slots))
            graph.slots.copy_(self._send(padded, torch.int32), non_blocking=True)
            graph.known = slots
        graph.replay()
        if kind == ON_HOST:
            self._sample_on_host(graph.logits[: len(answers)], answers, launched)
        else:
            launched.parts.append(self._fetch(answers, graph.picked))

    def _graph(self, rows: int, kind: int) -> Graph:
        found = self._graphs.get((rows, kind))
        if found is None:
            found = self._graphs[rows, kind] = self._capture(rows, kind)
        return found

    def _capture(self, rows: int, kind: int) -> Graph:
        """Record a decoding step; a first run with nobody's slots compiles what it needs."""
        slots = torch.full((rows,), self.nobody, dtype=torch.int32, device=self.device)
        picked = Picked.empty(rows, self.vocab_size, self.device)
        run = partial(self._decode_rows, slots, picked, kind)
        if not self._on_gpu:  # Triton's interpreter: for tests
            logits = run().clone()
            return Graph(lambda: logits.copy_(run()), slots, picked, logits)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = run()
        self._pool = self._pool or graph.pool()
        return Graph(graph.replay, slots, picked, logits if kind == ON_HOST else logits[:0])

    def _decode_rows(self, slots: Tensor, picked: Picked, kind: int) -> Tensor:
        """One step of the slots, up to sampled tokens or, for the host's sampler, logits."""
        rows = len(slots)
        logits = self._decode_one(slots) if rows == 1 else self._decode_many(slots)
        if kind != ON_HOST:
            sample_on_device(
                logits, slots, self.state, picked, self.hidden_id, filtered=kind == FILTERED
            )
        return logits

    def _decode_many(self, slots: Tensor) -> Tensor:
        rows, state = len(slots), self.state
        config, weights = self.config, self.weights
        splits = {kind: self._splits(rows, kind) for kind in KINDS}
        x, h = self._residual(rows), self._empty(rows, config.hidden_size)
        eps = config.norm_eps
        first = weights.layers[0].attention_norm
        embed(state.token, slots, weights.embedding, self._embedding_scale, first, eps, x, h)

        def attention(layer: int, qkv: Tensor) -> Tensor:
            kind = self._kind(layer)
            keys, values = self.cache.layer(layer)
            table = self.page_tables[kind]
            mine = weights.layers[layer]
            finish_qkv(
                qkv, mine.query_norm, mine.key_norm, eps, *self._rope[kind], state.position,
                slots, table, keys, values, config.num_heads, positions_by_slot=True,
            )  # fmt: skip
            out = self._empty(rows, config.num_heads * config.head_dim)
            attend(
                qkv, keys, values, out, self._scratch[kind], state.position, slots, table,
                self.scale, self._window(kind), splits[kind], positions_by_slot=True,
            )  # fmt: skip
            return out

        self._layers(x, h, attention)
        return self._head(h)

    def _decode_one(self, slots: Tensor) -> Tensor:
        """The same for one row, by kernels that only read weights."""
        config, weights, state = self.config, self.weights, self.state
        eps, width = config.norm_eps, config.hidden_size
        layers = weights.layers
        x, other = self._residual(1), self._residual(1)
        y, h = self._empty(1, width), self._empty(1, width)
        heads = config.num_heads + 2 * config.num_kv_heads
        qkv = self._empty(1, heads * config.head_dim)
        out = self._empty(1, config.num_heads * config.head_dim)
        inner = self._empty(1, config.intermediate_size)
        splits = {kind: self._splits(1, kind) for kind in KINDS}
        first = layers[0].attention_norm
        embed(state.token, slots, weights.embedding, self._embedding_scale, first, eps, x, h)
        for index, mine in enumerate(layers):
            kind = self._kind(index)
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
                self.page_tables[kind], keys, values, out, self._scratch[kind], self.scale,
                self._window(kind), splits[kind], mine.gate_up,
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

    def _layers(self, x: Tensor, h: Tensor, attention: Callable[[int, Tensor], Tensor]) -> None:
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

    # reading prompts

    def _read(self, chunks: Sequence[Chunk], launched: Launched) -> None:
        """Store the tokens of chunks, and sample where a prompt ends."""
        self._welcome([chunk.answer for chunk in chunks if chunk.samples])
        hidden = self._read_chunks(chunks)
        begin, places, answers = 0, [], []
        for chunk in chunks:
            count = chunk.end - chunk.start
            score_prompt(chunk, hidden[begin : begin + count], self._logits)
            begin += count
            if chunk.samples:
                places.append(begin - 1)
                answers.append(chunk.answer)
        if not answers:
            return
        logits = self._logits(hidden[self._send(places, torch.int64)])
        kind = max(_sampler_of(answer) for answer in answers)
        if kind == ON_HOST:
            self._sample_on_host(logits, answers, launched)
            return
        slots = self._send([answer.slot for answer in answers], torch.int32)
        picked = Picked.empty(len(answers), self.vocab_size, self.device)
        sample_on_device(
            logits, slots, self.state, picked, self.hidden_id, filtered=kind == FILTERED
        )
        launched.parts.append(self._fetch(answers, picked))

    def _read_chunks(self, chunks: Sequence[Chunk]) -> Tensor:
        """Final hidden states [T, W] of all tokens of the chunks, end to end."""
        config, weights, eps = self.config, self.weights, self.config.norm_eps
        counts = [chunk.end - chunk.start for chunk in chunks]
        tokens = np.concatenate([np.array(c.answer.tokens[c.start : c.end]) for c in chunks])
        positions = np.concatenate([np.arange(c.start, c.end) for c in chunks])
        slots = np.repeat([chunk.answer.slot for chunk in chunks], counts)
        sent = self._send(np.stack([tokens, positions, slots]), torch.int32)
        x, h = self._residual(len(tokens)), self._empty(len(tokens), config.hidden_size)
        first = weights.layers[0].attention_norm
        embed(sent[0], None, weights.embedding, self._embedding_scale, first, eps, x, h)
        pictures = see(self.images, chunks)
        if pictures is not None:
            assert config.vision is not None
            x[sent[0] == config.vision.image_id] = pictures.flatten(0, 1).to(x.dtype)
            h = self.model.get_submodule("layers.0.attention_norm")(x)
        plans = {kind: ChunkPlan.of(chunks, kind, self) for kind in KINDS}

        def attention(layer: int, qkv: Tensor) -> Tensor:
            kind = self._kind(layer)
            keys, values = self.cache.layer(layer)
            mine = weights.layers[layer]
            finish_qkv(
                qkv, mine.query_norm, mine.key_norm, eps, *self._rope[kind], sent[1], sent[2],
                self.page_tables[kind], keys, values, config.num_heads, positions_by_slot=False,
            )  # fmt: skip
            return plans[kind].attend(qkv, keys, values)

        self._layers(x, h, attention)
        return h

    def _welcome(self, answers: Sequence[Answer]) -> None:
        """Tell the device about answers that are about to get their first token here."""
        if not answers:
            return
        params = [answer.request.sampling for answer in answers]
        ints = [
            [answer.slot for answer in answers],
            [len(answer.tokens) - 1 for answer in answers],
            [answer.num_prompt for answer in answers],
            [p.top_k for p in params],
        ]
        numbers = self._send(ints, torch.int64)
        slots = numbers[0]
        floats = self._send(
            [[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]],
            torch.float32,
        )
        state = self.state
        state.position[slots] = numbers[1].int()
        state.prompt[slots] = numbers[2].int()
        state.top_k[slots] = numbers[3].int()
        state.key[slots] = self._send([answer.seed for answer in answers], torch.int64)
        state.temperature[slots], state.top_p[slots], state.min_p[slots] = floats

    # sampling and transfers

    def _sample_on_host(self, logits: Tensor, answers: list[Answer], launched: Launched) -> None:
        """Sample by the host's rules; the device hears of the tokens at once."""
        if self.hidden_id >= 0:
            logits[:, self.hidden_id] = float("-inf")
        sampled = sample(logits, answers)
        slots = self._send([answer.slot for answer in answers], torch.int64)
        self.state.token[slots] = sampled.tokens.int()
        self.state.position[slots] += 1
        launched.known.append(Outcome.of(answers, sampled))

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits in float32: rounded to bfloat16 they would be the largest error of the engine."""
        table = self.weights.embedding[: self.vocab_size]
        if self.dtype == torch.float32:
            return torch.mm(hidden, table.T)
        return torch.mm(hidden, table.T, out_dtype=torch.float32)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._head(hidden)
        if self.hidden_id >= 0:
            logits[:, self.hidden_id] = float("-inf")
        return logits

    def _fetch(self, answers: list[Answer], picked: Picked) -> Part:
        """Begin to copy tokens and log-probabilities to the host."""
        results = picked.results
        host = torch.empty(results.shape, dtype=results.dtype, pin_memory=self._on_gpu)
        return Part(answers, host.copy_(results, non_blocking=True))

    def _send_pages(self) -> None:
        changes = self.tables.changes
        if changes:
            rows = [(KINDS.index(kind), slot, index, page) for kind, slot, index, page in changes]
            set_pages(
                self._send(rows, torch.int32),
                (self.page_tables["global"], self.page_tables["window"]),
            )
            changes.clear()

    def _send(self, values: object, dtype: torch.dtype) -> Tensor:
        """Numbers to the device without waiting for it."""
        host = torch.as_tensor(values, dtype=dtype)
        if self._on_gpu:
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    # shapes

    def _kind(self, layer: int) -> Kind:
        return "global" if self.config.is_global(layer) else "window"

    def _window(self, kind: Kind) -> int | None:
        return self.config.window if kind == "window" else None

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device=self.device)

    def _residual(self, rows: int) -> Tensor:
        shape = (rows, self.config.hidden_size)
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def _splits(self, rows: int, kind: Kind) -> int:
        """How many programs share a row's keys; room for their results is made beside."""
        config = self.config
        most = config.window if kind == "window" else self.page_tables[kind].shape[1] * 32
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


def _sampler_of(answer: Answer) -> int:
    """Which sampler can serve an answer."""
    params = answer.request.sampling
    if (
        answer.needs_tokens
        or params.logit_bias
        or params.top_logprobs
        or answer.place < params.min_tokens
    ):
        return ON_HOST
    if params.temperature == 0 or not (params.top_k or params.top_p < 1 or params.min_p):
        return LAUNCHED
    return FILTERED if 0 < params.top_k <= LARGEST_TOP_K else ON_HOST


@dataclass(frozen=True)
class ChunkPlan:
    """Attention of chunks in one kind of layer: over themselves and what was stored before."""

    runner: FastRunner
    counts: list[int]
    window: int | None
    query_spans: Spans
    key_spans: Spans
    gather: Tensor | None  # places in the store of all keys, where some were stored before
    images: list[Tensor | None] | None
    key_counts: list[int]

    @classmethod
    def of(cls, chunks: Sequence[Chunk], kind: Kind, runner: FastRunner) -> ChunkPlan:
        window = runner.config.window if kind == "window" else None
        counts = [chunk.end - chunk.start for chunk in chunks]
        firsts = [0 if window is None else max(0, c.start - window + 1) for c in chunks]
        key_counts = [c.end - first for c, first in zip(chunks, firsts, strict=True)]
        gather = None
        if key_counts != counts:
            table = runner.tables.tables[kind]
            places = []
            for chunk, first in zip(chunks, firsts, strict=True):
                at = np.arange(first, chunk.end)
                pages = table[chunk.answer.slot][at // 32].astype(np.int64)
                places.append(pages * 32 + at % 32)
            gather = runner._send(np.concatenate(places), torch.int64)
        images = None
        if any(chunk.answer.image_runs for chunk in chunks):
            images = [
                None if groups is None else groups[first:]
                for chunk, first in zip(chunks, firsts, strict=True)
                for groups in [image_groups_of(chunk.answer, chunk.end, runner.device)]
            ]
        return cls(
            runner,
            counts,
            window,
            Spans.of(counts, runner.device),
            Spans.of(key_counts, runner.device),
            gather,
            images,
            key_counts,
        )

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        config, scale = self.runner.config, self.runner.scale
        heads, key_heads = config.num_heads, config.num_kv_heads
        parts = qkv.view(len(qkv), -1, config.head_dim).transpose(0, 1)[None]
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
