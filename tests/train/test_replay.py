"""Rows that reinforcement and alignment learn again beside their own."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from singalaut.artifact import Work
from singalaut.errors import RecipeError
from singalaut.model.hf import load_model
from singalaut.recipe.load import load_recipe
from singalaut.train import apo
from singalaut.train.config import ApoConfig, ReplayConfig
from singalaut.train.replay import open_replay
from singalaut.train.step import ALONE, accumulate, validate


@pytest.fixture
def talk(tmp_path):
    file = tmp_path / "talk.jsonl"
    with file.open("w") as out:
        for n in range(20):
            turns = [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": "ok" * (n + 1)},
            ]
            out.write(json.dumps({"messages": turns}) + "\n")
    return file


def replay_of(talk, model, seed=3, **more):
    config = ReplayConfig.model_validate({"data": [{"path": "talk", "name": "talk"}], **more})
    return open_replay(config, model, [talk], seed)


def test_the_gradient_is_that_of_the_weighted_mean_loss(talk, tiny_model):
    model = load_model(tiny_model).requires_grad_(True)
    micros = replay_of(talk, tiny_model, rows=7).micros(2, 60)
    assert len(micros) > 1
    tally = accumulate(model, micros, ALONE, 0.3)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    losses = []
    for micro in micros:
        rows = zip(
            micro.tokens.split(micro.lengths, 1), micro.mask.split(micro.lengths, 1), strict=True
        )
        for tokens, mask in rows:
            logits = model.logits(model(tokens))[0, :-1]
            learned = mask[0, 1:]
            losses.append(cross_entropy(logits[learned], tokens[0, 1:][learned], reduction="none"))
    mean = torch.cat(losses).mean()
    assert tally.mean(ALONE) == pytest.approx(mean.item(), rel=1e-5)
    wanted = torch.autograd.grad(0.3 * mean, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            1.01 * found["embedding.weight"], wanted[0], rtol=1e-4, atol=1e-6
        )


def test_a_step_has_its_own_rows_whoever_asks(talk, tiny_model):
    one, other = replay_of(talk, tiny_model), replay_of(talk, tiny_model)
    first, second = one.micros(0, 512)[0], one.micros(1, 512)[0]
    assert torch.equal(other.micros(1, 512)[0].tokens, second.tokens)
    assert not torch.equal(first.tokens, second.tokens)
    assert not torch.equal(
        replay_of(talk, tiny_model, seed=4).micros(0, 512)[0].tokens, first.tokens
    )


def test_what_was_learned_before_is_kept(talk, tiny_model, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "1 plus 1?", "chosen": "It is 2.", "rejected": "I do not know"}
    pairs.write_text((json.dumps(row) + "\n") * 4)

    def aligned(name, replay):
        (tmp_path / name).mkdir()
        work = Work(tmp_path / name)
        config = ApoConfig.model_validate(
            {"data": [{"path": "pairs"}], "steps": 12, "batch_size": 2, "learning_rate": 1e-2}
            | ({"replay": replay} if replay else {})
        )
        apo.run_apo(config, model=tiny_model, data=[pairs], work=work, seed=3, replayed=[talk])
        loss, count = validate(load_model(work.path / "model"), measured, ALONE).sum((0, 1))
        return loss / count, [m["replay_loss"] for m in work.metrics() if "replay_loss" in m]

    measured = replay_of(talk, tiny_model).micros(0, 512)
    without, nothing = aligned("without", None)
    kept, losses = aligned("kept", {"data": [{"path": "talk"}], "weight": 1.0})
    assert kept < 0.8 * without and not nothing
    assert len(losses) == 12 and losses[-1] < losses[0]


def test_its_files_are_inputs_of_the_stage(talk, tmp_path):
    recipe = tmp_path / "r.toml"
    text = """
name = "r"
[model]
base = "m"
[[stage]]
kind = "apo"
steps = 1
data = [{ path = "talk.jsonl" }]
replay = { data = [{ path = "FILE" }], rows = 4 }
"""
    recipe.write_text(text.replace("FILE", "talk.jsonl"))
    (stage,) = load_recipe(recipe).stage
    assert stage.files()["replay.0"] == "talk.jsonl"
    recipe.write_text(text.replace("rows = 4", "row = 4"))
    with pytest.raises(RecipeError, match="rows"):
        load_recipe(recipe)
