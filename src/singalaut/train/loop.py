"""What the loops of training stages share: being asked to stop, and giving up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from singalaut.artifact import Work
from singalaut.errors import DataError
from singalaut.train.checkpoint import Checkpoints


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """Set when the process is asked to end, so that it can do so with a checkpoint."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def no_progress(
    bad: Sequence[int], fault: tuple[float, float], checkpoints: Checkpoints, work: Work
) -> DataError:
    """The error that ends a run in which nothing is learned any more."""
    last = checkpoints.path()
    kept = "there is no checkpoint yet" if last is None else f"the last good one is {last.name}"
    return DataError(
        f"the loss is {fault[0]}, the gradient norm {fault[1]} at step {bad[-1]}"
        + (f", the last of {len(bad)} bad steps in a row" if len(bad) > 1 else "")
        + f"; {kept}",
        where=work.path,
        hint="lower `learning_rate` or look at the data",
    )
