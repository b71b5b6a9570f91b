"""GGUF files from directories, files and adapters; `transformers` and llama.cpp as readers."""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from singalaut.checkpoint.adapters import open_merged
from singalaut.checkpoint.convert import convert
from singalaut.errors import CheckpointError, MachineError, RecipeError
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.gguf import GgufFile, config_from_gguf
from singalaut.model.gguf_write import FORMATS
from singalaut.model.hf import hf_name, load_model, parameter_shapes, read_config, save_model
from singalaut.model.lora import adapters, add_adapter, load_adapter, merge_adapter, save_adapter
from singalaut.text.tokenizer import Tokenizer

# heads as wide as llama.cpp and `transformers` take for granted; rows that K-quants can cut
CONFIG = Gemma3Config(256, 256, 7, 2, 1, 256, 256.0, 8, 512, 520, eos_ids=(1, 106))
IDS = torch.tensor([[2, 400, 401, 402, 380, 377, 403, 381, 382, 390, 401, 399, 385, 400, 379, 383]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer) -> Path:
    """A directory whose last 8 embedding rows have no token, in bfloat16."""
    target = tmp_path_factory.mktemp("gguf") / "model"
    model = initialise(Gemma3(CONFIG), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data = torch.randn(parameter.shape, generator=generator).round(decimals=1)
            parameter.data *= 0.3  # and 1 + w keeps every bit of w in bfloat16
        elif name != "embedding.weight":
            parameter.data *= 3
    save_model(model, target, torch.bfloat16)
    tiny_tokenizer.save(target)
    return target


@pytest.fixture(scope="module")
def adapter(folder) -> Path:
    model = add_adapter(load_model(folder), 4, 8.0, ("query", "up"), seed=3)
    for _, adapted in adapters(model):
        torch.nn.init.normal_(adapted.b, std=0.05)
    target = folder.parent / "adapter"
    save_adapter(model, target, "base-model")
    return target


@torch.no_grad()
def logits(model, ids=IDS):
    found = model(ids)
    found = model.logits(found) if isinstance(model, Gemma3) else found.logits
    return found[..., :512].float()


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_model(f).state_dict() for f in (one, other))
    return all(torch.equal(first[n][:512], second[n][:512]) for n in first)


@pytest.mark.parametrize("quant", [None, "F32", "BF16"])
def test_a_directory_there_and_back(quant, folder, tmp_path):
    convert(folder, tmp_path / "m.gguf", quant=quant)
    convert(tmp_path / "m.gguf", tmp_path / "back", dtype="bfloat16")
    assert same_weights(folder, tmp_path / "back")
    assert read_config(tmp_path / "back") == replace(CONFIG, vocab_size=512)
    assert Tokenizer.load(tmp_path / "back").identity == Tokenizer.load(folder).identity
    template = "chat_template.jinja"
    assert (tmp_path / "back" / template).read_text() == (folder / template).read_text()


@pytest.mark.parametrize("quant", FORMATS)
def test_a_file_in_its_own_format_again(quant, folder, tmp_path):
    convert(folder, tmp_path / "first.gguf", quant=quant)
    convert(tmp_path / "first.gguf", tmp_path / "second.gguf", quant=quant)
    first, second = (GgufFile(tmp_path / f"{name}.gguf") for name in ("first", "second"))
    assert first.metadata == second.metadata
    for name in first.tensors:  # rounding twice is rounding once
        one, other = (file.read(name, torch.float32) for file in (first, second))
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("quant", "bound"), [("F32", 1e-6), ("F16", 1e-4), ("BF16", 1e-6), ("Q8_0", 0.2), ("Q4_0", 2.5)]
)
def test_transformers_reads_what_we_write(quant, bound, folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    convert(folder, tmp_path / "m.gguf", quant=quant)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    convert(tmp_path / "m.gguf", tmp_path / "back", dtype="float32")
    found = logits(theirs)
    torch.testing.assert_close(found, logits(load_model(tmp_path / "back")), rtol=0, atol=1e-4)
    exact = logits(load_model(folder))
    error = (found - exact).abs().max().item()
    assert error <= bound, error
    assert exact.abs().max() > 2 * bound


@pytest.mark.parametrize("change", ["attention.sliding_window", "rope.freq_base", "norm"])
def test_a_wrong_file_is_noticed(change, folder, tmp_path):
    """Perturbs what the test above compares."""
    convert(folder, tmp_path / "m.gguf", quant="F32")
    import gguf

    reader = gguf.GGUFReader(tmp_path / "m.gguf", "r+")
    if change == "norm":
        next(t for t in reader.tensors if t.name == "output_norm.weight").data[:] -= 1
    else:
        reader.fields[f"gemma3.{change}"].parts[-1][0] //= 2
    reader.data.flush()
    convert(tmp_path / "m.gguf", tmp_path / "back", dtype="float32")
    difference = logits(load_model(folder)) - logits(load_model(tmp_path / "back"))
    assert difference.abs().max() > 1e-3


def test_an_adapter_is_merged(folder, adapter, tmp_path):
    wanted = merge_adapter(load_adapter(load_model(folder), adapter))
    convert(adapter, tmp_path / "merged", base=folder, dtype="float32")
    found = load_model(tmp_path / "merged").state_dict()
    for name, parameter in wanted.state_dict().items():
        torch.testing.assert_close(found[name], parameter.bfloat16().float(), rtol=0, atol=0)
    plain = load_model(folder).state_dict()
    changed = {
        n.rpartition(".")[0].rpartition(".")[2] for n in found if (found[n] != plain[n]).any()
    }
    assert changed == {"query", "up"}
    assert Tokenizer.load(tmp_path / "merged").identity == Tokenizer.load(folder).identity
    convert(adapter, tmp_path / "merged.gguf", base=folder)
    convert(tmp_path / "merged.gguf", tmp_path / "back")
    assert same_weights(tmp_path / "merged", tmp_path / "back")


def test_an_adapter_of_peft(folder, adapter, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    with open_merged(folder, adapter, CONFIG) as read:
        for name in parameter_shapes(CONFIG):
            wanted = theirs[hf_name(name)].bfloat16().float()
            torch.testing.assert_close(read(name).float(), wanted)


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("m.gguf", {"quant": "Q4_KM"}, r"format `Q4_KM` is not known"),
        ("m.gguf", {"quant": "q8"}, r"format `q8` is not known"),
        ("m.gguf", {"dtype": "float32"}, "format instead of a dtype"),
        ("m", {"quant": "Q8_0"}, "is a format of GGUF files"),
        ("m.gguf", {"base": Path("x")}, "is not an adapter"),
    ],
)
def test_options_that_do_not_fit(output, options, message, folder, tmp_path):
    with pytest.raises(RecipeError, match=message) as caught:
        convert(folder, tmp_path / output, **options)
    assert caught.value.hint
    if "not known" in message:
        assert "Q8_0" in caught.value.hint and "Q6_K" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_without_its_base(adapter, tmp_path):
    with pytest.raises(RecipeError, match="needs its base model") as caught:
        convert(adapter, tmp_path / "m.gguf")
    assert "the adapter names `base-model`" in caught.value.hint


