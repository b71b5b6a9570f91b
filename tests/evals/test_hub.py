"""Rows of the hub are written as the loader looks for them, from each form a data set comes in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from singalaut.errors import DataError
from singalaut.evals.hub import fetch_rows, split_patterns
from singalaut.evals.tasks import choose

CARD = """---
configs:
- config_name: id
  data_files:
  - split: eval
    path: rows/id-*.parquet
  - split: example
    path: [rows/example.jsonl]
- config_name: th
  data_files: rows/th.jsonl
---
text
"""


def spec(pack):
    """A cell of the small pack, said to lie on the hub."""
    from singalaut.evals.pack import load_pack

    task, language = choose(load_pack(pack), tasks=("sentiment",), languages=("id",))[0]
    return task, replace(language, hub=("org/data", "id", "eval", "example"))


def test_patterns_are_those_of_the_card():
    assert split_patterns(CARD, "id", "eval") == ["rows/id-*.parquet"]
    assert split_patterns(CARD, "id", "example") == ["rows/example.jsonl"]
    assert split_patterns(CARD, "th", "eval") == ["rows/th.jsonl"]
    for card in (CARD, "no header", "---\n[broken: {\n---\n"):
        assert split_patterns(card, "vi", "eval")[0] == "vi/eval*"


def test_parquet_and_json_lines_become_json_lines(pack, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    hub = tmp_path / "hub"
    (hub / "rows").mkdir(parents=True)
    (hub / "README.md").write_text(CARD)
    rows = [[{"id": "1", "prompts": [{"text": "ไทย\u2028"}]}], [{"id": "2", "prompts": None}]]
    for number, part in enumerate(rows):
        table = pyarrow.Table.from_pylist(part)
        pyarrow.parquet.write_table(table, hub / "rows" / f"id-{number}.parquet")
    (hub / "rows" / "example.jsonl").write_text('{"id": "e"}\n\n')
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        return hub / name

    def list_files(repository):
        return [str(file.relative_to(hub)) for file in hub.rglob("*.*")]

    def fetch():
        output = tmp_path / "out"
        return fetch_rows([spec(pack)], output, download=download, list_files=list_files)

    assert [(r["split"], r["state"]) for r in fetch()] == [
        ("eval", "2 rows"),
        ("example", "1 rows"),
    ]
    folder = tmp_path / "out" / "hub" / "org" / "data" / "id"
    written = [json.loads(line) for line in (folder / "eval.jsonl").read_text().split("\n") if line]
    assert written == [row for part in rows for row in part]
    count = len(asked)
    assert [r["state"] for r in fetch()] == ["there", "there"] and len(asked) == count


def test_what_cannot_be_had_is_told_of_and_leaves_nothing(pack, tmp_path, caplog):
    def download(repository, name):
        raise OSError("401 Client Error: gated\nmore lines")

    report = fetch_rows([spec(pack)], tmp_path, download=download, list_files=lambda r: [])
    assert {r["state"] for r in report} == {"not fetched: 401 Client Error: gated"}
    assert not list(tmp_path.rglob("*.jsonl.*")) and not (tmp_path / "hub").exists()
    assert "gated" in caplog.text


def test_files_of_other_forms_are_told_of(pack, tmp_path):
    (tmp_path / "README.md").write_text("no header")
    for names, state in (([], "no file fits"), (["id/eval.csv"], "neither Parquet")):
        report = fetch_rows(
            [spec(pack)],
            tmp_path,
            download=lambda repository, name: tmp_path / "README.md",
            list_files=lambda repository, names=names: names,
        )
        assert state in report[0]["state"]
    task, language = spec(pack)
    with pytest.raises(DataError, match="none of these tasks has rows on the hub"):
        fetch_rows([(task, replace(language, hub=None))], tmp_path)
