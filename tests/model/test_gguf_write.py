"""GGUF files that we write against the `gguf` library's reader and quantisers."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from reduced_shapes import reduced

from singalaut.errors import CheckpointError, RecipeError
from singalaut.model import gguf_stream
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.gguf import GgufFile, config_from_gguf, gguf_name, read_parameter
from singalaut.model.gguf_write import FORMATS, tensor_format, write_gguf
from singalaut.model.hf import parameter_shapes

CONFIG = replace(reduced("1b"), hidden_size=64, eos_ids=(1, 106))
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"t{i}" for i in range(291))]  # of 300 rows
PIECES = (TOKENS, [-float(i) for i in range(295)], [3] * 4 + [1] * 291)


@pytest.fixture(scope="module")
def weights():
    model = initialise(Gemma3(CONFIG), seed=0)
    generator = torch.Generator().manual_seed(1)
    state = {n: p.detach() for n, p in model.named_parameters()}
    for name in state:
        if name.endswith("norm.weight"):
            state[name] = torch.randn(state[name].shape, generator=generator) * 0.3
    return {name: state[name].bfloat16().float() for name in parameter_shapes(CONFIG)}


def write(file, weights, quant, config=CONFIG, pieces=PIECES, **more):
    write_gguf(file, config, quant, iter(weights.values()), pieces, name="tiny", **more)


def read(file):
    """Weights in float32 as our reader has them."""
    found = GgufFile(file)
    config = config_from_gguf(found)
    return {name: read_parameter(found, name, torch.float32) for name in parameter_shapes(config)}


@pytest.mark.parametrize("quant", FORMATS)
def test_the_library_reads_every_format(quant, weights, tmp_path):
    write(tmp_path / "m.gguf", weights, quant)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert len(tensors) == len(weights)
    for name, weight in weights.items():
        found = tensors[gguf_name(name)]
        wanted = weight.numpy()[:295] if name == "embedding.weight" else weight.numpy()
        if name.endswith("norm.weight"):
            wanted = wanted + np.float32(1)
        kind = Kind[tensor_format(name, quant)]
        assert found.tensor_type == kind and list(found.shape) == list(wanted.shape)[::-1]
        blocks = np.asarray(found.data).reshape(-1).view(np.uint8)
        assert np.array_equal(blocks, gguf.quantize(wanted, kind).reshape(-1).view(np.uint8)), name


def test_norms_are_float32_and_a_four_bit_file_has_an_eight_bit_embedding():
    assert tensor_format("layers.0.mlp_norm.weight", "Q8_0") == "F32"
    assert tensor_format("embedding.weight", "Q4_0") == "Q8_0"
    assert tensor_format("embedding.weight", "F16") == "F16"
    assert tensor_format("layers.0.mlp.up.weight", "Q4_0") == "Q4_0"


@pytest.mark.parametrize("size", ["270m", "4b", "27b"])
def test_the_shape_comes_back(size, tmp_path):
    config = replace(reduced(size), hidden_size=64)
    if size == "27b":
        config = replace(config, num_layers=62, num_heads=4, num_kv_heads=2, query_scalar=16.0)
    state = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    write(tmp_path / "m.gguf", state, "BF16", config)
    assert config_from_gguf(GgufFile(tmp_path / "m.gguf")) == replace(config, vocab_size=295)


def test_metadata_by_the_library(weights, tmp_path):
    config = replace(CONFIG, rope_factor=8.0)
    write(tmp_path / "m.gguf", weights, "Q8_0", config, template="{{ messages }}")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    found = {name: field.contents() for name, field in fields.items()}
    wanted = {
        "general.architecture": "gemma3",
        "general.file_type": 7,
        "general.license": "gemma",
        "gemma3.context_length": 256,
        "gemma3.embedding_length": 64,
        "gemma3.block_count": 6,
        "gemma3.feed_forward_length": 96,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 256,
        "gemma3.attention.value_length": 256,
        "gemma3.attention.sliding_window": 16,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 106,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16"])
def test_a_lossless_file_read_and_written_is_the_same_file(quant, weights, tmp_path):
    write(tmp_path / "first.gguf", weights, quant)
    config = config_from_gguf(GgufFile(tmp_path / "first.gguf"))
    write(tmp_path / "second.gguf", read(tmp_path / "first.gguf"), quant, config)
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()


@pytest.mark.parametrize("quant", ["F32", "BF16"])
def test_bfloat16_weights_survive(quant, weights, tmp_path):
    write(tmp_path / "m.gguf", weights, quant)
    for name, found in read(tmp_path / "m.gguf").items():
        if name.endswith("norm.weight"):  # 1 + w has 24 bits, which cuts bits of the smallest w
            large = weights[name].abs() >= 2**-16
            assert torch.equal(found[large], weights[name][large]), name
            torch.testing.assert_close(found, weights[name], rtol=0, atol=2**-24)
        else:
            assert torch.equal(found, weights[name][: len(found)]), name


@pytest.mark.parametrize(("quant", "step"), [("Q8_0", 127), ("Q4_0", 8)])
def test_rounding_of_block_formats_is_bounded(quant, step, weights, tmp_path):
    write(tmp_path / "m.gguf", weights, quant)
    found = read(tmp_path / "m.gguf")["layers.0.mlp.up.weight"].reshape(-1, 32)
    wanted = weights["layers.0.mlp.up.weight"].reshape(-1, 32)
    bound = wanted.abs().amax(1) / step * 1.01
    assert ((found - wanted).abs().amax(1) <= bound).all()
    assert (found - wanted).abs().max() > 0


def test_pieces_of_any_size_make_the_same_file(weights, tmp_path, monkeypatch):
    write(tmp_path / "whole.gguf", weights, "Q4_0")
    monkeypatch.setattr(gguf_stream, "CHUNK_ELEMENTS", 64 * 7)
    write(tmp_path / "cut.gguf", weights, "Q4_0")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "cut.gguf").read_bytes()


def test_a_failure_leaves_nothing(weights, tmp_path):
    def broken():
        yield from list(weights.values())[:5]
        raise CheckpointError("the source broke off")

    with pytest.raises(CheckpointError, match="broke off"):
        write_gguf(tmp_path / "m.gguf", CONFIG, "BF16", broken(), PIECES, name="tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_scalar": 100.0}, r"scaled by 100\^-1/2, .* 6 layers by 256\^-1/2"),
        ({"num_layers": 62}, r"scaled by 256\^-1/2, .* 62 layers by 16\^-1/2"),
        ({"global_every": 3}, "every layer number 3 is global"),
        ({"rope_local_theta": 5e3}, "RoPE base 5000"),
        ({"hidden_size": 48}, r"token_embd.weight` has rows of 48 weights, which Q8_0"),
    ],
)
def test_shapes_that_llama_cpp_would_run_wrongly(change, message, tmp_path):
    with pytest.raises(RecipeError, match=message) as caught:
        write(tmp_path / "m.gguf", {}, "Q8_0", replace(CONFIG, **change))
    assert caught.value.hint and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("quant", "value", "message"),
    [
        ("F16", 7e4, "not finite in F16, such as 70000"),
        ("F16", float("nan"), r"not finite\n"),
        ("Q8_0", float("inf"), r"not finite\n"),
    ],
)
def test_weights_that_a_format_cannot_hold(quant, value, message, weights, tmp_path):
    name = "layers.1.mlp.up.weight"
    broken = {**weights, name: weights[name].clone()}
    broken[name][3, 3] = value
    with pytest.raises(CheckpointError, match=message) as caught:
        write(tmp_path / "m.gguf", broken, quant)
    assert caught.value.hint and caught.value.where == "blk.1.ffn_up.weight"
