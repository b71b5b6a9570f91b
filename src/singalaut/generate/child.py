"""Processes that a first one starts and talks with through pipes, and how they end.

Messages are JSON behind their length. What a child writes to its standard streams is kept as its
last words; it ends when the pipe that it reads from does, so none outlives the first process.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

log = logging.getLogger("singalaut")
END_SECONDS = 20.0  # for a child to end by itself
LAST_LINES = 40
Record = dict[str, Any]


class Child:
    """A started process, as the first one sees it.

    `hear` gets its messages and `lost` the way in which it ended before it was dismissed, both in
    threads of this object, which keep neither method's object alive.
    """

    def __init__(
        self,
        command: Sequence[str],
        hear: Callable[[Record], None],
        lost: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
    ):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=None if environment is None else {**os.environ, **environment},
        )  # fmt: skip
        self.is_dismissed = False
        self._said: deque[str] = deque(maxlen=LAST_LINES)
        self._hear, self._lost = weakref.WeakMethod(hear), weakref.WeakMethod(lost)
        self._lines = threading.Thread(target=self._keep_lines, daemon=True)
        self._lines.start()
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, message: Record) -> None:
        """Raises: OSError where the child has ended."""
        assert self.process.stdin is not None
        _write(self.process.stdin, message)

    def dismiss(self) -> None:
        """Close its pipe, by which it knows."""
        self.is_dismissed = True
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def end(self) -> None:
        """Wait until it has ended, and see to it."""
        self.dismiss()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _keep_lines(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            if line := raw.decode(errors="replace").rstrip():
                self._said.append(line)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        while (message := _read(self.process.stdout)) is not None:
            if (hear := self._hear()) is not None:
                hear(message)
            del hear
        code = self.process.wait()
        self._lines.join()
        lost = self._lost()
        if lost is not None and not self.is_dismissed:
            log.debug("its last lines:\n%s", "\n".join(self._said))
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            lost(how + (f": {self._said[-1]}" if self._said else ""))


def end_all(children: Sequence[Child]) -> None:
    for child in children:
        child.dismiss()
    for child in children:
        child.end()


class Parent:
    """The first process, as a child sees it. There is one; what is printed goes to the log."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what it means
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._heard: queue.SimpleQueue[Record] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, message: Record) -> None:
        _write(self._out, message)

    def next(self, *, wait: bool = True) -> Record | None:
        """The next message; None where there is none yet and nobody wants to wait."""
        try:
            return self._heard.get(block=wait)
        except queue.Empty:
            return None

    def _listen(self) -> None:
        while (message := _read(sys.stdin.buffer)) is not None:
            self._heard.put(message)
        os._exit(0)  # at once, whatever the other thread may be waiting for


def _write(pipe: IO[bytes], message: Record) -> None:
    data = json.dumps(message, separators=(",", ":")).encode()
    pipe.write(struct.pack("<I", len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Record | None:
    """The next message; None at the end of the pipe."""
    head = pipe.read(4)
    if len(head) < 4:
        return None
    size = struct.unpack("<I", head)[0]
    data = pipe.read(size)
    return json.loads(data) if len(data) == size else None
