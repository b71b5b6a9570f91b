"""The merge stage as a whole: kills, threads, adapters, slices, odd inputs."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from singalaut.artifact import Work
from singalaut.errors import CheckpointError, MachineError
from singalaut.merge import stream
from singalaut.merge.config import MergeConfig
from singalaut.merge.stream import run_merge
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import load_model, parameter_shapes, save_model, save_weights
from singalaut.model.lora import adapters, add_adapter, load_adapter, merge_adapter, save_adapter


@pytest.fixture
def models(tmp_path, tiny_config, tiny_tokenizer):
    """Three models near each other, in bfloat16."""
    base = initialise(Gemma3(tiny_config), seed=0)
    for seed, label in enumerate(("base", "a", "b")):
        other = initialise(Gemma3(tiny_config), seed=seed)
        for mine, theirs in zip(other.parameters(), base.parameters(), strict=True):
            mine.data = theirs + 0.1 * mine.data
        save_model(other, tmp_path / label, torch.bfloat16)
        tiny_tokenizer.save(tmp_path / label)
    return tmp_path


def merge(folder, name="work", **settings):
    config = MergeConfig.model_validate(settings)
    models = {label: folder / source for label, source in config.inputs().items()}
    updates = {label: folder / path for label, path in config.files().items()}
    work = Work(folder / name)
    work.path.mkdir(exist_ok=True)
    run_merge(config, models=models, adapters=updates, work=work, seed=5)
    return work.path / "model"


def hashes(folder) -> dict[str, str]:
    files = sorted(folder.glob("*.safetensors*"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


TIES = {
    "models": [{"from": "a", "weight": 0.6, "density": 0.4}, {"from": "b", "density": 0.7}],
    "base": "base",
    "method": "dare_ties",
}


@pytest.mark.parametrize("method", ["dare_ties", "ties", "della", "sce", "karcher", "linear"])
def test_threads_change_nothing(models, method):
    settings = {"models": [{"from": "a"}, {"from": "b"}], "method": method}
    if method not in ("karcher", "linear"):
        settings["base"] = "base"
    if method.startswith(("dare", "della", "ties")):
        settings["parameters"] = {"density": 0.5}
    one = hashes(merge(models, "one", **settings, threads=1))
    assert hashes(merge(models, "seven", **settings, threads=7)) == one


def test_a_killed_merge_goes_on_at_the_next_file(models, monkeypatch):
    whole = hashes(merge(models, "whole", **TIES, shard_gb=6e-5))
    assert len(whole) > 3
    real, calls = stream.merge_block, []

    def killed(*args):
        calls.append(args)
        if len(calls) > 30:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(stream, "merge_block", killed)
    with pytest.raises(KeyboardInterrupt):
        merge(models, "again", **TIES, shard_gb=6e-5)
    written = hashes(models / "again" / "model")
    assert 0 < len(written) < len(whole) and written.items() <= whole.items()
    assert not list((models / "again" / "model").glob(".*"))
    monkeypatch.setattr(stream, "merge_block", lambda *args: calls.append(args) or real(*args))
    before = len(calls)
    assert hashes(merge(models, "again", **TIES, shard_gb=6e-5)) == whole
    assert 0 < len(calls) - before < 70  # not the finished files again
    load_model(models / "again" / "model")


def test_a_file_of_another_merge_is_not_taken_for_ours(models):
    merge(models, "whole", **TIES)
    file = models / "whole" / "model" / "model.safetensors"
    wanted = file.read_bytes()
    file.write_bytes(wanted[:-2])
    merge(models, "whole", **TIES)
    assert file.read_bytes() == wanted


def test_adapters_are_added_first(models, tiny_config):
    adapted = add_adapter(load_model(models / "base"), 4, 8.0, ("query", "up"), seed=0)
    for _, module in adapters(adapted):
        torch.nn.init.normal_(module.b, std=0.1)
    save_adapter(adapted, models / "lora", "base")
    found = load_file(
        merge(
            models,
            models=[
                {"from": "base", "adapter": "lora", "weight": 0.5},
                {"from": "a", "weight": 1.5},
            ],
            dtype="float32",
        )
        / "model.safetensors"
    )
    merged = merge_adapter(load_adapter(load_model(models / "base"), models / "lora"))
    save_model(merged, models / "folded", torch.float32)
    folded, other = (load_file(models / n / "model.safetensors") for n in ("folded", "a"))
    for name, tensor in found.items():
        wanted = 0.25 * folded[name] + 0.75 * other[name].float()
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)
    plain = load_file(models / "base" / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert (folded[name] - plain[name].float()).abs().max() > 0.01


def test_slices_become_layers(models):
    slices = [
        {"sources": [{"from": "a", "layers": [0, 3]}]},
        {"sources": [{"from": "b", "layers": [0, 3]}]},
        {"sources": [{"from": "a", "layers": [3, 6], "scale": 0.5}]},
    ]
    found = merge(models, slices=slices, method="passthrough", dtype="float32")
    model = load_model(found)
    assert model.config.num_layers == 9
    a, b = load_model(models / "a"), load_model(models / "b")
    for layer, (source, theirs, scale) in enumerate(
        [
            *((a, i, 1.0) for i in range(3)),
            *((b, i, 1.0) for i in range(3)),
            *((a, i, 0.5) for i in range(3, 6)),
        ]
    ):
        mine = model.layers[layer].mlp.up.weight
        torch.testing.assert_close(mine, scale * source.layers[theirs].mlp.up.weight)
    assert torch.equal(model.embedding.weight, a.embedding.weight)
    assert json.loads((found / "config.json").read_text())["num_hidden_layers"] == 9


def test_the_report_says_how_far_each_layer_moved(models):
    settings = {
        "models": [{"from": "a"}],
        "base": "base",
        "method": "task_arithmetic",
        "parameters": {"weight": [{"filter": "layers.2.", "value": 0.5}, {"value": 0.0}]},
    }
    folder = merge(models, **settings).parent
    report = json.loads((folder / "report.json").read_text())
    assert report["parts"].pop("layer 2") > 0.01
    assert set(report["parts"].values()) == {0.0}
    base, other = (load_file(models / n / "model.safetensors") for n in ("base", "a"))
    row = next(r for r in report["tensors"] if r["tensor"] == "model.layers.2.mlp.up_proj.weight")
    a, b = (x[row["tensor"]].float() for x in (other, base))
    assert row["change"] == pytest.approx(float(0.5 * (a - b).norm() / b.norm()), rel=1e-4)
    assert (
        row["models"] == [{"weight": 0.5}]
        and "| layer 2 | 0.0" in (folder / "report.md").read_text()
    )


def test_dtypes(models):
    pair = [{"from": "a"}, {"from": "b"}]
    found = load_file(merge(models, "bf16", models=pair) / "model.safetensors")
    exact = load_file(merge(models, "f32", models=pair, dtype="float32") / "model.safetensors")
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16 and exact[name].dtype == torch.float32
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), name  # cast once


def test_a_model_that_sees_is_merged_whole(seeing_model, seeing_config, tmp_path, seeing_tokenizer):
    other = initialise(Gemma3(seeing_config), seed=3)
    save_model(other, tmp_path / "other", torch.float32)
    seeing_tokenizer.save(tmp_path / "other")
    (tmp_path / "seeing").symlink_to(seeing_model)
    merge(tmp_path, models=[{"from": "seeing"}, {"from": "other", "weight": 3.0}])
    found, first = load_model(tmp_path / "work" / "model"), load_model(seeing_model)
    for name, parameter in found.named_parameters():
        wanted = (first.get_parameter(name) + 3 * other.get_parameter(name)) / 4
        torch.testing.assert_close(parameter, wanted, rtol=0, atol=1e-6)
    assert sum("vision" in name for name, _ in found.named_parameters()) > 30
    text = tmp_path / "text"
    save_model(initialise(Gemma3(replace(seeing_config, vision=None)), seed=1), text, torch.float32)
    seeing_tokenizer.save(text)
    with pytest.raises(CheckpointError, match="`vision` is absent here and there in the first"):
        merge(tmp_path, "mixed", models=[{"from": "seeing"}, {"from": "text"}])


def test_compressed_weights_are_read_by_rows(models):
    """FP8 weights in one model, rows cut at odd places."""
    file = models / "a" / "model.safetensors"
    tensors = load_file(file)
    for name in [n for n in tensors if "mlp" in n or "self_attn.q_proj" in n]:
        weight = tensors[name].float()
        scale = weight.abs().amax(1, keepdim=True) / 448
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale.to(torch.bfloat16)
    save_file(tensors, file, {"format": "pt"})
    found = load_file(merge(models, models=[{"from": "a"}, {"from": "b"}]) / "model.safetensors")
    a, b = load_model(models / "a"), load_model(models / "b")
    wanted = (a.layers[0].mlp.up.weight + b.layers[0].mlp.up.weight) / 2
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"], wanted.to(torch.bfloat16))


def test_infinity_in_the_base_is_named(models):
    file = models / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.4.mlp.down_proj.weight"][7, 9] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        merge(models, **TIES)
    assert "down_proj.weight` of `base` has inf in row 7, column 9" in str(error.value)


def test_too_large_weights(models):
    pair = [{"from": "a", "weight": 3e38}, {"from": "b", "weight": 3e38}]
    with pytest.raises(CheckpointError, match="not finite after merging, although all models are"):
        merge(models, models=pair, parameters={"normalize": False})


def test_a_device_that_is_not_there(models):
    with pytest.raises(MachineError, match="the device `cuda:77` cannot be used"):
        merge(models, models=[{"from": "a"}], device="cuda:77")


def test_inputs_are_never_written_to(models):
    before = hashes(models / "a"), hashes(models / "base")
    merge(models, **TIES)
    assert (hashes(models / "a"), hashes(models / "base")) == before


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Five times the layers, three models read by TIES and one written: the same peak."""
    code = """
import resource, sys
from pathlib import Path
from singalaut.artifact import Work
from singalaut.merge.config import MergeConfig
from singalaut.merge.stream import run_merge
folder = Path(sys.argv[1])
config = MergeConfig.model_validate(
    {"models": [{"from": "a", "density": 0.5}, {"from": "b", "density": 0.3}], "base": "base",
     "method": "ties", "threads": 3})
work = Work(folder / "work")
work.path.mkdir()
models = {label: folder / "model" for label in config.inputs()}
run_merge(config, models=models, adapters={}, work=work, seed=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for layers in (2, 10):
        shape = Gemma3Config(512, 4096, layers, 4, 1, 128, 128.0, 8, 512, 512)
        folder = tmp_path / str(layers)
        noise = torch.randn(1 << 21, generator=torch.Generator().manual_seed(0))
        weights = (noise[: math.prod(s)].view(s) for s in parameter_shapes(shape).values())
        save_weights(folder / "model", shape, torch.bfloat16, weights)
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) / 1e3)
        size = (folder / "model" / "model.safetensors").stat().st_size / 1e6
        shutil.rmtree(folder)
    assert size > 120 and peaks[1] - peaks[0] < 30, (peaks, size)
