"""llama.cpp as the reader of what we write, and as the maker of K-quants."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from singalaut.checkpoint.convert import convert
from singalaut.checkpoint.kquants import KQUANTS, quantize
from singalaut.errors import CheckpointError
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.gguf import GgufFile
from singalaut.model.hf import load_model, save_model
from singalaut.text.tokenizer import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp")
CONFIG = Gemma3Config(256, 256, 7, 2, 1, 256, 256.0, 8, 512, 512, eos_ids=(1, 106))
IDS = [2, 400, 401, 402, 380, 377, 403, 381, 382, 390, 401, 399, 385, 400, 379, 383, 384, 391]
PROMPTS = ["Ibu kota Indonesia adalah", "ประเทศไทยมีเมืองหลวงชื่อ", "The capital of Vietnam is"]


def open_llama(file, **options):
    options = {
        "n_ctx": 256,
        "n_batch": 256,
        "n_threads": 1,
        "verbose": False,
        "type_k": 0,
        "type_v": 0,
        **options,
    }
    return llama_cpp.Llama(str(file), logits_all=True, **options)


def their_logits(file, ids):
    llama = open_llama(file)
    llama.eval(ids)
    return torch.from_numpy(np.array(llama.scores[: len(ids)]))


@torch.no_grad()
def our_logits(folder, ids):
    model = load_model(folder)
    return model.logits(model(torch.tensor([ids])))[0]


def make(target, tokenizer, config=CONFIG):
    model = initialise(Gemma3(config), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        elif name != "embedding.weight":
            parameter.data *= 3
    save_model(model, target, torch.float32)
    tokenizer.save(target)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    return make(tmp_path_factory.mktemp("llama") / "model", tiny_tokenizer)


SHAPES = {
    "plain": CONFIG,
    "RoPE factor": replace(CONFIG, rope_factor=8.0),
    "27B": Gemma3Config(64, 64, 62, 4, 2, 32, 16.0, 8, 512, 512, 8.0),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_a_random_model(shape, tiny_tokenizer, tmp_path):
    source = make(tmp_path / "model", tiny_tokenizer, SHAPES[shape])
    convert(source, tmp_path / "m.gguf", quant="F32")
    found, wanted = their_logits(tmp_path / "m.gguf", IDS), our_logits(source, IDS)
    assert (found - wanted).abs().max() < 3e-3 * wanted.abs().max()  # its GELU is a float16 table
    assert (found.argmax(-1) == wanted.argmax(-1)).all()


@pytest.mark.parametrize(
    ("quant", "bound"),
    [("F16", 3e-3), ("BF16", 1e-2), ("Q8_0", 0.03), ("Q4_0", 0.03), ("Q6_K", 0.04)],
)
def test_every_format_is_read_as_we_read_it(quant, bound, folder, tmp_path):
    convert(folder, tmp_path / "m.gguf", quant=quant)
    convert(tmp_path / "m.gguf", tmp_path / "back", dtype="float32")
    found, wanted = their_logits(tmp_path / "m.gguf", IDS), our_logits(tmp_path / "back", IDS)
    assert (found - wanted).abs().max() < bound * wanted.abs().max()  # it rounds activations too


@pytest.mark.parametrize("key", ["attention.sliding_window", "rope.freq_base"])
def test_wrong_metadata_changes_the_logits(key, folder, tmp_path):
    import gguf

    convert(folder, tmp_path / "m.gguf", quant="F32")
    reader = gguf.GGUFReader(tmp_path / "m.gguf", "r+")
    value = reader.fields[f"gemma3.{key}"].parts[-1]
    value[0] = 3 if key.endswith("window") else 50
    reader.data.flush()
    found, wanted = their_logits(tmp_path / "m.gguf", IDS), our_logits(folder, IDS)
    assert (found - wanted).abs().max() > 0.05 * wanted.abs().max()


@pytest.mark.parametrize("quant", ["Q4_K_M", "Q5_K_M", "Q6_K"])
def test_kquants_of_long_rows(quant, folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="singalaut"):
        convert(folder, tmp_path / "m.gguf", quant=quant)
    assert caplog.text == "" and {f.name for f in tmp_path.iterdir()} == {"m.gguf"}
    convert(tmp_path / "m.gguf", tmp_path / "back", dtype="float32")
    wanted, found = our_logits(folder, IDS), our_logits(tmp_path / "back", IDS)
    share = (found - wanted).norm() / wanted.norm()
    assert 0 < share < {"Q4_K_M": 0.4, "Q5_K_M": 0.2, "Q6_K": 0.1}[quant]
    metadata = GgufFile(tmp_path / "m.gguf").metadata
    assert metadata["general.file_type"] == KQUANTS[quant]
    assert metadata["tokenizer.ggml.tokens"][2] == "<bos>"


def test_rows_too_short_for_kquants_are_named(tiny_tokenizer, tmp_path, caplog):
    source = make(tmp_path / "model", tiny_tokenizer, replace(CONFIG, hidden_size=128))
    with caplog.at_level(logging.WARNING, logger="singalaut"):
        convert(source, tmp_path / "m.gguf", quant="Q4_K_M")
    assert "no multiple of 256 weights long and cannot be Q4_K_M" in caplog.text
    types = Counter(t.type for t in GgufFile(tmp_path / "m.gguf").tensors.values())
    assert types[6] + types[8] > 0  # Q5_0, Q8_0


def test_llama_cpp_gives_up(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\3\0\0\0" + b"\xff" * 100)
    with pytest.raises(CheckpointError, match="could not quantise to Q6_K"):
        quantize(tmp_path / "bad.gguf", tmp_path / "m.gguf", "Q6_K")
    assert {f.name for f in tmp_path.iterdir()} == {"bad.gguf"}


@pytest.mark.real
@pytest.mark.parametrize("quant", ["F32", "F16"])
def test_greedy_tokens_of_the_real_model(quant, real_model, tmp_path):
    file = tmp_path / "m.gguf"
    convert(real_model, file, quant=quant)
    try:
        llama = open_llama(file)
        tokenizer = Tokenizer.load(real_model)
        model = load_model(real_model)
        for prompt in PROMPTS:
            ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
            assert llama.tokenize(prompt.encode()) == ids
            llama.reset()
            for _ in range(24):
                llama.eval(ids[llama.n_tokens :])
                ids.append(int(np.argmax(llama.scores[len(ids) - 1])))
            start = len(ids) - 24
            with torch.no_grad():
                hidden = model(torch.tensor([ids]))[0, start - 1 : -1]
            assert ids[start:] == model.logits(hidden).argmax(-1).tolist()
    finally:
        file.unlink()
