"""The in-process Sampler: continuous batching over pages of keys and values.

Requests become answers in the queue of a core (`core.py`); this file lets those who wait for them
step it: a blocking generator does so itself, streams have a thread that does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from singalaut.artifact import content_hash
from singalaut.contracts import Completion, Delta, Request, Usage
from singalaut.errors import BusyError, CheckpointError, MachineError, SingalautError
from singalaut.generate.answer import Answer, Listener
from singalaut.generate.core import Core, WeightKind
from singalaut.generate.memory import Room
from singalaut.generate.prompts import PromptReader
from singalaut.generate.ranks import ALONE, Ranks, device_of, start_ranks
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model, read_config
from singalaut.model.shard import Shard, sum_outputs
from singalaut.progress import progress
from singalaut.text.chat import ChatFormat
from singalaut.text.tokenizer import Tokenizer

log = logging.getLogger("singalaut")
DRIVER_IDLE_SECONDS = 5.0  # after which the thread of streams ends


@dataclass(frozen=True)
class EngineSettings:
    """What an engine may use; None takes what suits the device.

    `batch_size` answers decode together, `chunk_tokens` of prompts are read beside them in a step.
    `cache_bytes` bounds keys and values, `context_tokens` prompt and answer of a request.
    Streams are refused while `max_waiting` answers are in the queue. `weights` are computed with in
    fewer bits: int8 or int4 on a CPU, int8 or fp8 on a GPU. `batch_invariant` gives the same tokens
    and, bit for bit, the same log-probabilities whatever else is in the batch, more slowly.
    `tensor_parallel` GPUs hold the model together, a process each.
    """

    batch_size: int | None = None
    chunk_tokens: int | None = None
    cache_bytes: int | None = None
    context_tokens: int | None = None
    max_waiting: int = 4096
    pan_and_scan: bool = False
    batch_invariant: bool = False
    weights: WeightKind | None = None
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        counts = ("batch_size", "chunk_tokens", "cache_bytes", "context_tokens", "max_waiting",
                  "tensor_parallel")  # fmt: skip
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MachineError(f"`{name}` is {value}; it must be at least 1")


DEFAULTS = EngineSettings()


def open_engine(directory: Path, batch_size: int | None = None, **settings: object) -> Engine:
    """An engine over the model of a Hugging Face directory, on the GPU if there is one.

    `settings` are those of `EngineSettings`.
    """
    tokenizer = Tokenizer.load(directory)
    chat = ChatFormat.load(directory, tokenizer)
    chosen = EngineSettings(batch_size=batch_size, **settings)  # type: ignore[arg-type]
    size = chosen.tensor_parallel
    device = device_of(0, size)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    Shard(0, size).of_config(read_config(directory))  # refused before anything is started
    ranks = start_ranks(size, directory)
    try:
        model = load_model(directory, dtype, device, shard=ranks.shard)
        _check_image_tokens(model, tokenizer, directory)
    except BaseException:
        ranks.close()
        raise
    return Engine(model, tokenizer, chat, identity_of(directory, chosen), chosen, ranks)


def identity_of(directory: Path, settings: EngineSettings) -> str:
    """What names the answers of an engine over a directory for good."""
    identity = content_hash(directory) + ("+pan-and-scan" if settings.pan_and_scan else "")
    return identity + (f"+{settings.weights}" if settings.weights else "")


def engine_over(model: Gemma3, directory: Path, **settings: object) -> Engine:
    """An engine that reads the weights of a network which is being trained.

    `directory` is where it came from: tokenizer and chat template are taken from there.
    """
    tokenizer = Tokenizer.load(directory)
    chat = ChatFormat.load(directory, tokenizer)
    chosen = EngineSettings(**settings)  # type: ignore[arg-type]
    return Engine(model, tokenizer, chat, "in training", chosen)


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


class Engine:
    """Implements the Sampler protocol over a model that a trainer may go on training."""

    def __init__(
        self,
        model: Gemma3,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        identity: str,
        settings: EngineSettings = DEFAULTS,
        ranks: Ranks = ALONE,
    ):
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.settings = settings
        self._identity = identity
        on_gpu = model.embedding.weight.is_cuda
        limit = model.config.max_positions
        room = Room(
            slots=settings.batch_size or (256 if on_gpu else 16),
            context_tokens=min(settings.context_tokens or limit, limit),
            chunk_tokens=settings.chunk_tokens or (8192 if on_gpu else 512),
        )
        if ranks.size > 2 and settings.batch_invariant:
            ranks.close()
            raise MachineError(
                f"`tensor_parallel` is {ranks.size}, and sums over more than two processes depend "
                "on how many rows there are",
                hint="with `batch_invariant`, use 1 or 2",
            )
        if ranks.size > 1:
            ranks.meet(model.embedding.weight.device)
            sum_outputs(model, ranks.sum)
        self._prompts = PromptReader(model.config, tokenizer, chat, settings.pan_and_scan)
        kinds = ("int8", "fp8") if on_gpu else ("int8", "int4")
        if settings.weights not in (None, *kinds):
            raise MachineError(
                f"`weights` is {settings.weights}; on this device it may be {' or '.join(kinds)}"
            )
        self._core = Core(
            model,
            tokenizer,
            room,
            settings.cache_bytes,
            batch_invariant=settings.batch_invariant,
            weights=settings.weights,
            ranks=ranks,
        )
        self._lock = threading.Lock()  # whoever holds it may touch the core
        self._inbox: deque[Answer] = deque()
        self._driver: threading.Thread | None = None
        self._gate = threading.Lock()  # for starting and ending the driver
        self._news = threading.Event()
        self._requests = 0

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def slots(self) -> int:
        """Answers that are written at once."""
        return self._core.room.slots

    def generate(self, requests: Sequence[Request], label: str = "generate") -> list[Completion]:
        """All completions in the order of requests and their answers, with a progress bar."""
        answers = sum(request.sampling.n for request in requests)
        order = {request.id: place for place, request in enumerate(requests)}
        if len(order) < len(requests) or "" in order:  # ids that are there twice, or not at all
            order = {str(place): place for place in range(len(requests))}
        named = [replace(r, id=name) for r, name in zip(requests, order, strict=True)]
        found: list[Completion] = []
        with progress(label, answers, "answer") as bar:
            tokens, begin = 0, time.monotonic()
            for completion in self.sample(named):
                found.append(completion)
                tokens += completion.usage.completion_tokens
                bar.advance(speed=f"{tokens / (time.monotonic() - begin):.0f} tok/s")
        found.sort(key=lambda each: (order[each.request_id], each.index))
        return [replace(each, request_id=requests[order[each.request_id]].id) for each in found]

    def sample(self, requests: Iterable[Request | None]) -> Generator[Completion]:
        """Yield each completion as it finishes; requests are drawn as there is room for them.

        Where a source has none for now it may give None, and is asked again after a step.
        A request that cannot be served has a completion with the finish reason "error".
        Raises: MachineError where a process of several has ended; the engine is of no use then.
        """
        self._core.ranks.check()
        done: deque[Completion] = deque()
        under_way: set[Answer] = set()

        def listen(answer: Answer) -> None:
            if answer.finish is not None:
                under_way.discard(answer)
                done.append(answer.completion())

        source = iter(requests)
        exhausted = False
        try:
            while under_way or done or not exhausted:
                while not exhausted and self._has_room():
                    try:
                        request = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    if request is None:
                        break
                    try:
                        answers = self._open(request, listen, streams=False)
                    except SingalautError as error:
                        done.append(refusal(request, error))
                        continue
                    under_way.update(answers)
                    self._inbox.extend(answers)
                if under_way and not done:
                    self._step()
                while done:
                    yield done.popleft()
        finally:
            for answer in under_way:
                self._cancel(answer)
            while under_way and self._core.ranks.are_whole:
                self._step()

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Yield the first answer to a request as it is written; text is whole characters.

        Closing the stream cancels the answer. Raises RequestError or DataError for a request that
        cannot be served, BusyError where too many are waiting.
        """
        self._core.ranks.check()
        if self._num_waiting() >= self.settings.max_waiting:
            raise BusyError(
                f"{self.settings.max_waiting} requests are waiting already",
                hint="try again later, or raise `max_waiting`",
            )
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Delta] = asyncio.Queue()
        shown = _Shown()

        def listen(answer: Answer) -> None:
            delta = shown.news(answer)
            if delta is not None:
                with suppress(RuntimeError):  # the loop of a reader that has gone away
                    loop.call_soon_threadsafe(queue.put_nowait, delta)

        answer = self._open(request, listen, streams=True)[0]
        self._inbox.append(answer)
        self._drive()
        try:
            while True:
                delta = await queue.get()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            if answer.finish is None:
                self._cancel(answer)

    def weights_changed(self) -> None:
        with self._lock:
            self._core.weights_changed()

    def sleep(self) -> None:
        with self._lock:
            self._core.sleep()

    def wake(self) -> None:
        with self._lock:
            self._core.wake()

    def close(self) -> None:
        """Let the other processes of the engine end; it cannot be used any more."""
        with self._lock:
            if self._core.ranks.are_whole:
                self._core.sleep()  # lets go of graphs first, which hold on to connections
            self._core.ranks.close()

    def statistics(self) -> dict[str, float]:
        """Counts and rates since the start; shares are of the cache's pages."""
        found = {"requests": self._requests, **self._core.statistics()}
        return {**found, "waiting": self._num_waiting()}

    def _open(self, request: Request, listener: Listener, *, streams: bool) -> list[Answer]:
        core = self._core
        cache_tokens = core.scheduler.tables.capacity_tokens()
        answers = self._prompts.open(
            request, core.room.context_tokens, cache_tokens, listener, streams=streams
        )
        self._requests += 1
        return answers

    def _num_waiting(self) -> int:
        return self._core.scheduler.num_waiting + len(self._inbox)

    def _has_room(self) -> bool:
        """Whether the queue is short enough to draw more requests from their source."""
        return self._num_waiting() < 2 * self._core.room.slots

    def _cancel(self, answer: Answer) -> None:
        answer.cancelled = True
        self._inbox.append(answer)
        self._news.set()

    def _step(self) -> bool:
        """One step of the core by whoever needs it; False where there was nothing to do."""
        with self._lock:
            while self._inbox:
                answer = self._inbox.popleft()
                (self._core.cancel if answer.cancelled else self._core.add)(answer)
            if not self._core.is_busy:
                return False
            self._core.step()
            return True

    def _drive(self) -> None:
        """Have a thread that steps as long as there are streams."""
        with self._gate:
            self._news.set()
            if self._driver is None:
                self._driver = threading.Thread(target=self._run, name="singalaut", daemon=True)
                self._driver.start()

    def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                while self._step():
                    pass
            except Exception as error:  # whoever waits must hear of it
                log.exception("the engine failed")
                with self._lock:
                    self._core.fail(f"the engine failed: {type(error).__name__}: {error}")
            if not self._news.wait(DRIVER_IDLE_SECONDS):
                with self._gate:
                    if not self._news.is_set():
                        self._driver = None
                        return


class _Shown:
    """What of a streamed answer has been shown already."""

    def __init__(self) -> None:
        self._characters = self._tokens = 0

    def news(self, answer: Answer) -> Delta | None:
        """What came since; None where that is no whole character and not the end."""
        end = len(answer.text) if answer.finish else answer.safe_length()
        if end <= self._characters and not answer.finish:
            return None
        first, self._tokens = self._tokens, answer.num_written
        text, self._characters = answer.text[self._characters : end], max(end, self._characters)
        params = answer.request.sampling
        logprobs = params.logprobs or params.top_logprobs
        return Delta(
            text,
            tuple(answer.tokens[answer.num_prompt + first :]),
            answer.finish,
            tuple(answer.logprobs[first:]) if logprobs else None,
            tuple(answer.top_logprobs[first:]) if params.top_logprobs else None,
            answer.error,
        )


def refusal(request: Request, error: SingalautError) -> Completion:
    return Completion(request.id, 0, (), "", "error", Usage(0, 0), error=str(error))
