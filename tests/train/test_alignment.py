"""Alignment against `transformers` with all logits and plain formulas; resumption; bad rows."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from singalaut.artifact import Work
from singalaut.contracts import Message
from singalaut.data.config import DataSource
from singalaut.data.pair_batches import PairOrder, hold_out_pairs, pack_pairs
from singalaut.data.preference import make_pairs
from singalaut.errors import DataError
from singalaut.model.hf import load_model
from singalaut.model.tensors import TensorReader
from singalaut.text.chat import ChatFormat
from singalaut.text.tokenizer import Tokenizer
from singalaut.train import apo, reference
from singalaut.train.config import ApoConfig
from singalaut.train.pairs import PairLosses, measure_pairs, pair_step, reference_logprobs

LOSSES = ("apo-zero", "apo-down", "dpo", "ipo", "simpo")


def row(number, **more):
    return {
        "prompt": f"{number} plus {number}?" * (1 + number % 3),
        "chosen": f"It is {2 * number}.",
        "rejected": "I do not know" + "!" * number,
        "language": "en" if number % 2 else "th",
    } | more


@pytest.fixture
def write(tmp_path):
    def write_rows(rows, name="pairs.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(each) + "\n" for each in rows))
        return file

    return write_rows


@pytest.fixture
def pairs(write, tiny_model, tmp_path):
    file = write([row(i) for i in range(10)])
    return make_pairs([DataSource(path="pairs")], [file], tiny_model, 512, tmp_path / "store")


def run(tmp_path, model, file, name="work", **settings):
    settings = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "save_every": 2} | settings
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    work = Work(folder)
    config = ApoConfig(data=({"path": "pairs"},), **settings)
    apo.run_apo(config, model=model, data=[file], work=work, seed=3)
    return work


def plain_logprob(model, words):
    """The log-probability of the marked tokens of one conversation, by all logits."""
    words = torch.from_numpy(words.astype(np.int64))
    tokens, marked = words & (2**31 - 1), words >= 2**31
    logprobs = model(tokens[None]).logits[0].float().log_softmax(-1)
    picked = logprobs[:-1].gather(1, tokens[1:, None])[:, 0]
    return picked[marked[1:]].sum(), int(marked.sum())


def plain_loss(name, chosen, rejected, reference, beta, gamma):
    """The formulas of the papers, for one pair of (log-probability, tokens)."""
    (w, w_tokens), (v, v_tokens) = chosen, rejected
    r_w, r_l = w - reference[0], v - reference[1]
    sigmoid = torch.sigmoid
    return {
        "apo-zero": lambda: 1 - sigmoid(beta * r_w) + sigmoid(beta * r_l),
        "apo-down": lambda: sigmoid(beta * r_w) + 1 - sigmoid(beta * (r_w - r_l)),
        "dpo": lambda: -logsigmoid(beta * (r_w - r_l)),
        "ipo": lambda: (r_w / w_tokens - r_l / v_tokens - 1 / (2 * beta)) ** 2,
        "simpo": lambda: -logsigmoid(beta * (w / w_tokens - v / v_tokens) - gamma),
    }[name]()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_equal_plain_formulas(name, pairs, tiny_model):
    """≤ 1e-5, relative to the largest; the reference is not the model, and pairs are packed."""
    from transformers import AutoModelForCausalLM

    ours = load_model(tiny_model).requires_grad_(True)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    chosen = np.array([7, 2, 5, 0])
    rows = pack_pairs(pairs, chosen, 250)
    assert 1 < len(rows) < 4
    records = pairs.records[chosen]
    answers = np.stack([records["chosen_answer"], records["rejected_answer"]], 1).astype(np.int64)
    scored = reference_logprobs(ours, rows, 4) - np.float32([[1.0, -2.0]])
    loss = PairLosses(name, 0.3, 0.4)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.0)
    seen = {}

    def keep(*_):
        for place, parameter in ours.named_parameters():
            seen[place] = parameter.grad.clone()

    optimizer.register_step_pre_hook(keep)
    found = pair_step(ours, optimizer, rows, answers, scored, loss, 0.0, 1e9)
    total = 0.0
    for place, pair in enumerate(chosen):
        both = [plain_logprob(theirs, words) for words in pairs.words(int(pair))]
        assert [count for _, count in both] == answers[place].tolist()
        value = plain_loss(name, *both, scored[place], 0.3, 0.4)
        assert found.table[place, 0] == pytest.approx(value.item(), rel=1e-5, abs=1e-5)
        (value / 4).backward()
        total += value.item() / 4
    assert found.loss == pytest.approx(total, rel=1e-5)
    names = {
        "layers.1.attention.query.weight": "model.layers.1.self_attn.q_proj.weight",
        "layers.5.mlp.down.weight": "model.layers.5.mlp.down_proj.weight",
        "embedding.weight": "model.embed_tokens.weight",
    }
    for our_name, their_name in names.items():
        wanted = theirs.get_parameter(their_name).grad
        worst = (seen[our_name] - wanted).abs().max() / wanted.abs().max()
        assert worst < 1e-5, (our_name, worst)
    swapped = measure_pairs(ours, rows, answers, scored[:, ::-1].copy(), loss)
    assert name == "simpo" or abs(float(swapped[:, 0].mean()) - total) > 1e-3


def test_only_the_last_answer_is_marked(write, tiny_model, tmp_path):
    turns = [("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "good")]
    both = [{"role": r, "content": c} for r, c in turns]
    file = write([{"chosen": both, "rejected": [*both[:-1], {**both[-1], "content": "bad"}]}])
    made = make_pairs([DataSource(path="p")], [file], tiny_model, 512, tmp_path / "one")
    tokenizer = Tokenizer.load(tiny_model)
    chat = ChatFormat.load(tiny_model, tokenizer)
    prompt = chat.encode([Message(r, c) for r, c in turns[:-1]])
    for words, answer in zip(made.words(0), ("good", "bad"), strict=True):
        marked = np.flatnonzero(words >= 2**31)
        assert marked[0] == len(prompt) and np.all(np.diff(marked) == 1)
        said = [int(word) & (2**31 - 1) for word in words[marked]]
        assert tokenizer.decode(said[:-1]) == answer and said[-1] == tokenizer.end_of_turn_id


def test_margins_grow_and_the_model_is_whole(tmp_path, tiny_model, write):
    file = write([row(i) for i in range(12)])
    work = run(tmp_path, tiny_model, file, adapter={"rank": 4}, steps=25, held_out=2)
    steps = [line for line in work.metrics() if "loss" in line]
    assert steps[0]["margin"] == 0.0 and steps[0]["loss"] == pytest.approx(1.0, abs=1e-6)
    assert steps[-1]["margin"] > 1 and steps[-1]["accuracy"] == 1.0
    assert set(steps[-1]["by_language"]) <= {"en", "th"}
    measured = [line for line in work.metrics() if "validation_loss" in line]
    assert [line["step"] for line in measured] == [0, 25]
    assert measured[1]["validation_margin"] > measured[0]["validation_margin"]
    assert load_model(work.path / "model").config.eos_ids == (1, 106)
    assert (work.path / "adapter" / "adapter_model.safetensors").exists()
    report = json.loads((work.path / "report" / "pairs.json").read_bytes())
    assert report["pairs"] == 12 and report["lengths"]["en"]["chosen_is_longer"] == 0.0


@pytest.mark.parametrize("adapter", [None, {"rank": 4}])
def test_a_killed_run_goes_on_to_the_same_bits(adapter, tmp_path, tiny_model, write, monkeypatch):
    file = write([row(i) for i in range(10)])
    monkeypatch.setattr(reference, "PART", 4)
    whole = run(tmp_path, tiny_model, file, "whole", adapter=adapter)
    scored, steps = [], []
    real_score, real_step = reference.reference_logprobs, apo.pair_step

    def scores(*args):
        if len(scored) == 2:
            scored.append("killed")
            raise KeyboardInterrupt
        scored.append(args[2])
        return real_score(*args)

    def learns(*args):
        if len(steps) == 3:
            steps.append("killed")
            raise KeyboardInterrupt
        steps.append(1)
        return real_step(*args)

    monkeypatch.setattr(reference, "reference_logprobs", scores)
    monkeypatch.setattr(apo, "pair_step", learns)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, tiny_model, file, "killed", adapter=adapter)
    resumed = run(tmp_path, tiny_model, file, "killed", adapter=adapter)
    assert [n for n in scored if n != "killed"] == [4, 4, 2]  # no pair twice, none lost

    measured = {"seconds", "tokens_per_second", "flops_per_second", "memory_gib"}  # by the clock

    def plain(work):
        return [{k: v for k, v in m.items() if k not in measured} for m in work.metrics()]

    assert plain(resumed) == plain(whole)
    with (
        TensorReader.open(whole.path / "model") as wanted,
        TensorReader.open(resumed.path / "model") as found,
    ):
        assert all(torch.equal(found.read(name), wanted.read(name)) for name in wanted)


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint(tmp_path, tiny_model, write, monkeypatch):
    file = write([row(i) for i in range(6)])
    real = apo.pair_step

    def asked(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(apo, "pair_step", asked)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, tiny_model, file, save_every=100)
    assert ended.value.code == 0
    monkeypatch.setattr(apo, "pair_step", real)
    assert len(run(tmp_path, tiny_model, file).metrics()) == 6


def test_rows_that_are_no_pair_are_counted(write, tiny_model, tmp_path):
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    other = {"role": "assistant", "content": "b"}
    bad = [
        row(1, chosen="same", rejected="same "),
        row(1, chosen="  "),
        row(1, rejected=""),
        row(1, rejected=7),
        {"chosen": [user, answer], "rejected": [{**user, "content": "other"}, other]},
        {"chosen": [user, answer, user, answer], "rejected": [user, other]},
        {"prompt": [user, answer], "chosen": "a", "rejected": "b"},
        row(1, chosen="long " * 300),
        row(1, rejected="half of a pair \ud800"),
        {**row(1), "rejected_is_cut": "yes"},
    ]
    good = [
        row(1),
        {"question": "q", "chosen": "a", "rejected": "b", "system": "be kind"},
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b"},
        {"prompt": "q", "chosen": [user, answer], "rejected": [user, other]},
        {"prompt": [user], "chosen": [answer], "rejected": [other]},
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: b",
            "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: c",
        },
    ]
    file = write([*bad, *good])
    made = make_pairs([DataSource(path="p")], [file], tiny_model, 512, tmp_path / "made")
    assert len(made) == len(good)
    reasons = {entry["reason"]: entry for entry in made.about["refused"]}
    assert sum(entry["rows"] for entry in reasons.values()) == len(bad)
    assert reasons["the chosen and the rejected answer are identical"]["rows"] == 1
    assert all("row " in entry["examples"][0] for entry in reasons.values())
    with pytest.raises(DataError, match="no pair to learn from"):
        make_pairs([DataSource(path="p")], [write(bad)], tiny_model, 512, tmp_path / "none")


def test_every_pair_is_used_once_in_a_pass(pairs):
    learned, held_out = hold_out_pairs(pairs, 2, seed=1)
    assert len(held_out) == 4 and not set(learned) & set(held_out)
    order = PairOrder(learned, seed=1)
    first, second = order.pairs(0, 6), order.pairs(6, 12)
    assert sorted(first) == sorted(second) == sorted(learned)
    assert not np.array_equal(first, second)
    pieces = [order.pairs(n, n + 1) for n in range(12)]
    assert np.array_equal(np.concatenate(pieces), np.concatenate([first, second]))


@pytest.mark.parametrize(("each", "held"), [(0, 0), (1, 2), (3, 4), (9, 4)])
def test_prompts_are_held_out_whole(each, held, tiny_model, tmp_path):
    rows = [
        {"prompt": f"q{n % 4}", "chosen": f"yes {n}", "rejected": f"no {n}", "language": "en"}
        for n in range(8)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = make_pairs(
        [DataSource(path="p")], [tmp_path / "p.jsonl"], tiny_model, 512, tmp_path / "m"
    )
    learned, held_out = hold_out_pairs(made, each, seed=1)
    assert len(held_out) == held and sorted([*learned, *held_out]) == list(range(8))
    assert not {n % 4 for n in learned} & {n % 4 for n in held_out}


def test_settings_that_do_not_fit_are_refused():
    for settings in ({}, {"loss": "simpo"}, {"gamma": 1.0}, {"epochs": 1.0}):
        with pytest.raises(ValueError, match="it needs"):
            ApoConfig(data=({"path": "p"},), **({"steps": 1} if settings else {}), **settings)
