"""A pool of two kinds of conversations, a target of one kind, and a tiny model with an adapter."""

from __future__ import annotations

import json

import pytest

from singalaut.data.cache import cached_store
from singalaut.data.config import DataSource


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path_factory.mktemp("home")))


def conversation(number, kind):
    if kind == "sum":
        question, answer = f"{number} plus {number}?", f"It is {2 * number}."
    else:
        question, answer = (
            "spell " + "abc"[number % 3] * (1 + number % 5),
            "x y z " * (number % 4 + 1),
        )
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "language": "en" if kind == "sum" else "th"}


@pytest.fixture
def write(tmp_path):
    def write_rows(name, rows):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write_rows


@pytest.fixture
def pool_file(write):
    return write("pool.jsonl", [conversation(i, "sum" if i % 4 == 0 else "x") for i in range(40)])


@pytest.fixture
def target_file(write):
    return write("target.jsonl", [conversation(i, "sum") for i in range(50, 56)])


@pytest.fixture
def open_file(tiny_model):
    return lambda file: cached_store((DataSource(path=file.name),), [file], tiny_model, 2048)
