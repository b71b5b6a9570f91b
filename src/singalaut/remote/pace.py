"""How fast an endpoint is asked: limits per minute, and pauses after refusals."""

from __future__ import annotations

import asyncio
import time

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 60.0
BURST_SECONDS = 5.0  # of the allowance that may be used at once


class Pace:
    """Lets requests go so that neither they nor their tokens exceed a rate; unset is no limit."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None):
        self._buckets = [
            _Bucket(rate / 60, use_tokens)
            for rate, use_tokens in ((requests_per_minute, False), (tokens_per_minute, True))
            if rate is not None
        ]

    async def wait(self, tokens: int) -> None:
        """Return when a request of so many tokens may be sent."""
        for bucket in self._buckets:
            await bucket.take(float(tokens) if bucket.use_tokens else 1.0)


class _Bucket:
    """An allowance that fills steadily; a request may overdraw it and then all wait."""

    def __init__(self, per_second: float, use_tokens: bool):
        self.per_second, self.use_tokens = per_second, use_tokens
        self._level = self._most = max(1.0, per_second * BURST_SECONDS)
        self._time = time.monotonic()

    async def take(self, amount: float) -> None:
        now = time.monotonic()
        self._level = min(self._most, self._level + (now - self._time) * self.per_second)
        self._time = now
        self._level -= amount
        if self._level < 0:
            await asyncio.sleep(-self._level / self.per_second)


def pause_seconds(attempt: int, asked: float | None, chance: float) -> float:
    """How long to wait before repeating: what the server asks for, or twice as long each time.

    Up to half of it is left to `chance` (0 to 1), so that clients do not return together.
    """
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
    own = longest * (0.5 + 0.5 * chance)
    return own if asked is None else min(LONGEST_PAUSE_SECONDS, max(asked, 0.0)) + 0.1 * own
