"""Projector files (`mmproj`) against the `gguf` library, and there and back."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.checkpoint.convert import convert
from singalaut.checkpoint.sources import formats_of
from singalaut.errors import CheckpointError, RecipeError
from singalaut.model.config import VisionConfig
from singalaut.model.gguf import GgufFile
from singalaut.model.hf import hf_name, load_model, parameter_shapes, read_config
from singalaut.model.hf_vision import vision_shapes
from singalaut.model.mmproj import (
    FORMATS,
    check_vision,
    is_mmproj,
    mmproj_name,
    read_vision,
    read_vision_config,
    tensor_format,
    write_mmproj,
)
from singalaut.text.tokenizer import Tokenizer

Kind = gguf.GGMLQuantizationType
TOKENS = 514  # of the tiny tokenizer that has image tokens


@pytest.fixture(scope="module")
def files(gguf_seeing_model, tmp_path_factory):
    """A folder with `m.gguf` and `mmproj-m.gguf` in bfloat16."""
    folder = tmp_path_factory.mktemp("mmproj")
    written = convert(gguf_seeing_model, folder / "m.gguf")
    assert written == [folder / "m.gguf", folder / "mmproj-m.gguf"]
    return folder


def vision_of(folder) -> dict[str, torch.Tensor]:
    """The vision part of a directory, by our names without `vision.`."""
    state = load_model(folder).state_dict()
    return {n.removeprefix("vision."): t for n, t in state.items() if n.startswith("vision.")}


def test_names_are_those_of_the_library(gguf_seeing_model):
    config = read_config(gguf_seeing_model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, config.vision.num_layers)
    for name in vision_shapes(config.vision, config.hidden_size):
        theirs = hf_name(f"vision.{name}").replace("projection_weight", "projection.weight")
        assert mmproj_name(name) == names.get_name(theirs, try_suffixes=(".weight", ".bias")), name


@pytest.mark.parametrize("quant", FORMATS)
def test_the_library_reads_every_format(quant, gguf_seeing_model, tmp_path):
    convert(gguf_seeing_model, tmp_path / "mmproj-m.gguf", quant=quant)
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "mmproj-m.gguf").tensors}
    wanted = vision_of(gguf_seeing_model)
    assert set(found) == {mmproj_name(name) for name in wanted}
    for name, weight in wanted.items():
        tensor = found[mmproj_name(name)]
        kind = Kind[tensor_format(name, tuple(weight.shape), quant)]
        assert tensor.tensor_type == kind and list(tensor.shape) == list(weight.shape)[::-1], name
        values = weight.numpy() + np.float32(name == "projector.norm.weight")
        blocks = np.asarray(tensor.data).reshape(-1).view(np.uint8)
        assert np.array_equal(blocks, gguf.quantize(values, kind).reshape(-1).view(np.uint8)), name


@pytest.mark.parametrize(
    ("name", "shape", "formats"),
    [
        ("tower.layers.0.up.weight", (4304, 1152), "F32 F16 BF16 Q8_0"),
        ("tower.layers.0.down.weight", (1152, 4304), "F32 F16 BF16 F16"),  # 4304 is no multiple
        ("tower.layers.0.up.bias", (4304,), "F32 F32 F32 F32"),
        ("tower.patches.weight", (1152, 3, 14, 14), "F32 F32 F32 F32"),
        ("tower.positions", (4096, 1152), "F32 F32 F32 F32"),
        ("projector.weight", (1152, 2560), "F32 F16 F16 F16"),
        ("projector.norm.weight", (1152,), "F32 F32 F32 F32"),
    ],
)
def test_formats_of_the_published_shapes(name, shape, formats):
    assert [tensor_format(name, shape, quant) for quant in FORMATS] == formats.split()


def test_metadata_are_those_that_llama_cpp_reads(files):
    found = GgufFile(files / "mmproj-m.gguf")
    assert is_mmproj(found) and not is_mmproj(GgufFile(files / "m.gguf"))
    known = {
        value
        for group in (gguf.Keys.Clip, gguf.Keys.ClipVision, gguf.Keys.ClipVision.Attention)
        for value in vars(group).values()
        if isinstance(value, str)
    } | {gguf.Keys.ClipVision.Projector.SCALE_FACTOR}
    ours = {key for key in found.metadata if key.startswith("clip.")}
    assert ours and ours <= known
    metadata = found.metadata
    assert metadata["general.type"] == "mmproj" and metadata["general.file_type"] == 32
    assert metadata["clip.projector_type"] == "gemma3" and metadata["clip.use_gelu"] is True
    assert metadata["clip.vision.projection_dim"] == 256
    assert metadata["clip.vision.projector.scale_factor"] == 2
    assert read_vision_config(found).num_patches == 16


@pytest.mark.parametrize("quant", [None, "F32"])
def test_there_and_back_to_the_bit(quant, gguf_seeing_model, tmp_path):
    convert(gguf_seeing_model, tmp_path / "m.gguf", quant=quant)
    convert(tmp_path / "m.gguf", tmp_path / "back", dtype="bfloat16")
    assert read_config(tmp_path / "back") == read_config(gguf_seeing_model)
    wanted, found = load_model(gguf_seeing_model).state_dict(), load_model(tmp_path / "back")
    for name, tensor in found.state_dict().items():
        if name == "embedding.weight":
            assert torch.equal(tensor[:TOKENS], wanted[name][:TOKENS])
            assert (tensor[TOKENS:] == tensor[0]).all()
        elif name == "vision.projector.weight" and quant is None:  # always half precision
            assert torch.equal(tensor, wanted[name].half().bfloat16().float())
        else:
            assert torch.equal(tensor, wanted[name]), name
    ours, theirs = Tokenizer.load(tmp_path / "back"), Tokenizer.load(gguf_seeing_model)
    assert ours.identity == theirs.identity and ours.image_ids == theirs.image_ids
    assert (tmp_path / "back" / "preprocessor_config.json").exists()


@pytest.mark.parametrize("quant", FORMATS)
def test_a_file_in_its_own_format_again(quant, gguf_seeing_model, tmp_path):
    convert(gguf_seeing_model, tmp_path / "m.gguf", quant=quant)
    if quant == "Q8_0":  # beside a text model in blocks, the vision part is half precision
        assert formats_of(GgufFile(tmp_path / "mmproj-m.gguf")) == {"F16", "F32"}
    convert(tmp_path / "m.gguf", tmp_path / "again.gguf", quant=quant)
    first, second = (GgufFile(tmp_path / f"mmproj-{name}.gguf") for name in ("m", "again"))
    assert first.metadata == second.metadata
    for name in first.tensors:
        one, other = (file.read(name, torch.float32) for file in (first, second))
        assert torch.equal(one, other), name


def test_a_text_file_without_the_image_token(gguf_seeing_model, files, tmp_path):
    """As many published files are: the last token of the vocabulary is missing in them."""
    convert(gguf_seeing_model, tmp_path / "whole")
    pieces = GgufFile(files / "m.gguf").metadata["tokenizer.ggml.tokens"]
    assert pieces[-1] == "<image_soft_token>"
    short = Tokenizer.from_vocabulary(
        pieces[:-1],
        GgufFile(files / "m.gguf").metadata["tokenizer.ggml.scores"][:-1],
        GgufFile(files / "m.gguf").metadata["tokenizer.ggml.token_type"][:-1],
    )
    for file in (tmp_path / "whole").glob("tokenizer*"):
        file.unlink()
    short.save(tmp_path / "whole")
    convert(tmp_path / "whole", tmp_path / "text.gguf")
    assert len(GgufFile(tmp_path / "text.gguf").metadata["tokenizer.ggml.tokens"]) == TOKENS - 1
    (tmp_path / "mmproj-text.gguf").rename(tmp_path / "other.gguf")
    convert(tmp_path / "text.gguf", tmp_path / "back", mmproj=tmp_path / "other.gguf")
    assert read_config(tmp_path / "back") == read_config(gguf_seeing_model)
    ids = Tokenizer.load(tmp_path / "back").image_ids
    assert ids == Tokenizer.load(gguf_seeing_model).image_ids


def test_rows_without_a_token_are_no_tokens(gguf_seeing_model, files, tmp_path):
    """llama.cpp's converter names them `[PAD…]`; our tokenizer must not, or they could be drawn."""
    convert(gguf_seeing_model, tmp_path / "m.gguf", quant="F16")
    from singalaut.checkpoint.sources import gguf_pieces

    file = GgufFile(tmp_path / "m.gguf")
    for key, more in (("tokens", ["[PAD514]", "[PAD515]"]), ("scores", [0.0] * 2)):
        file.metadata[f"tokenizer.ggml.{key}"] += more
    file.metadata["tokenizer.ggml.token_type"] += [5, 5]
    assert len(gguf_pieces(file).tokens) == TOKENS


