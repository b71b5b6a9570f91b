"""Fine-tuning against `transformers` + `peft`, and resumption to the bit."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch

from singalaut.artifact import Work
from singalaut.data.batches import micro_batches
from singalaut.errors import DataError
from singalaut.model.hf import load_model, save_model
from singalaut.model.lora import add_adapter
from singalaut.model.tensors import TensorReader
from singalaut.train import sft
from singalaut.train.config import SftConfig
from singalaut.train.loop import why_left_out
from singalaut.train.optim import adamw, scheduled_rate
from singalaut.train.step import train_step

MEASURED = {"seconds", "tokens_per_second", "flops_per_second", "memory_gib"}  # by the clock


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with file.open("w") as out:
        for number in range(12):
            question, answer = f"{number} plus {number}?" * (1 + number % 3), f"It is {2 * number}."
            messages = [("user", question), ("assistant", answer)]
            turns = [{"role": r, "content": c} for r, c in messages]
            out.write(json.dumps({"messages": turns, "language": "en"}) + "\n")
    return file


def run(tmp_path, model, rows, name="work", **settings):
    settings = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "save_every": 2} | settings
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    config = SftConfig(data=({"path": "rows"},), **settings)
    work = Work(folder)
    sft.run_sft(config, model=model, data=[rows], work=work, seed=3)
    return work


def weights(folder):
    with TensorReader.open(folder) as reader:
        return {name: reader.read(name).clone() for name in reader}


@pytest.mark.parametrize("adapter", [None, {"rank": 4}])
def test_the_loss_falls_and_the_model_is_whole(adapter, tmp_path, tiny_model, rows):
    work = run(tmp_path, tiny_model, rows, adapter=adapter, steps=20, warmup_steps=2)
    losses = [row["loss"] for row in work.metrics()]
    assert len(losses) == 20 and sum(losses[-3:]) < 0.8 * sum(losses[:3])
    tuned = load_model(work.path / "model")
    assert tuned.config.eos_ids == (1, 106)
    assert (work.path / "adapter").exists() == (adapter is not None)
    assert work.facts["data"][0]["rows"] == 12


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapter": {"rank": 4}},
        {"optimizer": "muon", "precision": "master", "ema": 0.9},
        {"optimizer": "muon", "precision": "rounded", "moments": "int8"},
        {"moments": "int8", "ema": 0.9, "held_out": 2},
        {"moments": "int8", "precision": "rounded"},
    ],
    ids=["all", "adapter", "muon", "muon-int8", "int8", "int8-rounded"],
)
def test_a_killed_run_goes_on_to_the_same_bits(settings, tmp_path, tiny_model, rows, monkeypatch):
    whole = run(tmp_path, tiny_model, rows, "whole", **settings)
    real, steps = sft.train_step, []

    def dies(*args):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(1)
        return real(*args)

    monkeypatch.setattr(sft, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny_model, rows, "killed", **settings)
    monkeypatch.setattr(sft, "train_step", real)
    assert len([m for m in Work(tmp_path / "killed").metrics() if "loss" in m]) == 5
    resumed = run(tmp_path, tiny_model, rows, "killed", **settings)

    def plain(work):
        return [{k: v for k, v in m.items() if k not in MEASURED} for m in work.metrics()]

    assert plain(resumed) == plain(whole)
    found, wanted = weights(resumed.path / "model"), weights(whole.path / "model")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    start = weights(tiny_model)
    assert not all(torch.equal(wanted[name], start[name]) for name in start)


def test_splitting_a_step_changes_nothing(tmp_path, tiny_model, rows):
    together = run(tmp_path, tiny_model, rows, "together", micro_tokens=10_000)
    apart = run(tmp_path, tiny_model, rows, "apart", micro_tokens=1)
    for one, other in zip(together.metrics(), apart.metrics(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


def test_steps_equal_transformers_with_peft(tiny_model, rows, load, example):
    """The same conversations, unpacked, through the library's loss on all logits."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    ours = add_adapter(load_model(tiny_model), 4, 8.0, ("query", "down"), seed=1).train()
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    theirs = get_peft_model(base, config)
    names = {"query": "self_attn.q_proj", "down": "mlp.down_proj"}
    for name, parameter in ours.named_parameters():
        if name.endswith((".a", ".b")):
            _, layer, _, leaf, which = name.split(".")
            place = f"base_model.model.model.layers.{layer}.{names[leaf]}.lora_{which.upper()}"
            theirs.get_parameter(f"{place}.default.weight").data.copy_(parameter.data)
    our_optimizer = adamw(ours, 1e-2, 0.0)
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    their_optimizer = torch.optim.AdamW(trainable, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(5):
        store, batch = load(rows, tiny_model, 4, 4 * step)
        micros = micro_batches(store, batch, 2048)
        ours_loss = train_step(ours, our_optimizer, micros, 1e-2, 1.0).loss
        total, count = 0.0, int(store.documents["learned"][batch].sum())
        for document in batch.tolist():
            ids, mask = example(store, document)
            tokens = torch.tensor(ids)[None]
            labels = tokens.masked_fill(~torch.tensor(mask)[None], -100)
            loss = theirs(tokens, labels=labels).loss * int(mask.sum()) / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        their_optimizer.step()
        their_optimizer.zero_grad()
        assert ours_loss == pytest.approx(total, rel=1e-5), step


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny_model, rows):
    damaged = load_model(tiny_model)
    damaged.layers[1].mlp.up.weight.data[0, 0] = float("nan")
    shutil.copytree(tiny_model, tmp_path / "damaged")
    save_model(damaged, tmp_path / "damaged", torch.float32)
    with pytest.raises(DataError, match=r"step 2 .*: loss nan.* not finite, the last of 3 bad"):
        run(tmp_path, tmp_path / "damaged", rows)


def test_a_spike_is_told_from_what_is_not_finite():
    assert why_left_out((2.0, 9.0), 4.5) == "loss 2, gradient norm 9, a spike: more than 4.5"
    for fault, limit in (((math.nan, 9.0), 4.5), ((2.0, math.inf), 4.5), ((2.0, math.inf), None)):
        assert why_left_out(fault, limit).endswith("not finite")


def test_the_schedule_rises_and_falls():
    rates = [scheduled_rate(step, 100, 10, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[55] == pytest.approx(0.55)


def test_norms_and_embeddings_are_not_decayed(tiny_model):
    model = load_model(tiny_model)
    model.requires_grad_(True)
    decayed, exempt = adamw(model, 1e-3, 0.1).param_groups
    assert decayed["weight_decay"] == 0.1 and exempt["weight_decay"] == 0.0
    ids = {id(p) for p in exempt["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in ids) == ("norm" in name or name.startswith("embedding")), name
