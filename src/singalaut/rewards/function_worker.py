"""The process in which a user's reward function runs: JSON lines in, JSON lines out.

What the function prints goes to standard error, so that it cannot be taken for an answer.
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
    say(ready=True)
    for line in sys.stdin:
        try:
            found = function(**json.loads(line))
            value, reason = found if isinstance(found, tuple) else (found, "")
            say(value=float(value), reason=str(reason))
        except Exception as error:  # so may a user's function
            say(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
