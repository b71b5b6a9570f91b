"""Gradients of many documents at once against one backward pass each; projection; Adam's step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from singalaut.data.batches import lay_out, micro_batches
from singalaut.data.config import DataSource
from singalaut.data.pair_batches import pack_pairs
from singalaut.data.preference import make_pairs
from singalaut.model.hf import load_model
from singalaut.model.lora import add_adapter
from singalaut.select.features import adam_steps, project
from singalaut.select.gradients import (
    error_norms,
    pair_gradients,
    sample_gradients,
    sample_losses,
)
from singalaut.select.project import Sketch
from singalaut.train.optim import adamw
from singalaut.train.pairs import PairLosses, row_losses
from singalaut.train.step import train_step

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


@pytest.fixture
def network(tiny_model):
    model = add_adapter(load_model(tiny_model), 4, 8.0, TARGETS, seed=1).train()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):  # an adapter that has learned something
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return model


@pytest.fixture
def store(open_file, pool_file):
    return open_file(pool_file)


def one_by_one(model, store, documents):
    """[n, weights]: by one backward pass for each document, alone in its row."""
    rows = []
    for document in documents:
        sample_losses(model, lay_out(store, [document]))[0].backward()
        found = [p.grad.flatten() for _, p in named(model)]
        rows.append(torch.cat(found).clone())
        model.zero_grad(set_to_none=True)
    return torch.stack(rows)


def named(model):
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def at_once(model, micro):
    found = dict(sample_gradients(model, micro).pieces)
    return torch.cat([found[name] for name, _ in named(model)], 1)


def worst(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def spearman(first, second):
    """The correlation of ranks; no two values are equal here."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return np.corrcoef(ranks)[0, 1]


def test_gradients_at_once_equal_one_by_one(network, store):
    """≤ 1e-5 of the largest; documents of different lengths in one row."""
    documents = [0, 3, 7, 12, 1, 30]
    micro = lay_out(store, documents)
    assert len(set(micro.lengths)) > 2
    wanted = one_by_one(network, store, documents)
    assert worst(at_once(network, micro), wanted) < 1e-5
    shifted = lay_out(store, documents)
    moved = (micro.lengths[0] + 1, micro.lengths[1] - 1, *micro.lengths[2:])
    object.__setattr__(shifted, "lengths", moved)  # borders in the wrong place are noticed
    assert worst(at_once(network, shifted), wanted) > 1e-3


def test_losses_equal_all_logits(network, store):
    micro = lay_out(store, [0, 3])
    start = 0
    found = sample_losses(network, micro)
    errors = error_norms(network, micro)
    for place, length in enumerate(micro.lengths):
        tokens = micro.tokens[:, start : start + length]
        mask = micro.mask[0, start + 1 : start + length]
        p = network.logits(network(tokens))[0, :-1].float().softmax(-1)[mask]
        right = tokens[0, 1:][mask]
        loss = -p.gather(1, right[:, None]).log().mean()
        assert found[place].item() == pytest.approx(loss.item(), rel=1e-5)
        error = (p - torch.nn.functional.one_hot(right, p.shape[1])).norm(dim=1).mean()
        assert errors[place].item() == pytest.approx(error.item(), rel=1e-5)
        start += length


