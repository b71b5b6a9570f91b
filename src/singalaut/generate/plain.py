"""The network as it is, over pages: the reference for every faster way, and the way of a CPU.

A step is one forward pass over the newest token of each answer and over chunks of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from singalaut.generate.answer import Answer
from singalaut.generate.images import ImageEmbeddings
from singalaut.generate.pages import PageTables
from singalaut.generate.ranks import ALONE, Ranks
from singalaut.generate.sampling import Sampled, sample
from singalaut.generate.scheduler import Chunk, Step
from singalaut.model.gemma3 import Gemma3
from singalaut.model.linear import PackedKind
from singalaut.model.paged import KINDS, Kind, PagedCache, PagedPlan, Span

BLOCK_TOKENS = 16  # of a pass whose numbers must not depend on how many there are
LOGIT_ROWS = 64  # of a prompt's log-probabilities at a time


@dataclass(frozen=True)
class Outcome:
    """The new tokens of a step, as numbers on the host."""

    answers: list[Answer]
    tokens: list[int]
    logprobs: list[float] | None
    top: list[dict[int, float]] | None
    bad: list[bool]

    @classmethod
    def of(cls, answers: list[Answer], sampled: Sampled) -> Outcome:
        top = None
        if sampled.top is not None:
            pairs = zip(sampled.top[1].tolist(), sampled.top[0].tolist(), strict=True)
            top = [dict(zip(ids, values, strict=True)) for ids, values in pairs]
        logprobs = None if sampled.logprobs is None else sampled.logprobs.tolist()
        return cls(answers, sampled.tokens.tolist(), logprobs, top, sampled.bad.tolist())

    @classmethod
    def joined(cls, parts: Sequence[Outcome]) -> Outcome:
        """The outcomes of several groups of rows as one."""
        rows = [len(part.answers) for part in parts]
        top = [part.top or [{} for _ in range(n)] for part, n in zip(parts, rows, strict=True)]
        logs = [part.logprobs or [0.0] * n for part, n in zip(parts, rows, strict=True)]
        return cls(
            [answer for part in parts for answer in part.answers],
            [token for part in parts for token in part.tokens],
            [value for part in logs for value in part],
            [values for part in top for values in part],
            [bad for part in parts for bad in part.bad],
        )

    def is_done(self) -> bool:
        return True

    def wait(self) -> Outcome:
        """What has been computed already is there at once."""
        return self


class PlainRunner:
    """Runs steps on any device, one after the other."""

    keeps_ahead = False  # a step is complete when `launch` returns

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
        weights: PackedKind | None = None,
        ranks: Ranks = ALONE,
    ):
        self.model, self.images, self.cache, self.tables = model, images, cache, tables
        self.vocab_size, self.image_id = vocab_size, image_id
        self.device = model.embedding.weight.device
        self.batch_invariant, self.weights, self.ranks = batch_invariant, weights, ranks
        self.refresh()

    def refresh(self) -> None:
        """Take note of new weights."""
        self.model.pack(self.weights)

    def close(self) -> None:
        """Let go of copies of the weights."""
        self.model.unpack()

    @torch.inference_mode()
    def launch(self, step: Step) -> Outcome:
        """Run a step and sample the tokens that it ends in.

        Of several processes the first one has the whole head, and samples.
        """
        self.tables.changes.clear()
        hidden = self._in_blocks(step) if self.batch_invariant else self._together(step)
        if not self.ranks.is_first:
            return Outcome([], [], None, None, [])
        places = list(range(len(step.decode)))
        answers = list(step.decode)
        begin = len(step.decode)
        for chunk in step.chunks:
            count = chunk.end - chunk.start
            score_prompt(chunk, hidden[begin : begin + count], self.logits)
            begin += count
            if chunk.samples:
                places.append(begin - 1)
                answers.append(chunk.answer)
        if not answers:
            return Outcome([], [], None, None, [])
        return take_tokens(self.logits(hidden[places]), answers, alone=self.batch_invariant)

    def _together(self, step: Step) -> Float[Tensor, "T W"]:
        """Final hidden states of all tokens of a step, by one pass."""
        spans = [Span(self._tables_of(a), a.stored - 1, 1) for a in step.decode]
        for c in step.chunks:
            groups = image_groups_of(c.answer, c.end, self.device)
            spans.append(Span(self._tables_of(c.answer), c.start, c.end - c.start, groups))
        tokens = [a.tokens[a.stored - 1] for a in step.decode]
        for chunk in step.chunks:
            tokens += chunk.answer.tokens[chunk.start : chunk.end]
        row = torch.tensor([tokens], device=self.device)
        plan = PagedPlan(self.cache, spans)
        embeddings = see(self.images, step.chunks)
        return self.model(row, plan.positions, plan, embeddings)[0]

    def _in_blocks(self, step: Step) -> Float[Tensor, "T W"]:
        """The same by passes over exactly `BLOCK_TOKENS` tokens, each of which attends alone.

        So no number depends on how many tokens there are. An image is a block of its own.
        """
        found: list[Tensor] = []
        block: list[tuple[Answer, int, int]] = []  # answer, place, end of what is seen

        def close_block(images: Tensor | None = None) -> None:
            if block:
                found.append(self._block(block, images))
                block.clear()

        pictures = see(self.images, step.chunks)
        number = 0
        whole = [Chunk(a, a.stored - 1, a.stored, samples=True) for a in step.decode]
        for chunk in [*whole, *step.chunks]:
            images = dict(chunk.answer.image_runs)
            place = chunk.start
            while place < chunk.end:
                end = images.get(place, place + 1)
                if place in images:
                    close_block()
                block += [(chunk.answer, p, end) for p in range(place, end)]
                if place in images:
                    assert pictures is not None
                    close_block(pictures[number : number + 1])
                    number += 1
                elif len(block) == BLOCK_TOKENS:
                    close_block()
                place = end
        close_block()
        return torch.cat(found)

    def _block(
        self, block: Sequence[tuple[Answer, int, int]], images: Tensor | None
    ) -> Float[Tensor, "N W"]:
        """Final hidden states of some tokens, padded with nobody's where they are too few."""
        spans = [Span(self._tables_of(a), place, 1, seen=end) for a, place, end in block]
        tokens = [a.tokens[place] for a, place, _ in block]
        missing = max(0, BLOCK_TOKENS - len(block))
        spans += [Span({kind: np.zeros(1, np.int32) for kind in KINDS}, 0, 1)] * missing
        row = torch.tensor([tokens + [0] * missing], device=self.device)
        plan = PagedPlan(self.cache, spans, alone=True)
        return self.model(row, plan.positions, plan, images)[0, : len(block)]

    def logits(self, hidden: Float[Tensor, "N W"]) -> Float[Tensor, "N V"]:
        """Logits of the tokens that can be sampled; rows beyond the tokenizer are none."""
        if self.batch_invariant:
            rows = len(hidden)
            padded = pad(hidden, (0, 0, 0, -rows % BLOCK_TOKENS))
            parts = [self.model.logits(block) for block in padded.split(BLOCK_TOKENS)]
            logits = torch.cat(parts)[:rows, : self.vocab_size]
        else:
            logits = self.model.logits(hidden)[:, : self.vocab_size]
        if self.image_id is not None and self.image_id < self.vocab_size:
            logits[:, self.image_id] = float("-inf")  # it stands for images only
        return logits

    @torch.inference_mode()
    def first_bad_layer(self, answer: Answer) -> str | None:
        """The first part of the network whose output for these tokens has a value that is none."""
        return first_bad_layer(self.model, answer, self.images)

    def _tables_of(self, answer: Answer) -> dict[Kind, np.ndarray]:
        return {kind: self.tables.tables[kind][answer.slot] for kind in KINDS}


