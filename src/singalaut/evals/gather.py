"""Gets generations: from the store where they are, else from a sampler, and then keeps them.

Knows nothing of tasks: judges are asked in the same way as the models they judge.
"""

from __future__ import annotations

import gc
import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from singalaut.contracts import Completion, Message, Request, Sampler, SamplingParams
from singalaut.errors import RequestError
from singalaut.evals.store import KEPT, Generation, Store
from singalaut.progress import progress

log = logging.getLogger("singalaut")
SHOWN_EVERY_SECONDS = 0.1


class Ask(NamedTuple):
    """One request to be made, and whose answer it is: `places` are for the asker to know.

    `tail` is where the part begins that log-probabilities are wanted of, None for a text.
    """

    key: bytes
    name: str
    prompt: Sequence[Message] | Sequence[int]
    sampling: SamplingParams
    seed: int | None
    places: list[Any]
    tail: int | None = None

    def request(self) -> Request:
        sampling = self.sampling
        if self.seed is not None:
            sampling = SamplingParams.__new__(SamplingParams)  # `replace` takes ten times as long
            sampling.__dict__.update(self.sampling.__dict__, seed=self.seed)
        return Request(self.prompt, sampling, self.name)


Take = Callable[[Ask, "Generation | None", str], None]


@dataclass
class Timing:
    """Seconds spent in the sampler and opening it; answers made and taken from the store."""

    begin: float = field(default_factory=time.perf_counter)
    end: float = 0.0
    engine: float = 0.0
    opening: float = 0.0
    asked: int = 0
    replayed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def seconds(self) -> float:
        """From the beginning until the model was let go of, or until now."""
        return (self.end or time.perf_counter()) - self.begin

    def share(self) -> float:
        """Share of the seconds after opening that the sampler had."""
        return self.engine / max(self.seconds() - self.opening, 1e-9)


@dataclass
class Gatherer:
    """The generations of one model."""

    name: str
    store: Store
    open_sampler: Callable[[], Sampler]
    timing: Timing = field(default_factory=Timing)
    failures: Counter[str] = field(default_factory=Counter)
    sampler: Sampler | None = None

    def replay(self, asks: Sequence[Ask], take: Take) -> list[Ask]:
        """Hand on what the store has; returns what has to be asked."""
        known = self.store.find([ask.key for ask in asks])
        missing = []
        for ask in asks:
            found = known.get(ask.key)
            if found is None:
                missing.append(ask)
            else:
                self.timing.replayed += 1
                take(ask, found, "")
        return missing

    def ask(self, asks: Sequence[Ask], take: Take, title: str) -> None:
        """Make the requests; `take(ask, generation, reason)` hears of each as it comes.

        Raises: RequestError where the sampler answers what was not asked, or not at all.
        """
        if not asks:
            return
        sampler = self._opened()
        waiting = {ask.name: ask for ask in asks}
        requests = _Timed(asks)
        keeper = _Keeper(self.store)
        begin, outside, shown, new = time.perf_counter(), 0.0, 0.0, 0
        with progress(title, len(asks), "answer") as bar, keeper:
            for completion in sampler.sample(iter(requests)):
                arrived = time.perf_counter()
                ask = waiting.pop(completion.request_id, None)
                if ask is None:
                    raise _unexpected(self.name, completion, asks)
                self._take(ask, completion, keeper, take)
                new += 1
                now = time.perf_counter()
                if now - shown > SHOWN_EVERY_SECONDS:
                    bar.advance(new)
                    shown, new = now, 0
                outside += time.perf_counter() - arrived
            seconds = time.perf_counter() - begin
            bar.advance(new)
        if waiting:
            raise RequestError(
                f"`{self.name}` answered {len(asks) - len(waiting)} of {len(asks)} questions; "
                f"the first without an answer is `{next(iter(waiting))}`",
                hint="run again: what has been answered is kept",
            )
        self.timing.engine += seconds - outside - requests.seconds
        self.timing.asked += len(asks)

    def statistics(self) -> Mapping[str, float]:
        return self.sampler.statistics() if self.sampler else {}

    def about(self) -> dict[str, Any]:
        """How the requests went: those that failed by reason, and troubles that passed."""
        troubles = {
            name.removeprefix("trouble_"): int(count)
            for name, count in self.statistics().items()
            if name.startswith("trouble_")
        }
        return {"failures": dict(sorted(self.failures.items())), "troubles": troubles}

    def close(self) -> None:
        """Let go of the model: the next one needs its memory."""
        self.timing.end = time.perf_counter()
        if self.sampler is not None:
            self.sampler.sleep()
        self.sampler = None
        gc.collect()

    def _take(self, ask: Ask, completion: Completion, keeper: _Keeper, take: Take) -> None:
        usage = completion.usage
        self.timing.prompt_tokens += usage.prompt_tokens
        self.timing.completion_tokens += usage.completion_tokens
        if completion.finish_reason not in KEPT:
            reason = completion.error or completion.finish_reason
            self.failures[reason] += 1
            take(ask, None, reason)
            return
        value = None if ask.tail is None else _tail_sum(completion, ask.tail)
        found = Generation(
            clean(completion.text),
            completion.finish_reason,
            usage.prompt_tokens,
            usage.completion_tokens,
            value,
        )
        keeper.add(ask.key, found)
        take(ask, found, "")

    def _opened(self) -> Sampler:
        if self.sampler is None:
            begin = time.perf_counter()
            self.sampler = self.open_sampler()
            self.timing.opening += time.perf_counter() - begin
        return self.sampler


