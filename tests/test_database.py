"""Opening one SQLite file that others use."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from singalaut import database
from singalaut.database import open_database

SCHEMA = "CREATE TABLE IF NOT EXISTS note (text TEXT)"


def test_a_new_file_that_another_is_writing_is_waited_for(tmp_path):
    path = tmp_path / "new.sqlite"
    other = sqlite3.connect(path, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # SQLite now refuses write-ahead mode at once
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(path, timeout=60).execute("PRAGMA journal_mode = WAL")
    threading.Timer(0.3, other.rollback).start()
    connection = open_database(path, SCHEMA)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_what_stays_busy_is_given_up(tmp_path, monkeypatch):
    path = tmp_path / "held.sqlite"
    holder = sqlite3.connect(path)
    holder.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        open_database(path, SCHEMA)
    holder.rollback()
    open_database(path, SCHEMA).close()


def test_what_is_no_database_is_refused(tmp_path: Path):
    path = tmp_path / "text.sqlite"
    path.write_text("no database" * 200)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        open_database(path, SCHEMA)
