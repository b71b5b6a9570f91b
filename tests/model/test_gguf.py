"""GGUF files against the `gguf` library's own reader, and what happens to damaged ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from reduced_shapes import reduced

from singalaut.errors import CheckpointError
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.gguf import (
    GgufFile,
    check_shapes,
    config_from_gguf,
    gguf_name,
    read_parameter,
)
from singalaut.model.hf import parameter_shapes

CONFIG = replace(reduced("1b"), hidden_size=64, num_layers=6)


def write_model(path: Path, kind: Kind = Kind.F32, architecture: str = "gemma3", **meta) -> Gemma3:
    """A whole model in one block format, by the library's writer."""
    model = initialise(Gemma3(CONFIG), seed=0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONFIG.max_positions)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_heads)
    writer.add_head_count_kv(CONFIG.num_kv_heads)
    writer.add_key_length(CONFIG.head_dim)
    writer.add_value_length(CONFIG.head_dim)
    writer.add_layer_norm_rms_eps(CONFIG.norm_eps)
    writer.add_sliding_window(CONFIG.window)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    for key, value in meta.items():
        writer.add_float32(f"gemma3.{key.replace('__', '.')}", value)
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if name.endswith("norm.weight"):
            writer.add_tensor(gguf_name(name), values + 1)
        elif kind == Kind.F32:
            writer.add_tensor(gguf_name(name), values)
        else:
            writer.add_tensor(gguf_name(name), gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_0, Kind.Q4_0])
def test_block_formats_match_the_library(kind, tmp_path):
    model = write_model(tmp_path / "m.gguf", kind)
    file = GgufFile(tmp_path / "m.gguf")
    assert config_from_gguf(file) == CONFIG
    weights = {name: read_parameter(file, name, torch.float32) for name in parameter_shapes(CONFIG)}
    for name, parameter in model.named_parameters():
        wanted = parameter.detach()
        if name.endswith("norm.weight"):
            torch.testing.assert_close(weights[name], wanted, rtol=0, atol=1e-6)
            continue
        if kind != Kind.F32:
            packed = gguf.quantize(wanted.numpy(), kind)
            wanted = torch.from_numpy(gguf.dequantize(packed, kind).copy())
        assert torch.equal(weights[name], wanted), name


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K])
def test_k_quants_match_the_library(kind, tmp_path):
    """The library cannot make K-quants, so random bytes stand for blocks."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (40_000, block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "gemma3")
    writer.add_tensor("x", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "k.gguf")
    assert file.tensors["x"].shape == (40_000, block)
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(gguf.dequantize(raw, kind).copy())
        torch.testing.assert_close(
            file.read("x", torch.float32), wanted, rtol=0, atol=0, equal_nan=True
        )


def test_scaling_of_global_layers_is_read(tmp_path):
    write_model(tmp_path / "m.gguf", rope__scaling__factor=8.0)
    assert config_from_gguf(GgufFile(tmp_path / "m.gguf")).rope_factor == 8.0


def test_another_architecture_is_refused(tmp_path):
    write_model(tmp_path / "m.gguf", architecture="llama")
    with pytest.raises(CheckpointError, match="architecture is `llama`"):
        config_from_gguf(GgufFile(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention.sliding_window", 0), ("embedding_length", "64"), ("rope.freq_base", -1.0)],
)
def test_metadata_that_no_model_can_have(key, value, tmp_path):
    write_model(tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf")
    file.metadata[f"gemma3.{key}"] = value
    with pytest.raises(CheckpointError, match=f"`gemma3.{key}` is {value}, a number above 0"):
        config_from_gguf(file)


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    write_model(tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"blk.0.attn_q.weight.*shape"):
        check_shapes(file, replace(CONFIG, num_heads=8))
    with pytest.raises(CheckpointError, match=r"blk.6.attn_norm.weight` is missing"):
        check_shapes(file, replace(CONFIG, num_layers=7))


def test_tensors_that_nothing_reads_are_named(tmp_path, caplog):
    write_model(tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf")
    check_shapes(file, CONFIG)
    assert not caplog.text
    check_shapes(file, replace(CONFIG, num_layers=5))
    assert "not read, as Gemma 3 has no such weights: `blk.5.attn_k.weight`, … (13)" in caplog.text


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_file_cut_anywhere_is_refused(share, tmp_path_factory):
    whole = tmp_path_factory.getbasetemp() / "whole.gguf"
    if not whole.exists():
        write_model(whole)
    data = whole.read_bytes()
    cut = whole.with_name("cut.gguf")
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError) as caught:
        config_from_gguf(GgufFile(cut))
    assert caught.value.where == "cut.gguf" and caught.value.hint


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_damaged_header_never_ends_in_a_traceback(place, byte, tmp_path_factory):
    whole = tmp_path_factory.getbasetemp() / "whole2.gguf"
    if not whole.exists():
        write_model(whole)
    data = bytearray(whole.read_bytes())
    data[place] = byte
    damaged = whole.with_name("damaged.gguf")
    damaged.write_bytes(data)
    try:
        file = GgufFile(damaged)
        check_shapes(file, config_from_gguf(file))
        read_parameter(file, "embedding.weight", torch.float32)
    except CheckpointError as error:
        assert error.what


def test_a_web_page_is_not_a_model(tmp_path):
    (tmp_path / "m.gguf").write_text("<!doctype html>" + " " * 100)
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        GgufFile(tmp_path / "m.gguf")
