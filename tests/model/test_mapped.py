"""Rows through maps of our own: the same as whole tensors through the library."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from singalaut.errors import CheckpointError
from singalaut.model.compressed import CompressedReader
from singalaut.model.mapped import MappedReader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Plain tensors of several dtypes, FP8 with a scale for each row, packed 4-bit integers."""
    folder = tmp_path_factory.mktemp("mapped")
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(9, 16, generator=generator)
    packed = torch.randint(-(2**31), 2**31 - 1, (9, 2), generator=generator, dtype=torch.int64)
    tensors = {
        "f32": plain,
        "bf16": plain.bfloat16(),
        "f16": plain.half(),
        "vector": plain[0].clone(),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "conv": torch.randn(9, 3, 2, 2, generator=generator),
        "a.weight": plain.to(torch.float8_e4m3fn),
        "a.weight_scale": torch.rand(9, 1, generator=generator),
        "b.weight_packed": packed.int(),
        "b.weight_scale": torch.rand(9, 2, generator=generator),
        "b.weight_shape": torch.tensor([9, 16]),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


NAMES = ["f32", "bf16", "f16", "conv", "a.weight", "b.weight"]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(NAMES), bounds=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_rows_are_those_of_the_whole(folder, name, bounds):
    start, stop = sorted(bounds)
    with CompressedReader.open(folder) as plain, MappedReader.open(folder) as mapped:
        wanted = plain.read(name)
        part = slice(start, stop)
        for _ in range(2):  # what has been let go of is read again
            assert torch.equal(mapped.read(name, part), wanted[part])
            assert torch.equal(plain.read(name, part), wanted[part])
            mapped.fetch(name, part)
            mapped.let_go(name, part)
        assert torch.equal(mapped.read(name), wanted)


def test_small_things(folder):
    with MappedReader.open(folder) as mapped:
        assert mapped.read("scalar").item() == 3.0
        assert mapped.read("empty").shape == (0, 4)
        assert mapped.read("vector").shape == (16,)
        assert mapped.position("f32")[1] != mapped.position("bf16")[1]
        kept = mapped.read("f32")
    assert kept.isfinite().all()  # a view outlives its reader


def test_tensors_that_are_not_aligned(tmp_path):
    """Old files may begin at any byte."""
    data = torch.arange(6, dtype=torch.float32)
    header = json.dumps({"x": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}}).encode()
    header += b" " * (7 - len(header) % 8)
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + data.numpy().tobytes())
    with MappedReader.open(tmp_path) as mapped:
        assert mapped.read("x", slice(1, 3)).tolist() == [[2, 3], [4, 5]]


def test_a_dtype_that_cannot_be_read(tmp_path):
    save_file({"x": torch.zeros(3, dtype=torch.bool)}, tmp_path / "model.safetensors")
    with (
        MappedReader.open(tmp_path) as mapped,
        pytest.raises(CheckpointError, match="`x` is BOOL, which cannot be read"),
    ):
        mapped.read("x")
