"""Files to rows: every format gives the same rows, cut anywhere, and faults cost one row each."""

from __future__ import annotations

import bz2
import csv
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.data.config import DataSource
from singalaut.data.readers import LONGEST_ROW_BYTES
from singalaut.data.sources import cut, find_files, kind_of, read_piece
from singalaut.errors import DataError, MachineError

ROWS = [{"prompt": f"question {i}\nมา", "answer": "x" * (i * 7 % 40)} for i in range(50)]


def lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read(file, piece_bytes=1 << 20):
    return [row for piece in cut(0, file, piece_bytes) for _, row in read_piece(piece)]


def write_all(folder):
    """The same rows in every format."""
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet

    table = pa.Table.from_pylist(ROWS)
    (folder / "a.jsonl").write_bytes(lines())
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines()))
    (folder / "c.jsonl.bz2").write_bytes(bz2.compress(lines()))
    with pa.output_stream(str(folder / "d.ndjson.zst"), compression="zstd") as out:
        out.write(lines())
    (folder / "e.json").write_text("\ufeff" + json.dumps(ROWS))
    (folder / "f.json").write_bytes(lines())
    for name, separator in (("g.csv", ","), ("h.tsv", "\t")):
        with (folder / name).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "answer"], delimiter=separator)
            writer.writeheader()
            writer.writerows(ROWS)
    pa.parquet.write_table(table, folder / "i.parquet", row_group_size=8)
    for name, opened in (("j.arrow", pa.ipc.new_stream), ("k.arrow", pa.ipc.new_file)):
        with opened(str(folder / name), table.schema) as out:
            for batch in table.to_batches(max_chunksize=7):
                out.write_batch(batch)


@pytest.mark.parametrize("piece_bytes", [1 << 20, 300, 1])
def test_every_format_gives_the_same_rows(piece_bytes, tmp_path):
    write_all(tmp_path)
    files = find_files(tmp_path)
    assert [file.name[0] for file in files] == list("abcdefghijk")
    for file in files:
        assert read(file, piece_bytes) == ROWS, file.name
    parquet = next(file for file in files if kind_of(file) == ".parquet")
    assert len(cut(0, parquet, 1)) == 7


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=12),
    piece_bytes=st.integers(1, 60),
    end=st.sampled_from(["", "\n", "\n\n", "\r\n"]),
)
def test_lines_are_read_once_wherever_they_are_cut(rows, piece_bytes, end, tmp_path_factory):
    file = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    file.write_bytes("\n".join(json.dumps(row) for row in rows).encode() + end.encode())
    assert read(file, piece_bytes) == rows
    pieces = cut(0, file, piece_bytes)
    assert sum(piece.size_bytes for piece in pieces) == file.stat().st_size


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_that_cannot_be_read_costs_one_row(line, reason, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(ROWS[:2]) + line + b"\n\n" + lines(ROWS[2:4]))
    found = read(file)
    assert [*found[:2], *found[3:]] == ROWS[:4]
    assert isinstance(found[2], DataError) and reason in found[2].what


def test_odd_values_are_kept(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": NaN}\n{"a": "\\ud800"}\n')
    first, second, third = read(file)
    assert first == {"a": 1} and second["a"] != second["a"] and third == {"a": "\ud800"}


def test_a_giant_line_is_skipped_without_reading_it_whole(tmp_path):
    file = tmp_path / "rows.jsonl"
    with file.open("wb") as out:
        out.write(lines(ROWS[:1]) + b'{"a": "')
        for _ in range(LONGEST_ROW_BYTES >> 20):
            out.write(b"x" * (1 << 20))
        out.write(b'"}\n' + lines(ROWS[1:2]))
    first, giant, last = read(file, 8 << 20)
    assert (first, last) == (ROWS[0], ROWS[1])
    assert "the longest that is read" in giant.what


def test_a_table_with_bad_rows(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes(b'a,b\n1,2\n1,2,3\n\n"x\ny",\xff\n')
    good, wide, broken = read(file)
    assert good == {"a": "1", "b": "2"}
    assert isinstance(wide, DataError) and "fields" in wide.what
    assert broken == {"a": "x\ny", "b": "\udcff"}


def test_a_column_with_broken_text(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    text = pa.Array.from_buffers(
        pa.string(), 3, pa.array([b"good", b"\xff\xfe", b"fine"]).buffers()
    )
    pa.parquet.write_table(pa.table({"a": text}), tmp_path / "a.parquet")
    first, broken, last = read(tmp_path / "a.parquet")
    assert (first, last) == ({"a": "good"}, {"a": "fine"})
    assert isinstance(broken, DataError) and "UTF-8" in broken.what


def test_saved_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    split = datasets.DatasetDict({"train": whole.select(range(30)), "test": whole.select([1])})
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    split.save_to_disk(tmp_path / "two")
    assert [row for file in find_files(tmp_path / "one") for row in read(file)] == ROWS
    assert [row for file in find_files(tmp_path / "two") for row in read(file)] == ROWS[:30]
    assert [row for f in find_files(tmp_path / "two", "test") for row in read(f)] == ROWS[1:2]
    with pytest.raises(DataError, match=r"no split `dev`[\s\S]*train, test"):
        find_files(tmp_path / "two", "dev")
    for place in (tmp_path / "one", tmp_path / "two" / "test" / "data-00000-of-00001.arrow"):
        with pytest.raises(DataError, match="no splits here to take `dev` from"):
            find_files(place, "dev")
    assert find_files(tmp_path / "two" / "test", "test")
    with pytest.raises(ValueError, match="for data sets of the hub"):
        DataSource.model_validate({"path": "rows.jsonl", "subset": "th"})


def test_a_data_set_by_name(tmp_path, monkeypatch):
    """The library takes a folder where it takes a name, so no network is needed."""
    pytest.importorskip("datasets")
    from singalaut.data.hub import fetch_hub

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(lines())
    files = fetch_hub(str(tmp_path / "set"))
    assert [row for file in files for row in read(file)] == ROWS
    with pytest.raises(DataError, match="cannot be had"):
        fetch_hub(str(tmp_path / "set"), split="dev")


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(MachineError, match="no such file"):
        cut(0, tmp_path / "none.jsonl")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no known kind"):
        find_files(tmp_path / "a.txt")
    with pytest.raises(DataError, match="no data files"):
        find_files(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a Parquet file"):
        read(tmp_path / "bad.parquet")
    (tmp_path / "bad.arrow").write_bytes(b"no")
    with pytest.raises(DataError, match="not a whole Arrow file"):
        read(tmp_path / "bad.arrow")
    (tmp_path / "far.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(DataError, match="git lfs pull"):
        cut(0, tmp_path / "far.parquet")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines())[:-20])
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / "cut.jsonl.gz")


def test_a_file_that_changes_is_noticed(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines())
    pieces = cut(0, file)
    file.write_bytes(lines(ROWS[:3]))
    with pytest.raises(DataError, match="has changed"):
        list(read_piece(pieces[0]))
    file.unlink()
    with pytest.raises(MachineError, match="no such file"):
        list(read_piece(pieces[0]))
