"""Compressed-tensors checkpoints against that library's own compressors."""

from __future__ import annotations

import pytest
import torch

from singalaut.errors import CheckpointError
from singalaut.model.compressed import (
    CompressedReader,
    dequantize_float8,
    dequantize_packed,
    unpack_integers,
)
from singalaut.model.tensors import SINGLE, TensorReader

ROWS, COLUMNS = 24, 256


def weight_of(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)).bfloat16()


def compress(weight, *, bits, kind, strategy, group=None):
    """What the library stores for a weight, and what it makes of that again."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    arguments = QuantizationArgs(
        num_bits=bits, type=kind, strategy=strategy, group_size=group, symmetric=True
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    library = FloatQuantizationCompressor if kind == "float" else PackedQuantizationCompressor
    largest = 448.0 if kind == "float" else 2 ** (bits - 1) - 0.5
    groups = {
        "tensor": (1, -1),
        "channel": (ROWS, -1),
        "group": (ROWS, COLUMNS // (group or 1), -1),
    }
    scale = weight.float().reshape(groups[strategy]).abs().amax(-1) / largest
    scale = scale.reshape(-1) if strategy == "tensor" else scale.reshape(ROWS, -1)
    stored = library.compress({"weight": weight, "weight_scale": scale.bfloat16()}, scheme)
    return stored, library.decompress(dict(stored), scheme)["weight"]


@pytest.fixture
def folder(tmp_path):
    def write(tensors):
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / SINGLE)
        return tmp_path

    return write


CASES = [
    {"bits": 8, "kind": "float", "strategy": "channel"},
    {"bits": 8, "kind": "float", "strategy": "tensor"},
    {"bits": 4, "kind": "int", "strategy": "group", "group": 128},
    {"bits": 4, "kind": "int", "strategy": "group", "group": 32},
    {"bits": 4, "kind": "int", "strategy": "channel"},
    {"bits": 8, "kind": "int", "strategy": "channel"},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_weights_equal_the_library(case, folder):
    weight = weight_of(0)
    stored, wanted = compress(weight, **case)
    plain = torch.randn(8).bfloat16()
    tensors = {f"a.q_proj.{name}": tensor for name, tensor in stored.items()}
    place = folder({**tensors, "a.norm.weight": plain, "a.q_proj.input_scale": torch.ones(1)})
    with CompressedReader.open(place) as reader:
        assert sorted(reader) == ["a.norm.weight", "a.q_proj.weight"]
        assert "a.q_proj.weight" in reader and "a.k_proj.weight" not in reader
        assert reader.shape("a.q_proj.weight") == (ROWS, COLUMNS)
        assert reader.dtype("a.q_proj.weight") == "BF16"
        assert reader.file("a.q_proj.weight") == place / SINGLE
        found = reader.read("a.q_proj.weight")
        assert found.dtype == wanted.dtype == torch.bfloat16
        assert torch.equal(found, wanted)
        assert torch.equal(reader.read("a.norm.weight"), plain)
    error = (found.float() - weight.float()).abs().max()
    assert 0 < error <= weight.abs().max() / (4 if case["bits"] == 4 else 8)


def test_a_plain_checkpoint_reads_the_same(tiny_model):
    with CompressedReader.open(tiny_model) as ours, TensorReader.open(tiny_model) as plain:
        assert list(ours) == list(plain)
        for name in plain:
            assert (ours.shape(name), ours.dtype(name)) == (plain.shape(name), plain.dtype(name))
            assert torch.equal(ours.read(name), plain.read(name))


def test_a_scale_may_lie_in_another_shard_than_its_weight(folder):
    from safetensors.torch import save_file

    stored, _ = compress(weight_of(0), **CASES[2])
    place = folder({f"a.{name}": tensor for name, tensor in stored.items()})
    with CompressedReader.open(place) as reader:
        wanted = reader.read("a.weight")
    first = {"b.weight": torch.ones(2), "a.weight_scale": stored["weight_scale"]}
    save_file(first, place / "1.safetensors")
    rest = {f"a.{name}": tensor for name, tensor in stored.items() if name != "weight_scale"}
    save_file(rest, place / "2.safetensors")
    with CompressedReader([place / "1.safetensors", place / "2.safetensors"]) as reader:
        found = dict(reader.stream(["b.weight", "a.weight"]))
    assert torch.equal(found["a.weight"], wanted)


def test_packed_integers_by_plain_loops():
    generator = torch.Generator().manual_seed(3)
    packed = torch.randint(-(2**31), 2**31, (3, 4), generator=generator).int()
    scale = torch.rand(3, 2, generator=generator)
    found = dequantize_packed(packed, scale, 30, 4)
    for row in range(3):
        for column in range(30):
            word = packed[row, column // 8].item() & 0xFFFFFFFF
            integer = (word >> (4 * (column % 8))) % 16 - 8
            assert unpack_integers(packed, 30, 4)[row, column] == integer
            assert found[row, column] == scale[row, column // 15] * integer


def test_float8_by_plain_loops():
    bits = torch.arange(256, dtype=torch.uint8)
    weight = bits[(bits & 0x7F) != 0x7F].reshape(2, -1).view(torch.float8_e4m3fn)  # no NaN
    scale = torch.tensor([[0.5], [3.0]])
    found = dequantize_float8(weight, scale)
    for row in range(2):
        for column, bits in enumerate(weight[row].view(torch.uint8).tolist()):
            sign, exponent, fraction = bits >> 7, bits >> 3 & 15, bits & 7
            size = (fraction / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 7)
            assert found[row, column] == (-1) ** sign * size * scale[row, 0]


def test_a_wrong_scale_is_noticed():
    stored, wanted = compress(weight_of(0), **CASES[2])
    scale = stored["weight_scale"].flip(1)
    found = dequantize_packed(stored["weight_packed"], scale, COLUMNS, 4)
    assert not torch.equal(found, wanted)
    whole = dequantize_packed(stored["weight_packed"], stored["weight_scale"].float(), COLUMNS, 4)
    assert torch.equal(whole.bfloat16(), wanted) and not torch.equal(whole, wanted.float())


FLOAT8 = {"x.weight": torch.zeros(4, 64, dtype=torch.float8_e4m3fn)}
INT4 = {
    "x.weight_packed": torch.zeros(4, 8, dtype=torch.int32),
    "x.weight_shape": torch.tensor([4, 64]),
    "x.weight_scale": torch.ones(4, 2),
}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (FLOAT8, "`x.weight_scale` is missing"),
        (FLOAT8 | {"x.weight_scale": torch.ones(2, 2)}, r"has shape \[2, 2\], needed \[1\] or \[4"),
        (INT4 | {"x.weight_scale": torch.ones(4, 3)}, r"has shape \[4, 3\], needed \[4, groups"),
        (INT4 | {"x.weight_zero_point": torch.zeros(1, 2)}, "zero points"),
        (INT4 | {"x.weight_g_idx": torch.zeros(64)}, "order of activation"),
        (INT4 | {"x.weight_shape": torch.tensor([4, 63, 1])}, "agree with `x.weight_shape`"),
        (INT4 | {"x.weight_packed": torch.zeros(4, 32, dtype=torch.uint8)}, r"of U8 \[4, 32\]"),
        ({k: v for k, v in INT4.items() if "shape" not in k}, "agree with `x.weight_shape`"),
    ],
)
def test_what_cannot_be_read(tensors, message, folder):
    with (
        CompressedReader.open(folder(tensors)) as reader,
        pytest.raises(CheckpointError, match=message) as caught,
    ):
        reader.read("x.weight")
    assert caught.value.where == SINGLE and caught.value.hint
