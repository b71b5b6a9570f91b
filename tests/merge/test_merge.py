"""Linear merging against the formula, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from singalaut.artifact import Work
from singalaut.errors import CheckpointError, RecipeError
from singalaut.merge.config import MergeConfig
from singalaut.merge.stream import run_merge
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import load_model, save_model
from singalaut.text.tokenizer import Tokenizer


@pytest.fixture
def other_model(tmp_path, tiny_config, tiny_tokenizer):
    folder = tmp_path / "other"
    save_model(initialise(Gemma3(tiny_config), seed=1), folder, torch.float32)
    tiny_tokenizer.save(folder)
    return folder


def merge(tmp_path, models, weights, **settings):
    inputs = [{"from": f"m{i}", "weight": w} for i, w in enumerate(weights)]
    config = MergeConfig(models=inputs, parameters=settings)
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    folders = {f"models.{i}": model for i, model in enumerate(models)}
    run_merge(config, models=folders, adapters={}, work=Work(work), seed=0)
    return load_model(work / "model")


def test_linear_is_the_weighted_mean(tmp_path, tiny_model, other_model):
    a, b = load_model(tiny_model), load_model(other_model)
    for weights, normalize, shares in (
        ((1.0, 3.0), True, (0.25, 0.75)),
        ((0.5, 0.25), False, (0.5, 0.25)),
        ((1.0, 0.0), True, (1.0, 0.0)),
    ):
        merged = merge(tmp_path, [tiny_model, other_model], weights, normalize=normalize)
        for name, found in merged.named_parameters():
            wanted = shares[0] * a.get_parameter(name) + shares[1] * b.get_parameter(name)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert not torch.equal(a.embedding.weight, b.embedding.weight)


def test_the_result_is_a_whole_model(tmp_path, tiny_model, other_model):
    merge(tmp_path, [tiny_model, other_model], (0.5, 0.5))
    folder = tmp_path / "work" / "model"
    assert Tokenizer.load(folder).vocab_size == 512
    assert (folder / "chat_template.jinja").exists()


def test_weights_that_sum_to_zero(tmp_path, tiny_model, other_model):
    with pytest.raises(RecipeError, match="sum to zero"):
        merge(tmp_path, [tiny_model, other_model], (1.0, -1.0))


def test_models_of_different_shape(tmp_path, tiny_model, other_model):
    file = other_model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sliding_window": 16}))
    with pytest.raises(CheckpointError, match="`window` is 16 here and 8"):
        merge(tmp_path, [tiny_model, other_model], (0.5, 0.5))


def test_not_a_number_is_named(tmp_path, tiny_model, other_model, tiny_config):
    damaged = load_model(other_model)
    damaged.layers[2].mlp.up.weight.data[0, 0] = float("nan")
    save_model(damaged, other_model, torch.float32)
    with pytest.raises(
        CheckpointError,
        match=r"layers\.2\.mlp\.up_proj\.weight` of `m1` has nan in row 0, column 0",
    ):
        merge(tmp_path, [tiny_model, other_model], (0.5, 0.5))
    assert not (tmp_path / "work" / "model" / "config.json").exists()
