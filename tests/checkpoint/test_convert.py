"""Conversion from one directory or GGUF file to another."""

from __future__ import annotations

import pytest
import torch

from singalaut.checkpoint.convert import convert
from singalaut.checkpoint.inspect import inspect
from singalaut.errors import CheckpointError, RecipeError
from singalaut.model.gguf import GgufFile
from singalaut.model.hf import load_model, save_model, stored_dtype
from singalaut.text.tokenizer import Tokenizer


def test_a_directory_in_another_dtype(tiny_model, tmp_path):
    convert(tiny_model, tmp_path / "half", dtype="bfloat16")
    assert stored_dtype(tmp_path / "half") == torch.bfloat16
    wanted = load_model(tiny_model, torch.bfloat16).state_dict()
    found = load_model(tmp_path / "half", torch.bfloat16).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert Tokenizer.load(tmp_path / "half").identity == Tokenizer.load(tiny_model).identity


def test_numbers_that_are_not_finite_are_named(tiny_model, tmp_path, caplog):
    model = load_model(tiny_model, torch.float32)
    save_model(model, tmp_path / "whole", torch.float32)
    convert(tmp_path / "whole", tmp_path / "same", dtype="float32")
    assert "finite" not in caplog.text
    with torch.no_grad():
        model.layers[0].mlp.up.weight[3, 4] = float("nan")
        model.layers[1].mlp.up.weight[0, 0] = float("inf")
    save_model(model, tmp_path / "broken", torch.float32)
    convert(tmp_path / "broken", tmp_path / "new", dtype="float32")
    assert "not all numbers are finite in `layers.0.mlp.up.weight`, … (2)" in caplog.text


@pytest.mark.parametrize(
    ("target", "dtype", "message"),
    [
        ("new", "float16", "cannot write `float16`"),
        (".", None, "exists already"),
    ],
)
def test_what_is_refused(target, dtype, message, tiny_model, tmp_path):
    with pytest.raises(RecipeError, match=message):
        convert(tiny_model, tmp_path / target, dtype=dtype)


def test_a_failed_conversion_leaves_nothing(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\0" * 100)
    with pytest.raises(CheckpointError):
        convert(tmp_path / "bad.gguf", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.real
def test_the_real_gguf_against_its_library(real_gguf, tmp_path):
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize

    facts = inspect(real_gguf)
    assert facts["size"] == "270m" and facts["dtypes"]["Q5_0"] == 81
    file = GgufFile(real_gguf)
    for name in ("blk.0.attn_output.weight", "blk.3.ffn_down.weight", "blk.17.attn_q.weight"):
        tensor = file.tensors[name]
        data = np.fromfile(real_gguf, np.uint8, tensor.num_bytes, offset=tensor.start)
        rows = data.reshape(tensor.shape[0], -1)
        wanted = dequantize(rows, GGMLQuantizationType(tensor.type))
        assert torch.equal(file.read(name, torch.float32), torch.from_numpy(wanted.copy()))
