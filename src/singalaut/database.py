"""SQLite files that several processes open at the same moment."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 60.0
PAUSE_SECONDS = 0.02


def open_database(path: Path, schema: str = "", **options: Any) -> sqlite3.Connection:
    """A connection in write-ahead mode to the file, made with `schema` where it is new.

    SQLite refuses a change to write-ahead mode at once, whatever the timeout, while another
    process opens the same new file; so it is tried again until `PATIENCE_SECONDS` have passed.
    What is committed survives the end of the process.

    Raises: sqlite3.Error for a file that is no database, or stays locked.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        connection = sqlite3.connect(path, timeout=PATIENCE_SECONDS, **options)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(schema)
        except sqlite3.OperationalError as error:
            connection.close()
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # of several kinds
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_SECONDS)
        except BaseException:
            connection.close()
            raise
        else:
            return connection
