"""The in-process Sampler: continuous batching over a row-wise key-value cache.

Up to `batch_size` sequences decode together; when one ends, the next request is prefilled into
its row. A seeded request's tokens do not depend on its neighbours beyond rounding. Images of
messages are embedded in the prefill (`images.py`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from singalaut.artifact import content_hash
from singalaut.contracts import Completion, Delta, FinishReason, Message, Request, Usage
from singalaut.errors import CheckpointError, RequestError
from singalaut.generate.images import ImageEmbeddings, PromptImages, read_images
from singalaut.generate.sampling import check_params, choose, log_probability
from singalaut.model.cache import Cache
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model
from singalaut.text.chat import ChatFormat
from singalaut.text.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


MIN_SHARED_TOKENS = 8  # a shorter common beginning is not worth copying


def open_engine(directory: Path, batch_size: int = 16, pan_and_scan: bool = False) -> Engine:
    """An engine over the model of a Hugging Face directory, on the GPU if there is one."""
    tokenizer = Tokenizer.load(directory)
    chat = ChatFormat.load(directory, tokenizer)
    on_gpu = torch.cuda.is_available()
    dtype, device = (torch.bfloat16, "cuda") if on_gpu else (torch.float32, "cpu")
    model = load_model(directory, dtype, device)
    _check_image_tokens(model, tokenizer, directory)
    identity = content_hash(directory) + ("+pan-and-scan" if pan_and_scan else "")
    return Engine(model, tokenizer, chat, identity, batch_size, pan_and_scan)


def _check_image_tokens(model: Gemma3, tokenizer: Tokenizer, directory: Path) -> None:
    vision = model.config.vision
    if vision is None:
        return
    wanted = (vision.start_id, vision.end_id, vision.image_id)
    if tokenizer.image_ids != wanted:
        raise CheckpointError(
            f"`config.json` has the image tokens {wanted}, the tokenizer {tokenizer.image_ids}",
            where=directory,
            hint="take the tokenizer of the model's own checkpoint",
        )


@dataclass
class _Sequence:
    """One answer being written."""

    request: Request
    index: int
    prompt: list[int]
    images: PromptImages | None
    marked: list[int]  # the prompt, where each image has tokens of its own: equal iff it is
    seed: int
    limit: int
    decoder: StreamDecoder
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None


class Engine:
    """Implements the Sampler protocol over a model that a trainer may go on training."""

    def __init__(
        self,
        model: Gemma3,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        identity: str,
        batch_size: int = 16,
        pan_and_scan: bool = False,
    ):
        """`pan_and_scan` adds crops of images that are not nearly square."""
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.batch_size, self.pan_and_scan = batch_size, pan_and_scan
        self._identity = identity
        self._images = ImageEmbeddings(model)
        self._stop_ids = frozenset((*model.config.eos_ids, tokenizer.end_of_turn_id))
        image_ids = tokenizer.image_ids
        self._image_id = image_ids[2] if image_ids else model.config.vocab_size  # none: no token
        self._counts = {
            "requests": 0,
            "prompt_tokens": 0,
            "shared_tokens": 0,
            "generated_tokens": 0,
            "seconds": 0.0,
        }
        self.wake()

    @property
    def identity(self) -> str:
        return self._identity

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each completion as it finishes. Raises RequestError before any work is done."""
        waiting = deque(seq for request in requests for seq in self._open(request))
        batch = _Batch(self, min(self.batch_size, max(1, len(waiting))))
        while waiting or batch.running:
            while waiting and batch.has_room():
                batch.admit(waiting.popleft())
                yield from map(self._completion, batch.finished())
            batch.step()
            yield from map(self._completion, batch.finished())

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Yield the first answer to a request as it is written; text is whole characters."""
        sequence = next(iter(self._open(request)))
        batch = _Batch(self, 1)
        await asyncio.to_thread(batch.admit, sequence)
        shown_text, shown_tokens = 0, 0
        while True:
            # a stop string may be half written: what could begin one is held back
            end = len(sequence.text) if sequence.finish else _safe_length(sequence)
            if end > shown_text or sequence.finish:
                yield Delta(
                    sequence.text[shown_text:end],
                    tuple(sequence.tokens[shown_tokens:]),
                    sequence.finish,
                )
                shown_text, shown_tokens = max(end, shown_text), len(sequence.tokens)
            if sequence.finish:
                return
            await asyncio.to_thread(batch.step)

    def weights_changed(self) -> None:
        self._images.clear()
        self.wake()

    def sleep(self) -> None:
        self._images.clear()
        self.model.unpack()

    def wake(self) -> None:
        self.model.pack()

    def statistics(self) -> dict[str, float]:
        seconds = self._counts["seconds"] or 1.0
        rate = self._counts["generated_tokens"] / seconds
        images = {"images": self._images.computed, "images_reused": self._images.reused}
        return {**self._counts, **images, "generated_tokens_per_second": rate}

    def _open(self, request: Request) -> list[_Sequence]:
        """The answers that a request asks for, checked against what the model can do."""
        params = request.sampling
        check_params(params)
        prompt, images = self._prompt_ids(request.prompt)
        room = self.model.config.max_positions - len(prompt)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; the model's context is "
                f"{self.model.config.max_positions}",
                where=request.id or None,
                hint="shorten the prompt",
            )
        seed = secrets.randbits(62) if params.seed is None else params.seed
        self._counts["requests"] += 1
        marked = self._marked(prompt, images)
        return [
            _Sequence(
                request,
                i,
                prompt,
                images,
                marked,
                seed,
                min(params.max_tokens, room),
                StreamDecoder(self.tokenizer),
            )
            for i in range(params.n)
        ]

    def _prompt_ids(
        self, prompt: Sequence[Message] | Sequence[int]
    ) -> tuple[list[int], PromptImages | None]:
        if not prompt:
            raise RequestError("the prompt is empty", hint="give at least one message or token")
        if isinstance(prompt[0], Message):
            messages: list[Message] = list(prompt)  # type: ignore[arg-type]
            vision = self.model.config.vision
            images = read_images(messages, vision, self.pan_and_scan) if vision else None
            return self.chat.encode(messages, images=images.tokens if images else None), images
        ids = [int(token) for token in prompt]  # type: ignore[arg-type]
        if min(ids) < 0 or max(ids) >= self.tokenizer.vocab_size:
            raise RequestError(
                f"token ids must lie in 0…{self.tokenizer.vocab_size - 1}; "
                f"found {min(ids)}…{max(ids)}"
            )
        if self._image_id in ids:
            raise RequestError(
                f"the prompt has the image token {self._image_id}, but no image",
                hint="give messages with image parts instead of token ids",
            )
        return ids, None

    def _marked(self, prompt: list[int], images: PromptImages | None) -> list[int]:
        """The prompt with numbers below zero for image tokens, the same only for the same image."""
        if images is None:
            return prompt
        marks = iter(
            -int(picture.digest[:15], 16) - 1
            for picture in images.pictures
            for _ in range(images.tokens.each)
        )
        return [next(marks) if token == self._image_id else token for token in prompt]

    def _completion(self, sequence: _Sequence) -> Completion:
        assert sequence.finish is not None
        return Completion(
            request_id=sequence.request.id,
            index=sequence.index,
            token_ids=tuple(sequence.tokens),
            text=sequence.text,
            finish_reason=sequence.finish,
            usage=Usage(len(sequence.prompt), len(sequence.tokens)),
            logprobs=tuple(sequence.logprobs) if sequence.request.sampling.logprobs else None,
        )


class _Batch:
    """The sequences that decode together, in the order of their cache rows."""

    def __init__(self, engine: Engine, rows: int):
        self.engine = engine
        self.running: list[_Sequence] = []
        self._done: list[_Sequence] = []
        weight = engine.model.embedding.weight
        self.device = weight.device
        self.cache = Cache(engine.model.config, rows, weight.dtype, weight.device)

    def has_room(self) -> bool:
        return len(self.running) < self.cache.rows

    @torch.inference_mode()
    def admit(self, sequence: _Sequence) -> None:
        """Prefill a prompt into a free row and take its first token."""
        begin = time.monotonic()
        model, counts = self.engine.model, self.engine._counts
        source, shared = self._longest_shared(sequence.marked)
        positions = torch.arange(shared, len(sequence.prompt), device=self.device)[None]
        tokens = torch.tensor([sequence.prompt], device=self.device)
        groups, embeddings = self._see(sequence, tokens, shared)
        plan = self.cache.prefill(source, shared, groups)
        hidden = model(tokens[:, shared:], positions, plan, embeddings)
        self.running.append(sequence)
        counts["prompt_tokens"] += len(sequence.prompt)
        counts["shared_tokens"] += shared
        self._advance(model.logits(hidden[:, -1]), [sequence], begin)

    def _see(
        self, sequence: _Sequence, tokens: Tensor, shared: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Image groups of a prompt, and the embeddings of its images after the shared tokens."""
        images = sequence.images
        if images is None:
            return None, None
        done = sequence.prompt[:shared].count(self.engine._image_id) // images.tokens.each
        pictures = images.pictures[done:]
        embeddings = self.engine._images.of(pictures) if pictures else None
        return self.engine.model.image_groups(tokens)[0], embeddings

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every running sequence."""
        if not self.running:
            return
        begin = time.monotonic()
        model = self.engine.model
        tokens = torch.tensor([[s.tokens[-1]] for s in self.running], device=self.device)
        plan = self.cache.decode()
        hidden = model(tokens, plan.positions[:, None], plan)
        self._advance(model.logits(hidden[:, -1]), list(self.running), begin)

    def _longest_shared(self, marked: list[int]) -> tuple[int, int]:
        """The running row whose prompt begins most like this one, and for how many tokens."""
        best_row, best = 0, 0
        for row, other in enumerate(self.running):
            if self.cache.can_share(row):
                pairs = zip(marked[:-1], other.marked, strict=False)
                shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                if shared > best:
                    best_row, best = row, shared
        return (best_row, best) if best >= MIN_SHARED_TOKENS else (0, 0)

    def finished(self) -> list[_Sequence]:
        """The sequences that ended since the last call."""
        done, self._done = self._done, []
        return done

    def _advance(self, logits_BV: Tensor, sequences: list[_Sequence], begin: float) -> None:
        logits_BV = logits_BV[:, : self.engine.tokenizer.vocab_size]  # padding rows are no tokens
        if self.engine._image_id < logits_BV.shape[1]:
            logits_BV[:, self.engine._image_id] = float("-inf")  # it stands for images only
        greedy = logits_BV.argmax(-1).tolist()
        for logits, best, sequence in zip(logits_BV, greedy, sequences, strict=True):
            params = sequence.request.sampling
            token = best
            if params.temperature > 0:
                position = len(sequence.tokens)
                token = choose(logits, params, sequence.seed, sequence.index, position)
            if params.logprobs:
                sequence.logprobs.append(log_probability(logits, token))
            self._append(sequence, token)
        counts = self.engine._counts
        counts["generated_tokens"] += len(sequences)
        counts["seconds"] += time.monotonic() - begin
        for sequence in sequences:
            if sequence.finish:
                row = self.running.index(sequence)
                self.cache.release(row)
                self.running[row] = self.running[-1]
                self.running.pop()
                self._done.append(sequence)

    def _append(self, sequence: _Sequence, token: int) -> None:
        """Add a token and decide whether the answer is complete."""
        params = sequence.request.sampling
        sequence.tokens.append(token)
        ends = token in params.stop_token_ids
        ends = ends or (token in self.engine._stop_ids and not params.ignore_eos)
        if not ends:
            sequence.text += sequence.decoder.push([token])
        if ends or len(sequence.tokens) >= sequence.limit:
            sequence.text += sequence.decoder.finish()
            sequence.finish = "stop" if ends else "length"
        for stop in params.stop:
            place = sequence.text.find(stop)
            if place >= 0:
                sequence.text, sequence.finish = sequence.text[:place], "stop"


def _safe_length(sequence: _Sequence) -> int:
    """Length of the text that cannot turn out to be the beginning of a stop string."""
    text = sequence.text
    held = 0
    for stop in sequence.request.sampling.stop:
        for size in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:size]):
                held = size
                break
    return len(text) - held
