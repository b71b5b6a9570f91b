"""Whole compressed-tensors checkpoints: their weights by the library, logits by `transformers`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from singalaut.checkpoint.convert import convert
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import load_model, save_model, stored_dtype

library = pytest.importorskip("compressed_tensors")
CONFIG = Gemma3Config(128, 256, 7, 2, 1, 64, 64.0, 8, 512, 512, eos_ids=(1, 106))
IDS = torch.tensor([[2, 400, 401, 402, 380, 377, 403, 381, 382, 390, 401, 399, 385, 400, 379, 383]])
SCHEMES = {
    "fp8-channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "fp8-tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "w4a16": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64},
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("plain") / "model"
    model = initialise(Gemma3(CONFIG), seed=0)
    for name, parameter in model.named_parameters():
        if name.startswith("layers") and parameter.ndim > 1:
            parameter.data *= 3
    save_model(model, folder, torch.bfloat16)
    tiny_tokenizer.save(folder)
    return folder


@pytest.fixture(params=SCHEMES)
def compressed(request, plain, tmp_path):
    """The plain model with every projection compressed by the library; and the weights it means."""
    from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from safetensors.torch import load_file, save_file

    kind, settings = SCHEMES[request.param]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**settings))
    is_float = settings["type"] == "float"
    compressor = FloatQuantizationCompressor if is_float else PackedQuantizationCompressor
    folder = tmp_path / "compressed"
    shutil.copytree(plain, folder)
    tensors, meant = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = meant[name] = weight
            continue
        groups = {"tensor": -1, "channel": weight.shape[1], "group": 64}[settings["strategy"]]
        rows = weight.float().reshape(1, -1) if groups == -1 else weight.float().reshape(-1, groups)
        scale = rows.abs().amax(1) / (448 if is_float else 7.5)
        scale = scale if groups == -1 else scale.reshape(weight.shape[0], -1)
        stored = compressor.compress({"weight": weight, "weight_scale": scale.bfloat16()}, scheme)
        meant[name] = compressor.decompress(dict(stored), scheme)["weight"]
        stem = name.removesuffix("weight")
        tensors |= {f"{stem}{part}": tensor.contiguous() for part, tensor in stored.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": settings}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, meant


def test_weights_are_what_the_library_means(compressed):
    from singalaut.model.hf import hf_name

    folder, meant = compressed
    state = load_model(folder, torch.bfloat16).state_dict()
    for name, weight in state.items():
        assert torch.equal(weight, meant[hf_name(name)].bfloat16()), name


def test_it_is_written_as_a_plain_checkpoint(compressed, tmp_path):
    folder, _ = compressed
    assert stored_dtype(folder) == torch.bfloat16
    convert(folder, tmp_path / "plain")
    convert(folder, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    wanted = load_model(folder, torch.bfloat16).state_dict()
    for copy in ("plain", "back"):
        found = load_model(tmp_path / copy, torch.bfloat16).state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@torch.no_grad()
def test_logits_of_transformers(compressed, plain):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    folder, _ = compressed
    theirs = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(run_compressed=False),
    )
    ours = load_model(folder)
    found = ours.logits(ours(IDS))
    torch.testing.assert_close(found, theirs(IDS).logits, rtol=0, atol=1e-4)
    exact = load_model(plain)
    assert (exact.logits(exact(IDS)) - found).abs().max() > 1e-2
