"""Several engines in processes of their own, as one Sampler: requests go where there is room.

What one that ends has not answered is asked of the others. An answer depends on its request alone,
so it does not matter who gives it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from singalaut.contracts import Completion, Delta, Request
from singalaut.errors import MachineError, SingalautError
from singalaut.generate.child import Child, Record, end_all
from singalaut.generate.engine import EngineSettings, identity_of, refusal
from singalaut.generate.records import completion_of, request_record

log = logging.getLogger("singalaut")
TOGETHER = 8  # requests after each other go to the same engine: they may begin alike
AHEAD = 1.5  # requests an engine has, for each that it answers at once
COUNT_SECONDS = 10.0  # for an engine to say its statistics


class Replica:
    """A process with an engine, and what it has been asked."""

    def __init__(self, number: int, news: queue.SimpleQueue[tuple[Replica, Record]]):
        self.number, self._news = number, news
        self.ready = threading.Event()
        self.slots = 0
        self.end: str | None = None  # how it ended
        self.asked: dict[int, Request] = {}
        self.answers = 0  # to come

    def start(self, settings: Record, environment: dict[str, str]) -> Child:
        command = [sys.executable, "-m", "singalaut.generate.replica"]
        self.child = Child(command, self._hear, self._lose, environment)
        self.tell(settings)
        return self.child

    def tell(self, message: Record) -> None:
        """What a process that has just ended does not hear anew is asked of another."""
        try:
            self.child.tell(message)
        except OSError:
            log.debug("engine %d does not hear", self.number)

    def room(self) -> int:
        return int(AHEAD * self.slots) + TOGETHER - self.answers

    def ask(self, key: int, request: Request, record: Record) -> None:
        self.asked[key] = request
        self.answers += request.sampling.n
        self.tell({"do": "answer", "request": {**record, "id": f"{key}:{request.id}"}})

    def _hear(self, message: Record) -> None:
        if "slots" in message:
            self.slots = message["slots"]
            self.ready.set()
        else:
            self._news.put((self, message))

    def _lose(self, how: str) -> None:
        self.end = how
        self.ready.set()
        self._news.put((self, {"end": how}))


class Replicas:
    """Implements the Sampler protocol; one caller at a time."""

    def __init__(self, directory: Path, count: int, **settings: Any):
        """`count` engines over the model of a directory; `settings` are those of an engine.

        Raises: MachineError where there are too few GPUs, or an engine cannot be opened.
        """
        chosen = EngineSettings(**settings)
        self._identity = identity_of(directory, chosen)
        self._news: queue.SimpleQueue[tuple[Replica, Record]] = queue.SimpleQueue()
        self._replicas = [Replica(number, self._news) for number in range(1, count + 1)]
        self._count, self._asked = count, 0
        places = _places(count, chosen.tensor_parallel)
        told = {"directory": str(directory), **settings}
        pairs = zip(self._replicas, places, strict=True)
        self._end = weakref.finalize(self, end_all, [r.start(told, place) for r, place in pairs])
        for replica in self._replicas:
            replica.ready.wait()
            if replica.end is not None:
                self.close()
                raise MachineError(f"engine {replica.number} of {count} {replica.end}")

    @property
    def identity(self) -> str:
        return self._identity

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each completion as it finishes.

        Raises: MachineError where no engine is left.
        """
        work = _Work(iter(requests))
        try:
            while True:
                self._deal(work)
                yield from work.refused()
                if not any(replica.asked for replica in self._replicas) and work.is_done:
                    return
                replica, message = self._news.get()
                if "end" in message:
                    self._lost(replica, work)
                elif (completion := _completion(replica, message, work)) is not None:
                    yield completion
        finally:
            for replica in self._replicas:
                if replica.asked:
                    replica.asked.clear()
                    replica.answers = 0
                    replica.tell({"do": "stop"})

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Yield the answer to a request as a whole."""
        request = replace(request, sampling=replace(request.sampling, n=1))
        [answer] = await asyncio.to_thread(lambda: list(self.sample([request])))
        yield Delta(
            answer.text, answer.token_ids, answer.finish_reason, answer.logprobs,
            answer.top_logprobs, answer.error,
        )  # fmt: skip

    def weights_changed(self) -> None:
        """The engines read their weights from files, which nobody changes."""

    def sleep(self) -> None:
        for replica in self._replicas:
            replica.tell({"do": "sleep"})

    def wake(self) -> None:
        """An engine wakes when it is asked something."""

    def statistics(self) -> dict[str, float]:
        """Counts and rates of all engines together; shares are means, seconds the longest."""
        for replica in self._replicas:
            replica.tell({"do": "count"})
        found: list[dict[str, float]] = []
        deadline = time.monotonic() + COUNT_SECONDS
        while len(found) < len(self._replicas):
            try:
                replica, message = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if "end" in message:
                self._drop(replica)
            elif "statistics" in message:
                found.append(message["statistics"])
        total: dict[str, float] = {"engines": len(self._replicas)}
        for name in found[0] if found else ():
            values = [each[name] for each in found]
            if name.endswith("_share"):
                total[name] = sum(values) / len(values)
            else:
                total[name] = max(values) if name == "seconds" else sum(values)
        return total

    def close(self) -> None:
        """Let the engines end."""
        self._replicas = []
        self._end()

    def _deal(self, work: _Work) -> None:
        """Hand requests to engines that have room, some to each in turn, the emptiest first."""
        if not self._replicas:
            raise MachineError("no engine is left", hint="what has been answered is kept")
        while True:
            emptiest = max(self._replicas, key=Replica.room)
            if emptiest.room() < TOGETHER:
                return
            for _ in range(TOGETHER):
                request = work.next()
                if request is None:
                    return
                try:
                    record = request_record(request)
                except SingalautError as error:
                    work.refuse(request, error)
                    continue
                self._asked += 1
                emptiest.ask(self._asked, request, record)

    def _lost(self, replica: Replica, work: _Work) -> None:
        """Ask the others what an engine that has ended has not answered."""
        left = list(replica.asked.values())
        again = f"; its {len(left)} requests are asked again" if left else ""
        log.warning("engine %d of %d %s%s", replica.number, self._count, replica.end, again)
        work.ask_again(left)
        self._drop(replica)
        if not self._replicas and not work.is_done:
            raise MachineError(
                f"engine {replica.number} of {self._count}, the last one, {replica.end}",
                hint="what has been answered is kept; run the same command again to go on",
            )

    def _drop(self, replica: Replica) -> None:
        replica.asked.clear()
        self._replicas = [each for each in self._replicas if each is not replica]


class _Work:
    """Requests of one caller: those to be asked again first, then new ones."""

    def __init__(self, source: Iterator[Request]):
        self._source = source
        self._again: deque[Request] = deque()
        self._refused: list[Completion] = []
        self._is_exhausted = False
        self.given: dict[int, set[int]] = {}  # answers that are there, by the request's identity

    @property
    def is_done(self) -> bool:
        return self._is_exhausted and not self._again and not self._refused

    def next(self) -> Request | None:
        if self._again:
            return self._again.popleft()
        request = None if self._is_exhausted else next(self._source, None)
        self._is_exhausted = request is None
        return request

    def ask_again(self, requests: Iterable[Request]) -> None:
        self._again.extend(requests)

    def refuse(self, request: Request, error: SingalautError) -> None:
        self._refused.append(refusal(request, error))

    def refused(self) -> list[Completion]:
        refused, self._refused = self._refused, []
        return refused


def _completion(replica: Replica, message: Record, work: _Work) -> Completion | None:
    """The completion of a message; None for one that nobody waits for, or has already."""
    if "completion" not in message:
        return None
    found = completion_of(message["completion"])
    key = int(found.request_id.partition(":")[0])
    request = replica.asked.get(key)
    if request is None:
        return None
    replica.answers -= 1
    given = work.given.setdefault(id(request), set())
    is_known = found.index in given
    given.add(found.index)
    if message["last"]:
        del replica.asked[key], work.given[id(request)]
    error = found.error and found.error.replace(found.request_id, request.id)
    return None if is_known else replace(found, request_id=request.id, error=error)


def _places(count: int, size: int) -> list[dict[str, str]]:
    """What each engine's environment says of the devices it may use, `size` of them each."""
    if not torch.cuda.is_available():
        threads = max(1, (os.cpu_count() or 1) // count)
        return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}] * count
    there = torch.cuda.device_count()
    if there < count * size:
        raise MachineError(
            f"{count} engines need {count * size} GPUs; this machine shows {there}",
            hint="lower `replicas` or `tensor_parallel`, or look at CUDA_VISIBLE_DEVICES",
        )
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else [str(number) for number in range(there)]
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(names[size * i : size * (i + 1)])} for i in range(count)
    ]
