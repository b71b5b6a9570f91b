"""Reading the pieces of files, row by row: JSON, CSV, Parquet, Arrow.

A row that cannot be read is handed on as the error that says why. How files are found and cut into
pieces is `sources.py`'s business.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from singalaut.errors import DataError, MachineError

if TYPE_CHECKING:
    from singalaut.data.sources import Piece

COMPRESSED = (".gz", ".bz2", ".zst")
LONGEST_ROW_BYTES = 64 << 20
LONGEST_ARRAY_BYTES = 512 << 20
ROWS_AT_ONCE = 256
Numbered = tuple[int, Any]  # a row, or the DataError in its place, behind its number from 1


class Damaged(DataError):
    """A file of which nothing can be read."""


def json_lines(piece: Piece) -> Iterator[Numbered]:
    """A line belongs to the piece in which it begins."""
    with open_plain(piece.file) as file:
        place = piece.start
        whole = piece.file.suffix in COMPRESSED
        if place:  # the rest of a line that begins before the piece is not ours
            file.seek(place - 1)
            place -= 1
            while place < piece.stop and (more := file.readline(1 << 20)):
                place += len(more)
                if more.endswith(b"\n"):
                    break
        number = 0
        while whole or place < piece.stop:
            line, size = _line(file)
            if not size:
                return
            place += size
            if not line.strip():
                continue
            number += 1
            yield number, _too_long(size) if size > len(line) else parse_line(line, place == size)


def _line(file: IO[bytes]) -> tuple[bytes, int]:
    """The next line, or the beginning of one that is too long, and its whole size in bytes."""
    line = file.readline(LONGEST_ROW_BYTES)
    size = len(line)
    if size == LONGEST_ROW_BYTES and not line.endswith(b"\n"):
        while more := file.readline(1 << 20):
            size += len(more)
            if more.endswith(b"\n"):
                break
    return line, size


def _too_long(size: int) -> DataError:
    return DataError(f"the row has `{size >> 20}` MiB; the longest that is read has 64 MiB")


def parse_line(line: bytes, first: bool = False) -> Any:
    """The value of a line of JSON, or the DataError that says why it has none."""
    import orjson

    if first:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return orjson.loads(line)
    except ValueError:
        pass
    try:
        return json.loads(line)  # takes NaN, and halves of surrogate pairs, which are told of later
    except UnicodeDecodeError as error:
        return DataError(f"not valid UTF-8: `{error.reason}` at byte `{error.start}`")
    except json.JSONDecodeError as error:
        hint = "each line must be one JSON object"
        return DataError(f"not valid JSON: `{error.msg}` at character `{error.pos + 1}`", hint=hint)
    except RecursionError:
        return DataError("the JSON is nested too deeply")


def json_array(piece: Piece) -> Iterator[Numbered]:
    """One array of objects, or JSON lines after all."""
    with open_plain(piece.file) as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head.startswith(b"["):
        yield from json_lines(replace(piece, start=0, stop=piece.stamp[0]))
        return
    with open_plain(piece.file) as file:
        text = file.read(LONGEST_ARRAY_BYTES + 1)
    if len(text) > LONGEST_ARRAY_BYTES:
        what = f"an array of more than {LONGEST_ARRAY_BYTES >> 20} MiB, which has to be read whole"
        raise DataError(what, where=piece.file, hint="write one JSON object a line")
    rows = parse_line(text, first=True)
    if isinstance(rows, DataError):
        raise DataError(rows.what, where=piece.file, hint="write one JSON object a line")
    yield from enumerate(rows, start=1)


def separated(piece: Piece) -> Iterator[Numbered]:
    """Fields separated by commas or tabs under a header; all values are text."""
    csv.field_size_limit(LONGEST_ROW_BYTES)
    with open_plain(piece.file) as file:
        # bytes that are no UTF-8 become halves of surrogate pairs, which cost their row alone
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        lines = csv.reader(text, delimiter="\t" if ".tsv" in piece.file.suffixes else ",")
        header = next(lines, None)
        number = 0
        while header is not None:
            number += 1
            try:
                fields = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, DataError(f"the row cannot be read: `{error}`")
                continue
            if len(fields) == len(header):
                yield number, dict(zip(header, fields, strict=True))
            elif fields:
                yield (
                    number,
                    DataError(f"`{len(fields)}` fields, where the header has {len(header)}"),
                )
            else:
                number -= 1  # an empty line


def parquet(piece: Piece) -> Iterator[Numbered]:
    file = open_parquet(piece.file)
    groups = list(range(piece.start, piece.stop))
    batches = file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups, use_threads=False)
    yield from _batched(batches, piece.file)


def record_batches(piece: Piece) -> Iterator[Numbered]:
    batches = (
        batch.slice(start, ROWS_AT_ONCE)
        for batch in islice(arrow_batches(piece.file), piece.start, piece.stop)
        for start in range(0, batch.num_rows, ROWS_AT_ONCE)
    )
    yield from _batched(batches, piece.file)


def open_parquet(file: Path) -> Any:
    """Raises: Damaged for a file that is none."""
    pyarrow = arrow()
    try:
        return pyarrow.parquet.ParquetFile(file, pre_buffer=False, memory_map=True)
    except pyarrow.ArrowException as error:
        raise Damaged(f"not a Parquet file: {error}", where=file) from error


def arrow_batches(file: Path) -> Iterator[Any]:
    """The record batches of an Arrow stream or file, by memory map.

    Raises: Damaged for a file that is none, or is cut short.
    """
    pyarrow = arrow()
    try:
        with pyarrow.memory_map(str(file)) as source:
            try:
                stream = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                source.seek(0)
                reader = pyarrow.ipc.open_file(source)
                stream = (reader.get_batch(number) for number in range(reader.num_record_batches))
            yield from stream
    except pyarrow.ArrowException as error:
        raise Damaged(f"not a whole Arrow file: {error}", where=file) from error


def arrow() -> Any:
    """The library that reads Parquet, Arrow and Zstandard. Raises: MachineError without it."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise MachineError(
            "reading this kind of file needs `pyarrow`", hint="pip install 'singalaut[data]'"
        ) from error
    return pyarrow


def _batched(batches: Iterable[Any], file: Path) -> Iterator[Numbered]:
    """The rows of record batches; text that is no UTF-8 costs its row alone."""
    number = 0
    errors = arrow().ArrowException
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator, None)
        except errors as error:
            raise DataError(f"the file cannot be read: {error}", where=file) from error
        if batch is None:
            return
        try:
            rows: list[Any] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_one(batch, i) for i in range(batch.num_rows)]
        yield from enumerate(rows, start=number + 1)
        number += batch.num_rows


def _one(batch: Any, index: int) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return DataError(f"not valid UTF-8: `{error.reason}` at byte `{error.start}`")


def open_plain(file: Path) -> Any:
    """The file's bytes, uncompressed."""
    if file.suffix == ".gz":
        import gzip

        return gzip.open(file)
    if file.suffix == ".bz2":
        import bz2

        return bz2.open(file)
    if file.suffix == ".zst":
        return io.BufferedReader(arrow().input_stream(str(file), compression="zstd"))
    return file.open("rb", buffering=1 << 20)