def test_older_files_have_two_matrices_swapped(gguf_seeing_model, tmp_path):
    config = read_config(gguf_seeing_model)
    names = vision_shapes(config.vision, config.hidden_size)
    wanted = vision_of(gguf_seeing_model)
    write_swapped(tmp_path / "old.gguf", config, wanted)
    file = GgufFile(tmp_path / "old.gguf")
    assert file.tensors["v.blk.1.ffn_down.weight"].shape == (96, 64)
    check_vision(file, config.vision, config.hidden_size)
    for name in names:
        found = read_vision(file, name, config.vision, torch.float32)
        torch.testing.assert_close(found, wanted[name], rtol=1e-6, atol=1e-6)


def write_swapped(file, config, weights):
    from singalaut.model import mmproj

    names = dict(mmproj.LAYER_NAMES)
    mmproj.LAYER_NAMES.update(up=names["down"], down=names["up"])
    try:
        shapes = vision_shapes(config.vision, config.hidden_size)
        write_mmproj(file, config, "F32", (weights[n] for n in shapes), name="old")
    finally:
        mmproj.LAYER_NAMES.update(names)


def test_a_projector_of_another_model(files, gguf_seeing_model, tmp_path):
    config = read_config(gguf_seeing_model)
    other = replace(config, hidden_size=128)
    shapes = vision_shapes(other.vision, 128)
    write_mmproj(
        tmp_path / "other.gguf", other, "F16", (torch.zeros(s) for s in shapes.values()), name="x"
    )
    with pytest.raises(CheckpointError, match=r"shape \[64, 128\], needed \[64, 256\]") as caught:
        convert(files / "m.gguf", tmp_path / "out", mmproj=tmp_path / "other.gguf")
    assert "of different models" in caught.value.hint
    assert not (tmp_path / "out").exists()


