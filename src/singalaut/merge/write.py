"""Writing large files once and in order, past the system's cache where it allows that.

A merge reads and writes more than fits into memory. What goes through the cache pushes out what is
about to be read, and is written back in bursts; direct writes of whole megabytes do neither.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor, uint8

from singalaut.errors import from_os_error

BUFFER_BYTES = 8 << 20
SECTOR_BYTES = 4096
DIRECT = getattr(os, "O_DIRECT", 0)


class SequentialFile:
    """A file that appears under its name when it is complete and on the disk."""

    def __init__(self, path: Path):
        self.path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)  # direct writes need memory that is aligned
        self._view = np.frombuffer(self._buffer, np.uint8)
        self._filled = self._written = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            try:
                self._file = os.open(self._temporary, flags | DIRECT, 0o644)
            except OSError:  # not on every file system
                self._file = os.open(self._temporary, flags, 0o644)
        except OSError as error:
            raise from_os_error(error) from error

    def write(self, data: bytes | Tensor) -> None:
        """Append bytes, or the entries of a contiguous tensor."""
        if isinstance(data, bytes):
            source = np.frombuffer(data, np.uint8)
        else:
            source = data.reshape(-1).view(uint8).numpy()
        at = 0
        while at < len(source):
            count = min(len(source) - at, BUFFER_BYTES - self._filled)
            self._view[self._filled : self._filled + count] = source[at : at + count]
            self._filled += count
            at += count
            if self._filled == BUFFER_BYTES:
                self._flush(BUFFER_BYTES)

    def _flush(self, count: int) -> None:
        """Write the first `count` bytes of the buffer."""
        try:
            done = 0
            while done < count:
                with memoryview(self._buffer)[done:count] as rest:
                    done += self._write_at(rest, self._written + done)
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise from_os_error(error) from error
        self._written += count
        self._filled = 0

    def _write_at(self, data: memoryview, position: int) -> int:
        try:
            return os.pwrite(self._file, data, position)
        except OSError as error:
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & DIRECT:
                raise
            # the file system takes the flag but not the writes, or not at this position
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~DIRECT)
            return os.pwrite(self._file, data, position)

    def __enter__(self) -> SequentialFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            os.close(self._file)
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        size = self._written + self._filled
        if self._filled:
            padded = -(-self._filled // SECTOR_BYTES) * SECTOR_BYTES
            self._flush(padded)
        try:
            os.ftruncate(self._file, size)
            os.fsync(self._file)
            self._temporary.replace(self.path)
        except OSError as error:
            raise from_os_error(error) from error
