"""Sequential files: the bytes given, whatever their sizes, and nothing at all after an error."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from singalaut.errors import MachineError
from singalaut.merge import write
from singalaut.merge.write import SequentialFile


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=st.lists(st.integers(0, 40_000), max_size=8))
def test_what_is_written_is_read(sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "BUFFER_BYTES", 16_384)
    wanted = b""
    with SequentialFile(tmp_path / "x") as out:
        for number, size in enumerate(sizes):
            tensor = torch.arange(size, dtype=torch.int16) + number
            wanted += tensor.numpy().tobytes() + b"abc"
            out.write(tensor)
            out.write(b"abc")
    assert (tmp_path / "x").read_bytes() == wanted
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), SequentialFile(tmp_path / "x") as out:
        out.write(b"a" * 10_000_000)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(MachineError, match="no space is left"),
        SequentialFile(tmp_path / "x") as out,
    ):
        out.write(b"a" * 10_000_000)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_takes_no_direct_writes(tmp_path, monkeypatch):
    real, refused = os.pwrite, []

    def picky(file, data, position):
        if not refused:
            refused.append(position)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(file, data, position)

    monkeypatch.setattr(os, "pwrite", picky)
    with SequentialFile(tmp_path / "x") as out:
        out.write(b"ab" * 6_000_000)
    assert refused == [0] and (tmp_path / "x").read_bytes() == b"ab" * 6_000_000
