"""Keys and values in pages against whole forward passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reduced_shapes import WINDOW, reduced

from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.paged import KINDS, PAGE_TOKENS, PagedCache, PagedPlan, Span, page_bytes

MODEL = initialise(Gemma3(reduced("4b")), seed=5)
LENGTH = st.integers(1, 2 * WINDOW + 2)


class Rows:
    """Sequences with pages of their own, dealt in a random order."""

    def __init__(self, model: Gemma3, count: int, tokens: int, seed: int):
        pages = -(-tokens // PAGE_TOKENS)
        numbers = dict.fromkeys(KINDS, 1 + count * pages)
        self.model = model
        self.cache = PagedCache(model.config, numbers, torch.float32, "cpu")
        order = np.random.default_rng(seed).permutation(np.arange(1, 1 + count * pages))
        self.tables = order.reshape(count, pages).astype(np.int32)
        self.known: list[list[int]] = [[] for _ in range(count)]

    @torch.no_grad()
    def store(self, *new: tuple[int, list[int]]) -> torch.Tensor:
        """Run new tokens of some rows in one pass; those of one token first, as a plan asks."""
        new = tuple(sorted(new, key=lambda n: not (len(n[1]) == 1 and self.known[n[0]])))
        spans, tokens = [], []
        for row, more in new:
            tables = dict.fromkeys(KINDS, self.tables[row])
            spans.append(Span(tables, len(self.known[row]), len(more)))
            self.known[row] += more
            tokens += more
        plan = PagedPlan(self.cache, spans)
        hidden = self.model(torch.tensor([tokens]), plan.positions, plan)[0]
        self.order = [row for row, _ in new]
        return hidden.split([len(more) for _, more in new])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_mix_of_chunks_equals_whole_passes(data):
    count = data.draw(st.integers(1, 4))
    rows = Rows(MODEL, count, 160, seed=data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(1, 6))):
        chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
        new = []
        for row in chosen:
            length = min(data.draw(LENGTH), 160 - len(rows.known[row]))
            if length:
                new.append(
                    (
                        row,
                        data.draw(st.lists(st.integers(0, 299), min_size=length, max_size=length)),
                    )
                )
        if not new:
            continue
        hidden = rows.store(*new)
        for row, found in zip(rows.order, hidden, strict=True):
            with torch.no_grad():
                whole = MODEL(torch.tensor([rows.known[row]]))[0, -len(found) :]
            torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_a_window_that_is_one_too_wide_is_noticed():
    rows = Rows(MODEL, 1, 64, seed=0)
    wrong = replace(MODEL.config, window=WINDOW + 1)
    tokens = [(7 * i) % 300 for i in range(3 * WINDOW)]
    rows.store((0, tokens[:-1]))
    rows.cache.config = wrong
    found = rows.store((0, tokens[-1:]))[0]
    with torch.no_grad():
        whole = MODEL(torch.tensor([tokens]))[0, -1:]
    assert (found - whole).abs().max() > 1e-3


def test_memory_is_what_the_pages_take():
    cache = PagedCache(MODEL.config, {"global": 5, "window": 3}, torch.bfloat16, "cpu")
    sizes = {kind: page_bytes(MODEL.config, kind, torch.bfloat16) for kind in KINDS}
    assert cache.memory_bytes() == 5 * sizes["global"] + 3 * sizes["window"]


def test_packed_weights_give_the_same_logits():
    model = initialise(Gemma3(reduced("1b")), seed=6)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        plain = model.logits(model(tokens))
        model.pack()
        torch.testing.assert_close(model.logits(model(tokens)), plain, rtol=1e-4, atol=1e-4)
        model.layers[0].mlp.up.weight.data.zero_()
        model.pack()  # after a change the packed copy must follow
        changed = model.logits(model(tokens))
        model.unpack()
        torch.testing.assert_close(model.logits(model(tokens)), changed, rtol=1e-4, atol=1e-4)
    assert (changed - plain).abs().max() > 1e-2
