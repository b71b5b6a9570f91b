"""A Sampler over OpenAI-compatible endpoints: bounded, paced, patient.

Requests run concurrently on an event loop in a thread of its own; each goes to the address with
the fewest requests in flight. What may pass (429, 5xx, timeouts, broken connections, pages that
are not JSON) is repeated after a pause that doubles; what will not pass ends the request with an
error that names the answer of the server, and a wrong key or model ends the run. Reading and
writing the wire format is `wire`'s work.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import httpx

from singalaut.contracts import Completion, Delta, Request
from singalaut.errors import MachineError, RequestError
from singalaut.remote.config import EndpointConfig
from singalaut.remote.pace import Pace, pause_seconds
from singalaut.remote.wire import Wire, delta_of, error_text, failed

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
HOPELESS = frozenset({401, 403, 404, 405})
DEAD_AFTER = 20  # requests given up in a row, without one answer before
SUBMITTED_AHEAD = 4  # requests read ahead, for each that may be in flight


class EndpointSampler:
    """Implements the Sampler protocol; the model's memory and weights are the servers' affair."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        own_settings: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        """`own_settings` leaves sampling parameters at their defaults to the server.

        Raises: RequestError where the variable with the key is not set.
        """
        self.config = config
        self._wire = Wire(config.model, own_settings, config.token_ids)
        self._headers = access_headers(config)
        self._transport = transport
        self._flying = dict.fromkeys(config.urls, 0)
        self._counts: Counter[str] = Counter()
        self._troubles: Counter[str] = Counter()
        self._begin = time.monotonic()
        self._given_up_in_a_row = 0

    @property
    def identity(self) -> str:
        return self.config.identity()

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each completion as it finishes.

        Raises: RequestError for a wrong key, address or model, MachineError where nothing answers.
        """
        done: queue.SimpleQueue[Completion | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()
        thread = threading.Thread(
            target=lambda: asyncio.run(self._run(iter(requests), done, stop)),
            name="endpoint",
            daemon=True,
        )
        thread.start()
        try:
            while (item := done.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Yield the first answer to a request as the server sends it."""
        url, body = self._wire.request(request)
        body |= {"n": 1, "stream": True}
        base = self.config.urls[0].rstrip("/")
        async with (
            self._client() as client,
            client.stream("POST", base + url, json=body, headers=self._headers) as response,
        ):
            if response.status_code != 200:
                await response.aread()
                raise RequestError(
                    f"the endpoint refused: {error_text(response.status_code, response.text)}",
                    where=base,
                )
            async for line in response.aiter_lines():
                if line.startswith("data:") and (delta := delta_of(line[5:].strip())):
                    yield delta
                    if delta.finish_reason:
                        return

    def use_model(self, name: str) -> None:
        """Ask for another model of the same servers from now on."""
        self._wire.model = name

    def weights_changed(self) -> None:
        """Nothing is kept here that depends on weights."""

    def sleep(self) -> None:
        """The servers keep their memory."""

    def wake(self) -> None:
        """The servers kept their memory."""

    def statistics(self) -> dict[str, float]:
        """Counts since the start: answers, tokens, and each kind of trouble as `trouble_…`."""
        seconds = max(time.monotonic() - self._begin, 1e-9)
        return {
            **{name: float(count) for name, count in sorted(self._counts.items())},
            **{f"trouble_{name}": float(n) for name, n in sorted(self._troubles.items())},
            "answers_per_second": self._counts["answers"] / seconds,
        }

    def _client(self) -> httpx.AsyncClient:
        limit = self.config.concurrency
        return httpx.AsyncClient(
            timeout=httpx.Timeout(self.config.timeout_seconds, connect=30.0),
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit),
            transport=self._transport,
            trust_env=self._transport is None,
        )

    async def _run(
        self,
        requests: Iterator[Request],
        done: queue.SimpleQueue[Completion | BaseException | None],
        stop: threading.Event,
    ) -> None:
        """Keep as many requests in flight as allowed until all are answered or one is hopeless."""
        gate = asyncio.Semaphore(self.config.concurrency)
        pace = Pace(self.config.requests_per_minute, self.config.tokens_per_minute)
        running: set[asyncio.Task[None]] = set()
        try:
            async with self._client() as client:

                async def one(request: Request) -> None:
                    async with gate:
                        for completion in await self._answer(client, pace, request, stop):
                            done.put(completion)

                for request in requests:
                    running.add(asyncio.create_task(one(request)))
                    while len(running) >= SUBMITTED_AHEAD * self.config.concurrency:
                        running = await self._some(running)
                    await asyncio.sleep(0)
                while running:
                    running = await self._some(running)
        except BaseException as error:  # raised again where the answers are read
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            done.put(error)
        done.put(None)

    async def _some(self, running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Wait for one of the tasks; an error of any ends the run."""
        finished, rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            task.result()
        return rest

    async def _answer(
        self, client: httpx.AsyncClient, pace: Pace, request: Request, stop: threading.Event
    ) -> list[Completion]:
        """The completions of one request, or one that says why there are none."""
        url, body = self._wire.request(request)
        deadline = request.deadline_seconds
        end = None if deadline is None else time.monotonic() + deadline
        reason = "never sent"
        for attempt in range(self.config.retries + 1):
            if stop.is_set():
                return []
            await pace.wait(self._wire.estimated_tokens(request))
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                self._troubles["deadlines"] += 1
                return [failed(request, "deadline", reason)]
            outcome = await self._try(client, url, body, left)
            if not isinstance(outcome, _Trouble):
                return self._accept(request, outcome)
            reason = outcome.reason
            if outcome.hopeless:
                raise RequestError(
                    f"the endpoint refused: {reason}",
                    where=self.config.urls[0],
                    hint="check the address, the model's name there and the key",
                )
            if not outcome.passing or attempt == self.config.retries:
                break
            self._troubles["repeated"] += 1
            await asyncio.sleep(pause_seconds(attempt, outcome.after_seconds, random.random()))
        return self._give_up(request, reason)

    def _accept(self, request: Request, found: dict[str, Any]) -> list[Completion]:
        try:
            completions = self._wire.completions(request, found)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            self._troubles["malformed"] += 1
            what = (
                f"no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            )
            return self._give_up(request, f"not an answer of this protocol ({what})")
        self._given_up_in_a_row = 0
        self._counts["answers"] += len(completions)
        for completion in completions:
            self._counts["completion_tokens"] += completion.usage.completion_tokens
        self._counts["prompt_tokens"] += completions[0].usage.prompt_tokens if completions else 0
        return completions

    def _give_up(self, request: Request, reason: str) -> list[Completion]:
        self._troubles["given_up"] += 1
        self._given_up_in_a_row += 1
        if self._given_up_in_a_row >= DEAD_AFTER and not self._counts["answers"]:
            raise MachineError(
                f"the endpoint answers nothing: {reason}",
                where=self.config.urls[0],
                hint="check that the server runs; what has been answered is kept",
            )
        return [failed(request, "error", reason)]

    async def _try(
        self, client: httpx.AsyncClient, url: str, body: dict[str, Any], seconds: float | None
    ) -> dict[str, Any] | _Trouble:
        """One attempt at the address with the fewest requests in flight."""
        base = min(self._flying, key=lambda address: self._flying[address])
        self._flying[base] += 1
        try:
            timeout = self.config.timeout_seconds if seconds is None else seconds
            response = await client.post(
                base.rstrip("/") + url, json=body, headers=self._headers, timeout=timeout
            )
        except httpx.TimeoutException:
            self._troubles["timeouts"] += 1
            return _Trouble("no answer in time", passing=True)
        except (httpx.HTTPError, OSError) as error:
            self._troubles["connection_errors"] += 1
            return _Trouble(f"{type(error).__name__}: {error}", passing=True)
        finally:
            self._flying[base] -= 1
        status = response.status_code
        if status != 200:
            self._troubles[f"http_{status}"] += 1
            return _Trouble(
                error_text(status, response.text),
                passing=status in PASSING,
                hopeless=status in HOPELESS,
                after_seconds=_retry_after(response),
            )
        try:
            found = json.loads(response.content)
        except ValueError:
            self._troubles["not_json"] += 1
            page = error_text(status, response.text)
            return _Trouble(f"not JSON, is this the right address? {page}", passing=True)
        if not isinstance(found, dict):
            self._troubles["malformed"] += 1
            return _Trouble("an answer that is no object", passing=True)
        return found


class _Trouble:
    """Why an attempt gave no answer, and whether another may."""

    def __init__(
        self,
        reason: str,
        *,
        passing: bool,
        hopeless: bool = False,
        after_seconds: float | None = None,
    ):
        self.reason, self.passing, self.hopeless = reason, passing, hopeless
        self.after_seconds = after_seconds


def access_headers(config: EndpointConfig) -> dict[str, str]:
    """What a call needs to be let in. Raises: RequestError where there is no key."""
    if not config.key_variable:
        return {}
    key = os.environ.get(config.key_variable)
    if not key:
        raise RequestError(
            f"the variable {config.key_variable}, which shall hold the key, is not set",
            where=config.urls[0],
            hint=f"export {config.key_variable}=…",
        )
    return {"Authorization": f"Bearer {key}"}


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
