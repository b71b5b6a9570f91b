"""Models that see, as a whole: inspected, converted, merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from singalaut.artifact import Work
from singalaut.checkpoint.convert import convert
from singalaut.checkpoint.inspect import inspect, memory_rows
from singalaut.merge.config import MergeConfig
from singalaut.merge.stream import run_merge
from singalaut.model.config import SIZES, VisionConfig
from singalaut.model.hf import load_model
from singalaut.model.lora import adapters, add_adapter, merge_adapter, save_adapter


def test_inspection_counts_the_vision_part(seeing_model, seeing_config):
    facts = inspect(seeing_model)
    model = load_model(seeing_model)
    tower = sum(p.numel() for p in model.vision.tower.parameters())
    projector = sum(p.numel() for p in model.vision.projector.parameters())
    assert (facts["vision_parameters"], facts["projector_parameters"]) == (tower, projector)
    assert facts["parameters"] == seeing_config.num_parameters
    assert facts["tokens_per_image"] == 4
    assert facts["tokenizer"]["image_tokens_agree"]
    with_vision, without = (
        memory_rows(replace(SIZES["4b"], vision=vision)) for vision in (VisionConfig(), None)
    )
    more = (416_866_032 + 1152 * 2560 + 1152) * 2 / 2**30
    assert with_vision[0]["batch_1_gib"] - without[0]["batch_1_gib"] == pytest.approx(
        more, abs=0.01
    )


def test_a_directory_keeps_its_vision_part(seeing_model, tmp_path):
    convert(seeing_model, tmp_path / "half", dtype="bfloat16")
    wanted = load_model(seeing_model, torch.bfloat16).state_dict()
    found = load_model(tmp_path / "half", torch.bfloat16).state_dict()
    assert found.keys() == wanted.keys() and any(name.startswith("vision") for name in found)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@torch.no_grad()
def test_an_adapter_is_folded_into_a_model_that_sees(seeing_model, tmp_path):
    adapted = add_adapter(load_model(seeing_model), 4, 8.0, ("query", "up"), seed=1)
    for _, module in adapters(adapted):
        module.b.normal_(generator=torch.Generator().manual_seed(2))
    save_adapter(adapted, tmp_path / "adapter", "base")
    convert(tmp_path / "adapter", tmp_path / "merged", base=seeing_model, dtype="float32")
    found = load_model(tmp_path / "merged").state_dict()
    wanted = merge_adapter(adapted).state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_merging_keeps_the_vision_part(seeing_model, tmp_path):
    inputs = [{"from": "a", "weight": 0.3}, {"from": "b", "weight": 0.7}]
    models = {"models.0": seeing_model, "models.1": seeing_model}
    config = MergeConfig(models=inputs)
    run_merge(config, models=models, adapters={}, work=Work(tmp_path), seed=0)
    wanted, found = load_model(seeing_model), load_model(tmp_path / "model")
    assert found.config == wanted.config
    for name, parameter in wanted.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), parameter, rtol=1e-6, atol=1e-7)
