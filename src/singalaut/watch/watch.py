"""What a training stage tells people while it runs: trackers, answers, and its page.

A stage makes one `Watch` before its first step, says when a step ends and when it has saved, and
finishes it. Nothing here changes what is learned, and what fails here is told in the log and costs
nothing but itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from singalaut.artifact import Work, hardware, write_json
from singalaut.contracts import Message, Sampler
from singalaut.watch.config import WatchConfig
from singalaut.watch.report import write_report
from singalaut.watch.run import RUN_FILE
from singalaut.watch.samples import Samples
from singalaut.watch.trackers import Trackers

log = logging.getLogger("singalaut")
PAGE_SHARE = 0.02  # of a run's time, at most, that goes into drawing its page


class Watch:
    """Watching of one stage; in processes that are not the first, it does nothing."""

    def __init__(
        self,
        config: WatchConfig,
        work: Work,
        *,
        kind: str,
        steps: int,
        start: int = 0,
        settings: Mapping[str, Any] | None = None,
        questions: Sequence[Sequence[Message]] = (),
        open_sampler: Callable[[], AbstractContextManager[Sampler | None]] | None = None,
        facts: Mapping[str, Any] | None = None,
        is_first: bool = True,
    ) -> None:
        """`start` is the first step of this attempt, `open_sampler` an engine over the weights.

        Raises: MachineError for a tracker that is not there.
        """
        self.config, self.work, self.steps = config, work, steps
        self.is_first = is_first
        self._next_page = 0.0
        self._trackers: Trackers | None = None
        self._samples = None
        if open_sampler is not None and questions:
            self._samples = Samples(work.path, questions, config.sample_tokens, open_sampler)
        if not is_first:
            return
        name = work.path.name.removesuffix(".partial")
        self._trackers = Trackers(config.trackers, work.path, name, settings or {}, start)
        (work.path / "report").mkdir(exist_ok=True)
        self._about = {"kind": kind, "steps": steps, "hardware": hardware(), **(facts or {})}
        write_json(work.path / "report" / RUN_FILE, self._about)
        work.listeners.append(self._trackers.add)

    def begin_step(self, step: int) -> None:
        """Before a step is taken: ask the questions where it is their time."""
        if step % self.config.sample_every == 0:
            self._ask(step)

    def saved(self) -> None:
        """After a checkpoint: draw the page, unless that would cost more than its share of time."""
        if not self.is_first:
            return
        assert self._trackers is not None
        self._trackers.flush()
        if time.monotonic() >= self._next_page:
            self._draw()

    def finish(self) -> None:
        """After the last step and what is measured then."""
        self._ask(self.steps)
        if not self.is_first:
            return
        assert self._trackers is not None
        self.work.listeners.remove(self._trackers.add)
        told = {"ended": True, "trackers": self._trackers.close()}
        write_json(self.work.path / "report" / RUN_FILE, self._about | told)
        self._draw()

    def _ask(self, step: int) -> None:
        if self._samples is None:
            return
        try:
            self._samples.take(step)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            log.warning("step %d: the questions could not be asked: %s", step, what)

    def _draw(self) -> None:
        begin = time.monotonic()
        try:
            write_report(self.work.path)
        except Exception as error:  # training is worth more than its picture
            log.warning("the page could not be drawn: %s: %s", type(error).__name__, error)
        end = time.monotonic()
        self._next_page = end + (end - begin) / PAGE_SHARE
