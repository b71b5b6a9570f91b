"""Packed rows give every token the loss it has alone, in window and global layers.

The tiny model has two global layers among six; windows of 4, 40 and 300 tokens are shorter than
all conversations, in between, and longer.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from singalaut.data.batches import PackedBatches, lay_out
from singalaut.data.cache import cached_store
from singalaut.data.config import DataSource
from singalaut.data.mix import mixture
from singalaut.model.attention import Packed
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model


@pytest.fixture
def packed(tmp_path, tiny_model):
    """A store and its rows of at most 200 tokens."""
    file = tmp_path / "rows.jsonl"
    with file.open("w") as out:
        for number in range(24):
            turns = [
                ("user", "what " * (number % 5) + "?"),
                ("assistant", "th" * (number**2 % 31 + 1)),
            ]
            turns += [("user", "and?"), ("assistant", "ที่ the")] * (number % 3 == 0)
            messages = [{"role": role, "content": content} for role, content in turns]
            out.write(json.dumps({"messages": messages}) + "\n")
    store = cached_store((DataSource(path="rows"),), [file], tiny_model, 200)
    mix = mixture(store, 0, weights=[1.0], limits=[None])
    batches = PackedBatches(store, mix, row_tokens=200, rows_in_batch=1)
    return store, [next(batches)[0] for _ in range(batches.rows_in_pass(0))]


@torch.no_grad()
def token_losses(model, row, plan, positions):
    """Loss of each token given those before it; the first of each document has none."""
    logits = model(row.tokens, positions, plan) @ model.embedding.weight.T
    losses = cross_entropy(logits[0, :-1], row.tokens[0, 1:], reduction="none")
    return torch.cat([losses.new_zeros(1), losses])


def losses_alone(model, store, row):
    parts = []
    for document in row.documents:
        alone = lay_out(store, [document])
        plan = Packed(alone.lengths)
        parts.append(token_losses(model, alone, plan, plan.positions()))
    return parts


def with_window(folder, config, window):
    model = Gemma3(replace(config, window=window)).eval()
    model.load_state_dict(load_model(folder, torch.float32).state_dict())
    return model


class OpenBorders:
    """A plan that forgets the borders of documents in layers with, or without, a window."""

    def __init__(self, lengths, in_windows):
        self._in_windows = in_windows
        self._kept, self._open = Packed(lengths), Packed((sum(lengths),))

    def attend(self, layer, queries, keys, values, scale, window):
        is_open = (window is not None) == self._in_windows
        plan = self._open if is_open else self._kept
        return plan.attend(layer, queries, keys, values, scale, window)


@pytest.mark.parametrize("window", [4, 40, 300])
def test_losses_packed_and_alone(window, packed, tiny_model, tiny_config):
    store, rows = packed
    model = with_window(tiny_model, tiny_config, window)
    lengths = [length for row in rows for length in row.lengths]
    assert len(lengths) == 24 > 2 * len(rows)
    shorter = sum(length <= window for length in lengths)
    assert {4: shorter == 0, 40: 5 < shorter < 19, 300: shorter == 24}[window]
    for row in rows:
        plan = Packed(row.lengths)
        together = token_losses(model, row, plan, plan.positions()).split(row.lengths)
        for one, alone in zip(together, losses_alone(model, store, row), strict=True):
            torch.testing.assert_close(one[1:], alone[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("in_windows", [True, False])
def test_open_borders_are_noticed(in_windows, packed, tiny_model, tiny_config):
    """In either kind of layer alone."""
    store, rows = packed
    model = with_window(tiny_model, tiny_config, 40)
    row = next(row for row in rows if len(row.lengths) > 1)
    plan = OpenBorders(row.lengths, in_windows)
    positions = Packed(row.lengths).positions()
    together = token_losses(model, row, plan, positions).split(row.lengths)
    alone = losses_alone(model, store, row)
    errors = [(a[1:] - b[1:]).abs().max().item() for a, b in zip(together, alone, strict=True)]
    assert max(errors[1:]) > 1e-3 and errors[0] < 1e-5


def test_positions_that_do_not_restart_are_noticed(packed, tiny_model, tiny_config):
    """Rotary positions are relative, so only stretched ones change what a document sees."""
    store, rows = packed
    model = with_window(tiny_model, tiny_config, 40)
    plan = Packed(rows[0].lengths)
    together = token_losses(model, rows[0], plan, 2 * plan.positions()).split(rows[0].lengths)
    alone = losses_alone(model, store, rows[0])
    assert max((a - b).abs().max() for a, b in zip(together, alone, strict=True)) > 1e-4
    assert all((begin == 0) for begin in plan.positions()[0, torch.tensor([0, rows[0].lengths[0]])])