class _Timed:
    """Yields the requests and counts the seconds that making them takes."""

    def __init__(self, asks: Sequence[Ask]):
        self.seconds = 0.0
        self._asks = asks

    def __iter__(self) -> Iterator[Request]:
        for ask in self._asks:
            begin = time.perf_counter()
            request = ask.request()
            self.seconds += time.perf_counter() - begin
            yield request


class _Keeper:
    """A thread that writes answers to the store, as many at once as have come meanwhile."""

    def __init__(self, store: Store):
        self._store = store
        self._queue: queue.SimpleQueue[tuple[bytes, Generation] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def __enter__(self) -> _Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def add(self, key: bytes, generation: Generation) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put((key, generation))

    def _run(self) -> None:
        more = True
        while more:
            batch = []
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            more = item is not None
            try:
                self._store.keep(batch)
            except BaseException as error:  # raised again where answers come from
                self._error = error
                return


def clean(text: str) -> str:
    """The text without halves of surrogate pairs, which no file can hold."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_failures(name: str, gatherer: Gatherer, allowed: float) -> None:
    """Raise RequestError if a larger share than `allowed` of what was asked got no answer."""
    failed = sum(gatherer.failures.values())
    asked = gatherer.timing.asked + gatherer.timing.replayed
    if failed > allowed * asked:
        enough = math.ceil(100 * failed / asked) / 100
        raise RequestError(
            f"{failed} of {asked} requests to `{name}` failed: "
            f"{failure_summary(gatherer.failures)}",
            hint="run again: what has been answered is kept; or leave failures out of the scores "
            f"with `--set evaluate.protocol.allowed_failures={enough:g}`",
        )


def failure_summary(failures: Mapping[str, int]) -> str:
    """How many requests failed, and of what."""
    named: Counter[str] = Counter()
    for reason, count in failures.items():
        named[reason.partition("\n")[0]] += count  # not where it was, which others do not share
    return ", ".join(f"{count} × {reason}" for reason, count in named.most_common(3))


def _tail_sum(completion: Completion, tail: int) -> float:
    """The log-probability of the prompt's tokens from `tail` on."""
    values = completion.prompt_logprobs
    if values is None or len(values) <= tail or None in values[tail:]:
        raise RequestError(
            "the sampler gave no log-probabilities of the prompt",
            where=completion.request_id,
            hint="score by what is written instead: leave `logprobs` out",
        )
    return float(sum(value for value in values[tail:] if value is not None))


def _unexpected(name: str, completion: Completion, asks: Iterable[Ask]) -> RequestError:
    known = any(ask.name == completion.request_id for ask in asks)
    state = "a second time" if known else "unasked"
    return RequestError(f"`{name}` answered `{completion.request_id}` {state}")
