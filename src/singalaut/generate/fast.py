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
from singalaut.generate.chunks import ChunkPlan
from singalaut.generate.images import ImageEmbeddings
from singalaut.generate.kernels.elementwise import set_pages
from singalaut.generate.kernels.sampling import BAD_TOKEN, LARGEST_TOP_K, Picked
from singalaut.generate.kernels.sampling import sample as sample_on_device
from singalaut.generate.network import Network
from singalaut.generate.pages import PageTables
from singalaut.generate.plain import (
    Outcome,
    first_bad_layer,
    lasts_seen,
    score_prompt,
    see,
    take_tokens,
)
from singalaut.generate.ranks import ALONE, Ranks
from singalaut.generate.scheduler import Chunk, Step
from singalaut.model.gemma3 import Gemma3
from singalaut.model.paged import KINDS, PagedCache

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

    def is_done(self) -> bool:
        return self.event is None or self.event.query()

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
        *,
        batch_invariant: bool = False,
        weights: str | None = None,
        ranks: Ranks = ALONE,
    ):
        self.model, self.images, self.cache, self.tables = model, images, cache, tables
        self.vocab_size = vocab_size
        self.hidden_id = -1 if image_id is None or image_id >= vocab_size else image_id
        self.device = model.embedding.weight.device
        self._on_gpu = self.device.type == "cuda"
        slots, pages = tables.tables["global"].shape
        self.nobody = slots
        self.batch_invariant, self.ranks = batch_invariant, ranks
        self.network = Network(
            model, cache, slots, pages, vocab_size, ranks,
            batch_invariant=batch_invariant, weights=weights,
        )  # fmt: skip
        self.state = self.network.state
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._pool: Any = None

    def refresh(self) -> None:
        """Take note of new weights."""
        self.network.weights.refresh()

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
        for group in self._groups(step.decode):
            self._decode(group, launched)
        if step.chunks:
            self._read(step.chunks, launched)
        launched.answers = [a for part in launched.parts for a in part.answers]
        launched.answers += [a for outcome in launched.known for a in outcome.answers]
        if launched.parts and self._on_gpu:
            launched.event = torch.cuda.Event()
            launched.event.record()
        return launched

    def _groups(self, answers: list[Answer]) -> list[list[Answer]]:
        """Answers that are sampled together: all of them, unless company may not matter."""
        if not self.batch_invariant:
            return [answers] if answers else []
        groups: dict[int, list[Answer]] = {}
        for answer in answers:
            groups.setdefault(_sampler_of(answer), []).append(answer)
        return list(groups.values())

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
        # NCCL has threads of its own, which may ask for events meanwhile
        mode = "global" if self.ranks.size == 1 else "thread_local"
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=mode):
            logits = run()
        self._pool = self._pool or graph.pool()
        return Graph(graph.replay, slots, picked, logits if kind == ON_HOST else logits[:0])

    def _decode_rows(self, slots: Tensor, picked: Picked, kind: int) -> Tensor:
        """One step of the slots, up to sampled tokens or, for the host's sampler, logits."""
        logits = self.network.decode(slots)
        if kind != ON_HOST:
            sample_on_device(
                logits, slots, self.state, picked, self.hidden_id, filtered=kind == FILTERED
            )
        return logits

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
        place_of = dict(zip(answers, places, strict=True))
        for group in self._groups(answers):
            rows = self._send([place_of[answer] for answer in group], torch.int64)
            self._sample(self._logits(hidden[rows]), group, launched)

    def _sample(self, logits: Tensor, answers: list[Answer], launched: Launched) -> None:
        """The first tokens of answers."""
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
        counts = [chunk.end - chunk.start for chunk in chunks]
        tokens = np.concatenate([np.array(c.answer.tokens[c.start : c.end]) for c in chunks])
        positions = np.concatenate([np.arange(c.start, c.end) for c in chunks])
        slots = np.repeat([chunk.answer.slot for chunk in chunks], counts)
        sent = self._send(np.stack([tokens, positions, slots]), torch.int32).unbind()
        pictures = see(self.images, chunks)
        if self.batch_invariant:
            lasts = None
            if pictures is not None:
                lasts = self._send(np.concatenate([lasts_seen(c) for c in chunks]), torch.int32)
            return self.network.read(*sent, plans=None, lasts=lasts, pictures=pictures)
        plans = {
            kind: ChunkPlan.of(
                chunks, self.tables.tables[kind], self.network.window(kind), self.device, self._send
            )
            for kind in KINDS
        }
        return self.network.read(*sent, plans=plans, pictures=pictures)

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
        slots = self._send([answer.slot for answer in answers], torch.int64)
        if self.ranks.is_first:
            outcome = take_tokens(logits, answers, alone=self.batch_invariant)
            launched.known.append(outcome)
            tokens = self._send(outcome.tokens, torch.int32)
        else:
            tokens = torch.empty(len(answers), dtype=torch.int32, device=self.device)
        self.state.token[slots] = self.ranks.share(tokens)
        self.state.position[slots] += 1

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.network.logits(hidden)
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
                (self.network.tables["global"], self.network.tables["window"]),
            )
            changes.clear()

    def _send(self, values: object, dtype: torch.dtype) -> Tensor:
        """Numbers to the device without waiting for it."""
        host = torch.as_tensor(values, dtype=dtype)
        if self._on_gpu:
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)


def _sampler_of(answer: Answer) -> int:
    """Which sampler can serve an answer."""
    params = answer.request.sampling
    if answer.needs_host:
        return ON_HOST
    if params.temperature == 0 or not (params.top_k or params.top_p < 1 or params.min_p):
        return LAUNCHED
    return FILTERED if 0 < params.top_k <= LARGEST_TOP_K else ON_HOST
