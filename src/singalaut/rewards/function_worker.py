"""The process in which a user's reward function runs: JSON lines in, JSON lines out.

What the function prints goes to standard error, so that it cannot be taken for an answer. A process
that it forks and that returns from it ends there: only the first one reads and answers.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, str(Path.cwd()))
    module, _, name = sys.argv[1].partition(":")

    def say(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may raise anything
        say(error=f"{type(error).__name__}: {error}")
        return
    if not callable(function):
        say(error=f"`{name}` is {type(function).__name__}, no function")
        return
    say(ready=True)
    own = os.getpid()
    for line in sys.stdin:
        try:
            found = function(**json.loads(line))
            value, reason = found if isinstance(found, tuple) else (found, "")
            reply = _number(value) | {"reason": str(reason)}
        except Exception as error:  # so may a user's function
            reply = {"error": f"{type(error).__name__}: {error}"}
        except BaseException:  # a child that was forked in the function, and leaves
            if os.getpid() == own:
                raise
            os._exit(0)
        if os.getpid() != own:
            os._exit(0)
        _reap()
        say(**reply)


def _number(value: Any) -> dict[str, Any]:
    """The value as a number, or what it is instead; text is none, whatever stands in it."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return {"value": repr(value)[:80]}
    return {"value": float(value)}


def _reap() -> None:
    """Let go of forked processes that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