def image_groups_of(answer: Answer, end: int, device: torch.device) -> Tensor | None:
    """The number of the image that each of the first `end` tokens belongs to, -1 for text."""
    if not answer.image_runs:
        return None
    groups = torch.full((end,), -1)
    for number, (first, last) in enumerate(answer.image_runs):
        groups[first:last] = number
    return groups.to(device)


def lasts_seen(chunk: Chunk) -> np.ndarray:
    """The last position that each token of a chunk sees: its own, or the end of its image."""
    lasts = np.arange(chunk.start, chunk.end)
    for first, end in chunk.answer.image_runs:
        if chunk.start <= first and end <= chunk.end:
            lasts[first - chunk.start : end - chunk.start] = end - 1
    return lasts


def take_tokens(logits: Tensor, answers: list[Answer], *, alone: bool) -> Outcome:
    """Sample by the host's rules, `alone` one answer after the other."""
    if not alone:
        return Outcome.of(answers, sample(logits, answers))
    rows = zip(logits, answers, strict=True)
    return Outcome.joined([Outcome.of([a], sample(row.clone()[None], [a])) for row, a in rows])


def see(images: ImageEmbeddings, chunks: Sequence[Chunk]) -> Float[Tensor, "N I W"] | None:
    """Embeddings of the pictures whose tokens lie in the chunks, in their order."""
    pictures = []
    for chunk in chunks:
        runs = chunk.answer.image_runs
        for number, (first, end) in enumerate(runs):
            if chunk.start <= first and end <= chunk.end:
                assert chunk.answer.images is not None
                pictures.append(chunk.answer.images.pictures[number])
    return images.of(pictures) if pictures else None


def score_prompt(
    chunk: Chunk, hidden: Float[Tensor, "T W"], logits_of: Callable[[Tensor], Tensor]
) -> None:
    """Add the log-probabilities of the prompt tokens that a chunk predicts, where asked for."""
    answer = chunk.answer
    if not answer.request.sampling.prompt_logprobs:
        return
    known = answer.prompt_logprobs
    if not known:
        known.append(None)
    last = min(chunk.end, answer.num_prompt - 1)
    for begin in range(max(chunk.start, len(known) - 1), last, LOGIT_ROWS):
        end = min(begin + LOGIT_ROWS, last)
        logprobs = logits_of(hidden[begin - chunk.start : end - chunk.start]).float()
        logprobs = logprobs.log_softmax(-1)
        following = torch.tensor(answer.tokens[begin + 1 : end + 1], device=hidden.device)
        known += logprobs.gather(1, following[:, None])[:, 0].tolist()


def first_bad_layer(model: Gemma3, answer: Answer, images: ImageEmbeddings) -> str | None:
    """Where values that are no numbers begin, by a plain pass over the known tokens."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, out: Tensor) -> None:
            if not found and not out.isfinite().all():
                found.append(name)

        return hook

    parts = {f"layer {i}": layer for i, layer in enumerate(model.layers)}
    parts["the final norm"] = model.final_norm
    hooks = [part.register_forward_hook(look(name)) for name, part in parts.items()]
    try:
        whole = Chunk(answer, 0, len(answer.tokens), samples=True)
        tokens = torch.tensor([answer.tokens.tolist()], device=model.embedding.weight.device)
        hidden = model(tokens, images=see(images, [whole]))
        if not found and not model.logits(hidden[:, -1:]).isfinite().all():
            found.append("the output layer")
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
