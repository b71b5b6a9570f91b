"""The log on stderr; `SINGALAUT_LOG` sets its level."""

from __future__ import annotations

import logging
import os
import sys

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class _Stderr(logging.Handler):
    """Writes to what is stderr at that moment: a progress bar takes its place while it shows."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(f"{mark}{record.getMessage()}", file=sys.stderr, flush=True)


def start_logging() -> None:
    """Send the package's log to stderr. Raises: RecipeError for an unknown level."""
    level = os.environ.get("SINGALAUT_LOG", "INFO").upper()
    if level not in LEVELS:
        from singalaut.errors import RecipeError

        hint = f"use one of {', '.join(LEVELS)}"
        raise RecipeError(f"no log level is named `{level}`", where="SINGALAUT_LOG", hint=hint)
    log = logging.getLogger("singalaut")
    for old in [h for h in log.handlers if isinstance(h, _Stderr)]:
        log.removeHandler(old)
    handler = _Stderr(level)
    log.addHandler(handler)
    log.setLevel(min(handler.level, logging.INFO))  # the log of an artifact is never thinner
