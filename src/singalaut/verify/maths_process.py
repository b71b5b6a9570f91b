"""One worker process for computer algebra, seen from outside: send, wait, kill.

Lines of JSON go both ways. The process announces the child that will do the work by its id; a child
that is late is killed, and the process forks another, which has everything imported already.
What the child does is in `maths_worker`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from typing import Any

from singalaut.verify.verdict import Verdict

LATE = "no result within"
_START_SECONDS = 60.0


class MathsProcess:
    """A worker with limits for each expression; it starts with the first one.

    `longest_seconds` and `largest_bytes` are what single expressions took at most so far.
    """

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._child = 0
        self._job = 0
        self._unread = b""
        self.longest_seconds = 0.0
        self.largest_bytes = 0
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def equal(self, answer: str, reference: str) -> Verdict:
        """Whether two expressions are equal; None with the reason if that cannot be found out."""
        try:
            if self._process is None:
                self._start()
            started, self._job = time.monotonic(), self._job + 1
            self._send({"id": self._job, "answer": answer, "reference": reference})
            reply = self._receive(started + self._seconds)
            while reply is not None and "ready" not in reply and reply.get("id") != self._job:
                reply = self._receive(started + self._seconds)  # an older job's, if one broke off
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - started)
        except OSError as error:
            self.close()
            return Verdict(None, f"the worker cannot be reached: {error}")
        if reply is None:
            self._replace_child()
            return Verdict(None, f"{LATE} {self._seconds:g} s")
        if "ready" in reply:  # another child: the one that had the expression is dead
            self._child = int(reply["ready"])
            return Verdict(None, "the worker died: out of memory or time, or crashed")
        self.largest_bytes = max(self.largest_bytes, int(reply.get("peak_bytes", 0)))
        if reply.get("leaves"):
            self._await_child()
        ok = reply.get("ok")
        return Verdict(ok if isinstance(ok, bool) else None, str(reply.get("reason", "")))

    def close(self) -> None:
        """End the process and its child."""
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer, self._unread = None, None, b""

    def _start(self) -> None:
        command = [sys.executable, "-m", "singalaut.verify.maths_worker"]
        command += [str(self._seconds), str(self._memory_bytes)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._finalizer = weakref.finalize(self, _end, self._process)
        self._await_child()

    def _await_child(self) -> None:
        reply = self._receive(time.monotonic() + _START_SECONDS)
        if reply is None or "ready" not in reply:
            raise ChildProcessError(f"it did not start within {_START_SECONDS:g} s")
        self._child = int(reply["ready"])

    def _replace_child(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        try:
            while "ready" not in (reply := self._receive(time.monotonic() + _START_SECONDS) or {}):
                if not reply:
                    raise ChildProcessError("no new child came")
            self._child = int(reply["ready"])
        except OSError:
            self.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """The next line of the process, None at the deadline. Raises: OSError if it has ended."""
        assert self._process is not None and self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            piece = os.read(pipe, 65536)
            if not piece:
                raise ChildProcessError("it has ended")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        message = json.loads(line)
        return message if isinstance(message, dict) else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and the children in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()
