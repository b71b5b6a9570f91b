"""Reading parts of huge tensors without their pages piling up in memory.

The pages of a mapped file count as memory of the process for as long as they are mapped. The maps
here are our own, so that what has been read can be let go of, and what comes next can be fetched
by the system in the meantime. Undoing compression is left to `CompressedReader`.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from singalaut.errors import CheckpointError
from singalaut.model.compressed import CompressedReader
from singalaut.model.tensors import DTYPE_NAMES, TensorReader

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()} | {
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
}


@dataclass(frozen=True)
class Stored:
    """Where the bytes of a tensor lie."""

    map: mmap.mmap
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def span(self, rows: slice | None) -> tuple[int, int]:
        """First byte and number of bytes of these rows, or of the whole tensor."""
        row_bytes = self.dtype.itemsize
        for size in self.shape[1:]:
            row_bytes *= size
        count = self.shape[0] if self.shape else 1
        first, last, _ = (rows or slice(None)).indices(count)
        return self.start + first * row_bytes, max(0, last - first) * row_bytes


class _Mapped(TensorReader):
    """A `TensorReader` with maps of its own beside the library's, which checks the headers."""

    def __init__(self, files: Iterable[Path]):
        files = list(files)
        super().__init__(files)
        self._entries: dict[str, Stored] = {}
        for file in files:
            self._map(file)

    def _map(self, file: Path) -> None:
        with file.open("rb") as handle:
            # private: our views are writable by type, and nothing is ever written
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        length = int.from_bytes(mapped[:8], "little")
        for name, entry in json.loads(mapped[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            if (dtype := DTYPES.get(entry["dtype"])) is not None:
                start = 8 + length + entry["data_offsets"][0]
                self._entries[name] = Stored(mapped, start, dtype, tuple(entry["shape"]))

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A view of the file, good until the reader is closed; never to be written to."""
        if (stored := self._entries.get(name)) is None:
            raise CheckpointError(
                f"tensor `{name}` is {self.dtype(name)}, which cannot be read",
                where=self.file(name).name,
            )
        start, size = stored.span(rows)
        if not size:
            return torch.empty(0, *stored.shape[1:], dtype=stored.dtype)
        data = torch.frombuffer(stored.map, dtype=torch.uint8, count=size, offset=start)
        if data.data_ptr() % stored.dtype.itemsize:
            data = data.clone()
        return data.view(stored.dtype).reshape((-1, *stored.shape[1:]) if stored.shape else ())

    def close(self) -> None:
        """Forget the maps; each goes when its last view does."""
        super().close()
        self._entries.clear()

    def stored_as(self, name: str) -> str:
        """The tensor of the file that has the rows of this one."""
        return name

    def position(self, name: str) -> tuple[str, int]:
        """File and byte: what comes first is read first."""
        stored = self._entries[self.stored_as(name)]
        return self.file(name).name, stored.start

    def fetch(self, name: str, rows: slice | None = None) -> None:
        """Ask the system to read these rows in the meantime."""
        self._advise(name, rows, mmap.MADV_WILLNEED)

    def let_go(self, name: str, rows: slice | None = None) -> None:
        """Give the pages of these rows back; they would be read again if need be."""
        self._advise(name, rows, mmap.MADV_DONTNEED)

    def _advise(self, name: str, rows: slice | None, advice: int) -> None:
        stored = self._entries[self.stored_as(name)]
        start, size = stored.span(rows)
        aligned = start - start % mmap.PAGESIZE
        if size:
            stored.map.madvise(advice, aligned, size + start - aligned)


class MappedReader(CompressedReader, _Mapped):
    """Any checkpoint, compressed or not, by rows; see `fetch` and `let_go`."""

    def stored_as(self, name: str) -> str:
        return self._stored(name)
