"""What `inspect` says of adapters, compressed and incomplete checkpoints; what loading refuses."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from singalaut.checkpoint.convert import convert
from singalaut.checkpoint.inspect import inspect
from singalaut.errors import CheckpointError, MachineError, RecipeError
from singalaut.model.hf import load_model
from singalaut.model.lora import add_adapter, save_adapter


@pytest.fixture
def copied(tiny_model, tmp_path):
    """A copy of the tiny model, to be spoiled."""
    return shutil.copytree(tiny_model, tmp_path / "copied")


def test_an_adapter(tiny_model, tmp_path):
    adapted = add_adapter(load_model(tiny_model), 4, 8.0, ("query", "up"), seed=1)
    save_adapter(adapted, tmp_path / "adapter", "organisation/base")
    facts = inspect(tmp_path / "adapter")
    wanted = {"rank": 4, "alpha": 8.0, "base": "organisation/base", "modules": "q_proj, up_proj"}
    assert facts | wanted == facts
    # A is [4, 32], B is [64, 4], in both modules of six layers
    assert facts["parameters"] == 6 * 2 * 4 * (32 + 64)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="found no `adapter_model"):
        inspect(tmp_path / "adapter")


def test_compressed_weights_are_shown_as_stored(copied):
    weights = load_file(copied / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    weights[f"{name}_scale"] = torch.ones(1, dtype=torch.bfloat16)
    save_file(weights, copied / "model.safetensors")
    assert inspect(copied)["dtypes"] == {"F32": 79, "F8_E4M3": 1}


def test_a_gguf_file_that_lacks_a_tensor(gguf_seeing_model, tmp_path):
    file = convert(gguf_seeing_model, tmp_path / "m.gguf")[0]
    facts = inspect(file)
    assert (facts["projector_file"], facts["tokens_per_image"]) == ("mmproj-m.gguf", 4)
    file.write_bytes(file.read_bytes().replace(b"blk.3.attn_q.weight", b"blk.9.attn_q.weight"))
    with pytest.raises(CheckpointError, match=r"blk\.3\.attn_q\.weight` is missing"):
        inspect(file)


def test_weights_that_nothing_reads_are_reported(copied, caplog):
    weights = load_file(copied / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, copied / "model.safetensors")
    with caplog.at_level(logging.WARNING, "singalaut"):
        load_model(copied)
        assert not caplog.messages
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
        save_file(weights, copied / "model.safetensors")
        load_model(copied)
    assert "`model.layers.0.self_attn.q_proj.bias` (1)" in caplog.text


def test_an_index_cannot_name_files_elsewhere(copied, tmp_path):
    (copied / "model.safetensors").rename(tmp_path / "other.safetensors")
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no file of this directory"):
        load_model(copied)


def test_a_pointer_in_place_of_a_file_is_named(copied):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n"
    (copied / "model.safetensors").write_bytes(pointer)
    with pytest.raises(CheckpointError) as caught:
        load_model(copied)
    assert "git lfs pull" in caught.value.hint


def test_layers_that_disagree_are_counted(copied):
    config = json.loads((copied / "config.json").read_bytes())
    (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    with pytest.raises(CheckpointError, match="is 7, but `layer_types` has 6 entries"):
        load_model(copied)


def test_float16_is_refused_with_the_reason(tiny_model, tmp_path):
    with pytest.raises(RecipeError, match="overflows"):
        convert(tiny_model, tmp_path / "half", dtype="float16")


def test_a_refused_conversion_leaves_no_folder(gguf_seeing_model, tmp_path, monkeypatch):
    def refuse(quant):
        raise MachineError("not installed")

    monkeypatch.setattr("singalaut.checkpoint.convert.open_llama_cpp", refuse)
    with pytest.raises(MachineError):
        convert(gguf_seeing_model, tmp_path / "a" / "m.gguf", quant="Q4_K_M")
    assert not list(tmp_path.iterdir())
