"""Decoding with the cache against whole forward passes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reduced_shapes import WINDOW, reduced

from singalaut.model.cache import Cache
from singalaut.model.gemma3 import Gemma3, initialise

MODEL = initialise(Gemma3(reduced("4b")), seed=5)
LENGTH = st.integers(1, 2 * WINDOW + 2)


@torch.no_grad()
def step(cache: Cache, tokens: list[int]) -> torch.Tensor:
    plan = cache.decode()
    return MODEL(torch.tensor(tokens)[:, None], plan.positions[:, None], plan)[:, 0]


@settings(max_examples=25, deadline=None)
@given(prompts=st.lists(LENGTH, min_size=1, max_size=4), steps=st.integers(1, 2 * WINDOW + 3))
def test_each_row_decodes_as_if_alone(prompts, steps):
    generator = torch.Generator().manual_seed(sum(prompts))
    rows = [torch.randint(0, 300, (n,), generator=generator).tolist() for n in prompts]
    cache = Cache(MODEL.config, len(rows), torch.float32, "cpu")
    with torch.no_grad():
        for row in rows:
            MODEL(torch.tensor([row]), plan=cache.prefill())
    for number in range(steps):
        tokens = [(31 * number + 7 * i) % 300 for i in range(len(rows))]
        hidden = step(cache, tokens)
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
    with torch.no_grad():
        expected = torch.stack([MODEL(torch.tensor([row]))[0, -1] for row in rows])
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_rows_that_come_and_go_leave_the_others_alone(data):
    cache = Cache(MODEL.config, 3, torch.float32, "cpu")
    rows: list[list[int]] = []
    for _ in range(data.draw(st.integers(3, 12))):
        if rows and (len(rows) == 3 or data.draw(st.booleans())):
            gone = data.draw(st.integers(0, len(rows) - 1))
            cache.release(gone)
            rows[gone] = rows[-1]
            rows.pop()
        else:
            row = [(3 * i + len(rows)) % 300 for i in range(data.draw(LENGTH))]
            with torch.no_grad():
                MODEL(torch.tensor([row]), plan=cache.prefill())
            rows.append(row)
        if rows:
            hidden = step(cache, [5] * len(rows))
            for row in rows:
                row.append(5)
            with torch.no_grad():
                wanted = torch.stack([MODEL(torch.tensor([row]))[0, -1] for row in rows])
            torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-4)
    assert cache.lengths == [len(row) for row in rows]


@settings(max_examples=25, deadline=None)
@given(first=LENGTH, shared=st.integers(1, WINDOW), rest=LENGTH)
def test_a_shared_beginning_is_as_good_as_its_own(first, shared, rest):
    generator = torch.Generator().manual_seed(first + 100 * shared + 10_000 * rest)
    one = torch.randint(0, 300, (1, first), generator=generator)
    cache = Cache(MODEL.config, 2, torch.float32, "cpu")
    with torch.no_grad():
        MODEL(one, plan=cache.prefill())
        shared = min(shared, first)
        if not cache.can_share(0):
            assert first > WINDOW
            return
        tail = torch.randint(0, 300, (1, rest), generator=generator)
        positions = torch.arange(shared, shared + rest)[None]
        hidden = MODEL(tail, positions, cache.prefill(0, shared))
        two = torch.cat((one[:, :shared], tail), 1)
        torch.testing.assert_close(hidden, MODEL(two)[:, shared:], rtol=1e-4, atol=1e-4)
        after = step(cache, [9, 9])[1]
        wanted = MODEL(torch.cat((two, torch.tensor([[9]])), 1))[0, -1]
        torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-4)


def test_window_layers_stop_growing():
    cache = Cache(MODEL.config, 2, torch.float32, "cpu")
    cache.reserve(1000)
    rows = {layer: keys.shape[2] for layer, keys in enumerate(cache._keys)}
    assert {rows[i] for i in rows if not MODEL.config.is_global(i)} == {WINDOW}
    assert all(rows[i] >= 1000 for i in rows if MODEL.config.is_global(i))
    cache.clear()
    assert cache.memory_bytes() == 0


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