def test_preconditioned_gradients_are_steps_of_adam(network, store):
    """One more step of the library's optimiser along a gradient alone, ≤ 1e-3 of the largest."""
    optimizer = adamw(network, 1e-3, 0.0)
    for step in range(3):
        micros = micro_batches(store, np.arange(step, step + 4), 4096)
        train_step(network, optimizer, micros, 1e-3, 1.0)
    documents = [2, 9]
    before = {name: p.detach().clone() for name, p in named(network)}
    steps = adam_steps(network, optimizer)
    found = {
        name: steps(name, piece)
        for name, piece in sample_gradients(network, lay_out(store, documents)).pieces
    }
    state = {
        name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in named(network)
    }
    for place, document in enumerate(documents):
        sample_losses(network, lay_out(store, [document]))[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, parameter in named(network):
            taken = (before[name] - parameter.detach()).flatten() / 1e-3
            assert worst(found[name][place], taken) < 1e-3, name  # of weights in float32
            parameter.data.copy_(before[name])
            for key, value in state[name].items():
                optimizer.state[parameter][key].copy_(value)


def test_projection_keeps_the_order_of_inner_products(network, store):
    """Spearman ≥ 0.95 at the default size; a projection of another seed has nothing in common."""
    documents = np.arange(40)
    micro = lay_out(store, documents.tolist())
    exact = at_once(network, micro)
    exact = exact / exact.norm(dim=1, keepdim=True)
    sketch = Sketch(8192, 5, torch.device("cpu"))
    vectors, norms, _ = project(sample_gradients(network, micro), sketch, None)
    assert torch.allclose(norms, at_once(network, micro).norm(dim=1), rtol=1e-4)
    pairs = np.triu_indices(40, 1)
    wanted = (exact @ exact.T).numpy()[pairs]
    found = (vectors @ vectors.T).numpy()[pairs]
    assert spearman(wanted, found) >= 0.95
    other, _, _ = project(
        sample_gradients(network, micro), Sketch(8192, 6, torch.device("cpu")), None
    )
    assert spearman(wanted, (vectors @ other.T).numpy()[pairs]) < 0.5


def test_the_projection_is_right_on_average():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3000, generator=generator)
    y = y + 0.5 * x
    found = []
    for seed in range(60):
        total = torch.zeros(256, 2)
        Sketch(256, seed, torch.device("cpu")).add(total, "w", torch.stack([x, y]))
        found.append(float(total[:, 0] @ total[:, 1]))
    exact = float(x @ y)
    spread = ((x.norm() ** 2 * y.norm() ** 2 + exact**2) / 256).sqrt().item()
    assert abs(np.mean(found) - exact) < 4 * spread / 60**0.5
    assert np.std(found) == pytest.approx(spread, rel=0.3)


def pairs_of(tmp_path, model):
    """Pairs of different lengths, and a reference whose log-probabilities are not the model's."""
    file = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": f"{n} plus {n}?",
            "chosen": f"It is {2 * n}." * (1 + n % 2),
            "rejected": "no " * n,
        }
        for n in range(1, 6)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = make_pairs((DataSource(path="pairs"),), [file], model, 512, tmp_path / "store")
    records = pairs.records
    answers = np.stack([records["chosen_answer"], records["rejected_answer"]], 1).astype(np.int64)
    return pairs, answers, -4.0 * answers.astype(np.float32)


@pytest.mark.parametrize("name", ["apo-zero", "apo-down", "dpo", "ipo"])
def test_gradients_of_pairs_equal_one_by_one(tmp_path, tiny_model, network, name):
    """≤ 1e-5 of the largest: each pair's own loss, backward, alone in its row."""
    pairs, answers, reference = pairs_of(tmp_path, tiny_model)
    loss, chosen = PairLosses(name, 0.1, 0.0), np.arange(len(pairs))
    (row,) = pack_pairs(pairs, chosen, 10_000)
    found = dict(pair_gradients(network, row, answers, reference, loss).pieces)
    at_once = torch.cat([found[name] for name, _ in named(network)], 1)
    wanted = []
    for pair in row.places:
        (alone,) = pack_pairs(pairs, chosen[pair : pair + 1], 10_000)
        row_losses(network, alone, answers[pair, None], reference[pair, None], loss)[0].backward()
        wanted.append(torch.cat([p.grad.flatten() for _, p in named(network)]))
        network.zero_grad(set_to_none=True)
    assert worst(at_once, torch.stack(wanted)) < 1e-5
    other = PairLosses(name, 0.2, 0.0)
    moved = dict(pair_gradients(network, row, answers, reference, other).pieces)
    assert worst(torch.cat([moved[n] for n, _ in named(network)], 1), torch.stack(wanted)) > 1e-3
