"""Files of rows, found and cut into pieces that can be read on their own, in bounded memory.

JSON lines are cut by bytes, Parquet by row groups, Arrow by record batches; CSV, JSON arrays and
compressed files are one piece each. How a piece is read is `readers.py`'s business, what its rows
mean `rows.py`'s.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from singalaut.data import readers
from singalaut.data.readers import COMPRESSED, Numbered
from singalaut.errors import DataError, from_os_error

READERS: dict[str, Callable[[Piece], Iterator[Numbered]]] = {
    ".jsonl": readers.json_lines,
    ".ndjson": readers.json_lines,
    ".json": readers.json_array,
    ".csv": readers.separated,
    ".tsv": readers.separated,
    ".parquet": readers.parquet,
    ".arrow": readers.record_batches,
}
PIECE_BYTES = 16 << 20
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Piece:
    """A part of a file: bytes, row groups or record batches from `start` up to `stop`.

    `source` is the number of the source it belongs to, `size_bytes` its share of the file, `stamp`
    the file's size and time of change.
    """

    source: int
    file: Path
    start: int
    stop: int
    size_bytes: int
    stamp: tuple[int, int]


def find_files(path: Path, split: str | None = None) -> list[Path]:
    """The data files behind a path: itself, or those in a folder, in order of their names.

    A folder that `datasets` has saved gives the files of one split.
    Raises: DataError where there is none.
    """
    if not path.is_dir():
        kind_of(path)
        _refuse_split(path, split)
        return [path]
    if (path / "dataset_dict.json").exists():
        path, split = _split_folder(path, split), None
    if (path / "state.json").exists():
        state = _json(path / "state.json")
        if split not in (state.get("_split"), path.name):
            _refuse_split(path, split)
        return [path / entry["filename"] for entry in state["_data_files"]]
    _refuse_split(path, split)
    files = sorted(file for file in path.rglob("*") if _suffix(file) in READERS and file.is_file())
    files = [f for f in files if not any(p.startswith(".") for p in f.relative_to(path).parts)]
    if not files:
        hint = "known: " + " ".join(READERS)
        raise DataError("the folder holds no data files", where=path, hint=hint)
    return files


def kind_of(file: Path) -> str:
    """What kind of file this is, by its name. Raises: DataError for an unknown one."""
    kind = _suffix(file)
    if kind not in READERS:
        hint = "known: " + " ".join((*READERS, *COMPRESSED))
        raise DataError("this is no known kind of data file", where=file, hint=hint)
    return kind


def cut(source: int, file: Path, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """The pieces of a file; a damaged one is one piece, of which reading tells why it is lost.

    Raises: MachineError for a file that cannot be opened, DataError for one that is not data.
    """
    kind = kind_of(file)
    try:
        stat = file.stat()
        _refuse_pointer(file)
        if file.suffix in COMPRESSED:
            if file.suffix == ".zst":
                readers.arrow()  # if it is missing, it shall be told before anything is read
            spans = [(0, 1, stat.st_size)]
        elif kind in (".jsonl", ".ndjson"):
            starts = range(0, max(1, stat.st_size), piece_bytes)
            stops = [min(start + piece_bytes, stat.st_size) for start in starts]
            spans = [(a, b, b - a) for a, b in zip(starts, stops, strict=True)]
        elif kind == ".parquet":
            about = readers.open_parquet(file).metadata
            sizes = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
            spans = _grouped(sizes, piece_bytes)
        elif kind == ".arrow":
            spans = _grouped([batch.nbytes for batch in readers.arrow_batches(file)], piece_bytes)
        else:
            spans = [(0, 1, stat.st_size)]
    except readers.Damaged:
        spans = [(0, 1, stat.st_size)]
    except OSError as error:
        raise from_os_error(error) from error
    stamp = (stat.st_size, stat.st_mtime_ns)
    return [Piece(source, file, start, stop, size, stamp) for start, stop, size in spans]


def read_piece(piece: Piece) -> Iterator[Numbered]:
    """The rows of a piece, numbered from 1, or the DataError in the place of a row.

    Raises: MachineError or DataError where the file cannot be read or is no longer the same.
    """
    try:
        stat = piece.file.stat()
        if (stat.st_size, stat.st_mtime_ns) != piece.stamp:
            raise DataError("the file has changed since the run began", where=piece.file)
        yield from READERS[kind_of(piece.file)](piece)
    except OSError as error:
        raise from_os_error(error) from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"the file is damaged: {error}", where=piece.file) from error


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            what = "this is a pointer of Git LFS in place of the file"
            raise DataError(what, where=file, hint="`git lfs pull` fetches it")


def _suffix(file: Path) -> str:
    """The suffix that tells what a file is, `.jsonl` in `rows.jsonl.gz`."""
    return Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix


def _grouped(sizes: Sequence[int], piece_bytes: int) -> list[tuple[int, int, int]]:
    """Neighbours put together up to `piece_bytes`: start, stop and size of each group."""
    spans: list[tuple[int, int, int]] = []
    start = total = 0
    for number, size in enumerate(sizes):
        if total and total + size > piece_bytes:
            spans.append((start, number, total))
            start, total = number, 0
        total += size
    return [*spans, (start, len(sizes), total)]


def _refuse_split(path: Path, split: str | None) -> None:
    if split is not None:
        hint = "leave `split` out, and name the file or folder that holds what is wanted"
        raise DataError(f"there are no splits here to take `{split}` from", where=path, hint=hint)


def _split_folder(path: Path, split: str | None) -> Path:
    splits = _json(path / "dataset_dict.json")["splits"]
    chosen = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
    if chosen is None or chosen not in splits:
        found = f"no split `{chosen}`" if chosen else "several splits"
        hint = "choose with `split`: " + ", ".join(splits)
        raise DataError(f"the data set has {found}", where=path, hint=hint)
    return path / chosen


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError("the description of a data set cannot be read", where=file) from error
