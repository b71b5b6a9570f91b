"""Answers to the next step's prompts, made by a thread while this step is learned from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from singalaut.rl.rollouts import Rollouts


class Ahead:
    """Makes the answers of a step when they are needed, or before.

    `make(step, place)` is called by one thread at a time. Leaving the block waits for what was
    begun, so that it is stored.
    """

    def __init__(self, make: Callable[[int, int], Rollouts], device: torch.device):
        self._make, self._device = make, device
        self._threads = ThreadPoolExecutor(1, "answers")
        self._begun: tuple[int, Future[Rollouts]] | None = None

    def begin(self, step: int, place: int) -> None:
        """Let the thread make the answers of a step, with the weights that the engine has now."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the thread has a stream of its own
        self._begun = step, self._threads.submit(self._in_thread, step, place)

    def wait(self) -> None:
        """Until what was begun is there. Raises what the thread has raised."""
        if self._begun is not None:
            self._begun[1].result()

    def take(self, step: int, place: int) -> Rollouts:
        """The answers of a step: those that were begun, or made now."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == step:
            return begun[1].result()
        return self._make(step, place)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def _in_thread(self, step: int, place: int) -> Rollouts:
        if self._device.type != "cuda":
            return self._make(step, place)
        torch.cuda.set_device(self._device)
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            rollouts = self._make(step, place)
        stream.synchronize()
        return rollouts