def edit(source, target, changes):
    """A copy of a projector file with other metadata."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, changes.get("general.architecture", "clip"))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or changes.get(key, 0) is None:
            continue
        kind = field.types[0]
        value = changes.get(key, field.contents())
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        if tensor.name != changes.get("without"):
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip.projector_type": "pixtral"}, "`clip.projector_type` is pixtral"),
        ({"clip.use_gelu": False}, "`clip.use_gelu` is False"),
        ({"clip.vision.image_mean": [0.4, 0.4, 0.4]}, "image_mean` is"),
        ({"clip.vision.image_size": None}, "`clip.vision.image_size` is missing"),
        ({"clip.vision.block_count": 10**9}, "block_count` is 1000000000"),
        ({"clip.vision.block_count": 3}, "`v.blk.2.ln1.weight` is missing"),
        ({"clip.vision.embedding_length": 32}, "shape"),
        ({"clip.vision.projector.scale_factor": 3}, "do not pool by 3"),
        ({"clip.vision.attention.head_count": 0}, "head_count` is 0"),
        ({"without": "mm.soft_emb_norm.weight"}, "`mm.soft_emb_norm.weight` is missing"),
        ({"general.architecture": "gemma3"}, "not that of a projector file"),
    ],
)
def test_files_that_cannot_be_used(changes, message, files, tmp_path):
    edit(files / "mmproj-m.gguf", tmp_path / "other.gguf", changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(files / "m.gguf", tmp_path / "out", mmproj=tmp_path / "other.gguf")
    assert caught.value.where and not (tmp_path / "out").exists()


def test_a_projector_file_is_no_model(files, tmp_path):
    with pytest.raises(CheckpointError, match="architecture is `clip`") as caught:
        convert(files / "mmproj-m.gguf", tmp_path / "out")
    assert "--mmproj" in caught.value.hint


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 2500), byte=st.integers(0, 255))
def test_a_damaged_header_never_ends_in_a_traceback(place, byte, files, tmp_path_factory):
    data = bytearray((files / "mmproj-m.gguf").read_bytes())
    data[place] = byte
    damaged = tmp_path_factory.getbasetemp() / "damaged-mmproj.gguf"
    damaged.write_bytes(data)
    try:
        file = GgufFile(damaged)
        check_vision(file, read_vision_config(file), 256)
    except CheckpointError as error:
        assert error.what


@pytest.mark.parametrize(
    ("source", "output", "options", "message"),
    [
        ("model", "mmproj-x.gguf", {"quant": "Q4_0"}, "the vision part cannot be Q4_0"),
        ("text", "mmproj-x.gguf", {}, "the model has no vision part"),
        ("model", "x", {"mmproj": "mmproj-m.gguf"}, "the source is no GGUF file"),
    ],
)
def test_requests_that_do_not_fit(
    source, output, options, message, files, gguf_seeing_model, tmp_path
):
    shutil.copy(files / "m.gguf", tmp_path / "text.gguf")
    path = gguf_seeing_model if source == "model" else tmp_path / "text.gguf"
    options = {k: files / v if k == "mmproj" else v for k, v in options.items()}
    with pytest.raises(RecipeError, match=message) as caught:
        convert(path, tmp_path / output, **options)
    assert caught.value.hint and not (tmp_path / output).exists()


def test_both_files_or_none(gguf_seeing_model, tmp_path):
    (tmp_path / "mmproj-m.gguf").write_bytes(b"mine")
    with pytest.raises(RecipeError, match="exists already"):
        convert(gguf_seeing_model, tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["mmproj-m.gguf"]
    bare = shutil.copytree(
        gguf_seeing_model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*")
    )
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        convert(bare, tmp_path / "n.gguf")
    assert not list(tmp_path.glob("*n.gguf"))


def test_a_shape_that_llama_cpp_would_take_apart_wrongly(gguf_seeing_model, tmp_path):
    config = read_config(gguf_seeing_model)
    square = replace(config, vision=replace(config.vision, intermediate_size=64))
    with pytest.raises(RecipeError, match="take the MLP's matrices for each other"):
        write_mmproj(tmp_path / "m.gguf", square, "F16", iter(()), name="x")


def test_small_weights_are_counted(gguf_seeing_model, tmp_path, caplog):
    config = read_config(gguf_seeing_model)
    weights = {n: torch.zeros(s).bfloat16() for n, s in parameter_shapes(config).items()}
    weights = {n.removeprefix("vision."): w for n, w in weights.items() if n.startswith("vision.")}
    weights["projector.weight"][0, :3] = 3.0 * 2.0**-25
    with caplog.at_level(logging.INFO, logger="singalaut"):
        write_mmproj(tmp_path / "m.gguf", config, "BF16", iter(weights.values()), name="x")
    assert "3 weights" in caplog.text and "too small for F16" in caplog.text


def test_the_real_shape_has_the_parameters_of_the_reference():
    shapes = vision_shapes(VisionConfig(), 2560)
    assert sum(math.prod(s) for s in shapes.values()) == 416_866_032 + 1152 * 2560 + 1152
    assert len(shapes) == 7 + 27 * 16


def test_a_model_by_its_file_sees_with_the_projector_beside_it(files, tmp_path, monkeypatch):
    from singalaut.checkpoint.resolve import resolve_model

    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path / "home"))
    shutil.copy(files / "m.gguf", tmp_path)
    blind = resolve_model("m.gguf", base_folder=tmp_path)
    assert read_config(blind).vision is None
    shutil.copy(files / "mmproj-m.gguf", tmp_path)
    seeing = resolve_model("m.gguf", base_folder=tmp_path)
    assert seeing != blind and read_config(seeing).vision is not None


def test_inspection_of_both_files(files):
    from singalaut.checkpoint.inspect import inspect

    text, projector = inspect(files / "m.gguf"), inspect(files / "mmproj-m.gguf")
    assert text["projector_file"] == "mmproj-m.gguf"
    assert text["vision_parameters"] == projector["vision_parameters"] > 0
    assert text["tokenizer"]["rows_beyond_vocabulary"] == 0 and text["tokenizer"]["bos_agrees"]
    assert projector["tokens_per_image"] == 4 and projector["text_hidden_size"] == 256
    assert projector["projector_parameters"] == 64 * 257
    assert sum(projector["dtypes"].values()) == 7 + 2 * 16