def test_an_adapter_of_another_base(folder, adapter, tiny_model, tmp_path):
    with pytest.raises(CheckpointError, match="lora_A"):
        convert(adapter, tmp_path / "m", base=tiny_model)
    assert list(tmp_path.iterdir()) == []


def test_a_shape_for_directories_only(tiny_model, tmp_path):
    with pytest.raises(RecipeError, match="every layer number 3 is global"):
        convert(tiny_model, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_tokenizer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        convert(tmp_path / "bare", tmp_path / "m.gguf")


def test_what_is_lost_is_said(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="singalaut"):
        convert(folder, tmp_path / "m.gguf", quant="Q8_0")
        assert "8 embedding rows beyond the vocabulary are dropped" in caplog.text
        assert "quantised before" not in caplog.text
        convert(tmp_path / "m.gguf", tmp_path / "n.gguf", quant="Q4_0")
    assert "quantised before (Q8_0)" in caplog.text


def test_kquants_without_their_package(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MachineError, match=r"Q4_K_M is made by llama\.cpp") as caught:
        convert(folder, tmp_path / "m.gguf", quant="Q4_K_M")
    assert "singalaut[llama]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_command(folder, adapter, tmp_path):
    from typer.testing import CliRunner

    from singalaut.cli.main import app

    target = tmp_path / "m.gguf"
    words = ["convert", adapter, target, "--base", folder, "--quant", "Q8_0"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0 and done.stdout.strip() == str(target)
    assert config_from_gguf(GgufFile(target)) == replace(CONFIG, vocab_size=512)
    assert GgufFile(target).metadata["general.file_type"] == 7
