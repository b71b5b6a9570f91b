"""Progress on the terminal: a bar with rate and time left, or a line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LINE_EVERY_SECONDS = 30.0


class Bar:
    """Counts work done; `advance` may carry figures to show beside the bar."""

    def __init__(self, title: str, total: int | None, unit: str):
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.figures = ""
        self.begin = time.monotonic()

    def advance(self, amount: int = 1, **figures: Any) -> None:
        self.done += amount
        if figures:
            self.figures = " ".join(f"{name} {value}" for name, value in figures.items())
        self.show()

    def show(self) -> None:
        """Bring the display up to date."""

    def rate(self) -> float:
        return self.done / max(time.monotonic() - self.begin, 1e-9)

    def summary(self) -> str:
        total = "" if self.total is None else f"/{self.total}"
        seconds = time.monotonic() - self.begin
        text = f"{self.title}: {self.done}{total} {self.unit}, {self.rate():.1f} {self.unit}/s"
        return f"{text}, {seconds:.1f} s {self.figures}".rstrip()


class _Lines(Bar):
    """For logs: a line now and then, and one at the end."""

    last = 0.0

    def show(self) -> None:
        due = time.monotonic() - max(self.last, self.begin) >= LINE_EVERY_SECONDS
        if due and self.done != self.total:  # the last line comes with the end of the block
            self.last = time.monotonic()
            print(self.summary(), file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: int | None = None, unit: str = "step") -> Iterator[Bar]:
    """Show how far a piece of work is while the block runs."""
    if not sys.stderr.isatty():
        lines = _Lines(title, total, unit)
        yield lines
        print(lines.summary(), file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total} {task.fields[unit]} {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(title, total=total, unit=unit, rate="", figures="")

        class _Terminal(Bar):
            def show(self) -> None:
                rate = f"{self.rate():.1f}/s"
                display.update(task, completed=self.done, rate=rate, figures=self.figures)

        yield _Terminal(title, total, unit)
