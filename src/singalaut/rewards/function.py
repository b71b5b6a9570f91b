"""A user's reward function in a process of its own, which may hang, crash or lie without harm."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from singalaut.contracts import Sample
from singalaut.errors import RecipeError

START_SECONDS = 60.0


class RewardFunction:
    """Calls `module:name` in a worker; after a call that fails the worker is started anew."""

    def __init__(self, place: str, seconds: float):
        self.place, self.seconds = place, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def call(self, response: str, prompt: str, sample: Sample) -> tuple[float | None, str]:
        """The function's number; None, with what happened, where it gave none in time.

        Raises: RecipeError if there is no such function.
        """
        self.start()
        message = {"response": response, "prompt": prompt, "sample": asdict(sample)}
        try:
            assert self._process is not None and self._process.stdin is not None
            self._process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            self._process.stdin.flush()
            reply = self._receive(self.seconds)
        except (OSError, ValueError) as error:
            self.close()
            return None, f"its process ended ({error})"
        if reply is None:
            self.close()
            return None, f"no answer within {self.seconds:g} s"
        if "error" in reply:
            return None, f"it raised {reply['error']}"
        value = reply.get("value")
        if not isinstance(value, bool | int | float) or not math.isfinite(value):
            return None, f"it gave {value}, which is no finite number"
        return float(value), str(reply.get("reason") or "a function's number")

    def start(self) -> None:
        """Start the worker, unless it runs. Raises: RecipeError if there is no such function."""
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "singalaut.rewards.function_worker", self.place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        reply = self._receive(START_SECONDS)
        if reply is None or "ready" not in reply:
            self.close()
            raise RecipeError(
                f"the reward function cannot be used: {(reply or {}).get('error', 'it hangs')}",
                where=self.place,
                hint="write `module:name` of a function that can be imported from here",
            )

    def close(self) -> None:
        """End the worker and whatever it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process, self._unread = None, b""

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The worker's next line, None at the deadline. Raises: OSError if it has ended."""
        assert self._process is not None and self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            piece = os.read(pipe, 65536)
            if not piece:
                raise ChildProcessError("without a word")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        found = json.loads(line)
        return found if isinstance(found, dict) else {}


def source_hash(place: str) -> str:
    """SHA-256 of the file of `module:name`, which is not run; of the name where there is no file.

    What the file imports is not looked at.
    """
    path = [str(Path.cwd()), *sys.path]
    spec = None
    name = ""
    for part in place.partition(":")[0].split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, path)
        path = list(spec.submodule_search_locations or ()) if spec is not None else []
    file = Path(spec.origin) if spec is not None and spec.origin else None
    data = file.read_bytes() if file is not None and file.exists() else place.encode()
    return hashlib.sha256(data).hexdigest()
