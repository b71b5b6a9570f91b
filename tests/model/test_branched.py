"""Sequences with a common beginning against the same sequences end to end, each whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.model.attention import Packed, visible
from singalaut.model.branched import Branched
from singalaut.model.hf import load_model

lengths = st.integers(1, 7)
trees = st.lists(st.lists(lengths, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4)


def sequences(trees):
    """Of each sequence, the places of its tokens in the row."""
    found, start = [], 0
    for trunk, *branches in trees:
        end = start + trunk
        for branch in branches:
            found.append([*range(start, start + trunk), *range(end, end + branch)])
            end += branch
        if not branches:
            found.append(list(range(start, end)))
        start = end
    return found, start


@settings(max_examples=60, deadline=None)
@given(trees, st.sampled_from([None, 1, 3, 8]), st.integers(0, 99))
def test_attention_is_that_of_each_sequence_alone(trees, window, seed):
    found, size = sequences(trees)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, size, 4, generator=generator) for heads in (4, 2, 2))
    plan = Branched(tuple(trees))
    out = plan.attend(0, q, k, v, 0.5, window)
    for places in found:
        at = torch.arange(len(places))
        mask = visible(at, at, window)
        alone = torch.nn.functional.scaled_dot_product_attention(
            *(each[:, :, places] for each in (q, k, v)), attn_mask=mask, scale=0.5, enable_gqa=True
        )
        torch.testing.assert_close(out[:, :, places], alone, rtol=1e-5, atol=1e-6)
        assert plan.positions()[0, places].tolist() == at.tolist()


@settings(max_examples=30, deadline=None)
@given(trees, st.sampled_from([None, 3]))
def test_the_spans_of_the_kernel_say_the_same(trees, window):
    """What CUDA's kernel is told: queries are the last of their keys, cut by spans."""
    _, size = sequences(trees)
    q, k, v = (torch.randn(1, heads, size, 4) for heads in (4, 2, 2))
    plan = Branched(tuple(trees))
    pieces = []
    ends = zip(plan.query_spans.starts.tolist(), plan.key_spans.starts.tolist(), strict=True)
    for (q0, k0), (q1, k1) in pairwise(ends):
        keys = plan.keys[k0:k1]
        past = (k1 - k0) - (q1 - q0)
        mask = visible(past + torch.arange(q1 - q0), torch.arange(k1 - k0), window)
        pieces.append(
            torch.nn.functional.scaled_dot_product_attention(
                q[:, :, q0:q1], k[:, :, keys], v[:, :, keys],
                attn_mask=mask, scale=0.5, enable_gqa=True,
            )
        )  # fmt: skip
        assert q1 - q0 <= plan.query_spans.longest and k1 - k0 <= plan.key_spans.longest
    expected = plan.attend(0, q, k, v, 0.5, window)
    torch.testing.assert_close(torch.cat(pieces, 2), expected, rtol=1e-5, atol=1e-6)
    written_out = plan.written_out.attend(q, k, v, 0.5, window)  # what CUDA does in float32
    torch.testing.assert_close(written_out, expected, rtol=1e-5, atol=1e-6)


def losses(network, trees, plan_of):
    """A weighted sum over hidden states of all sequences, and its gradients."""
    found, size = sequences(trees)
    row = torch.randint(3, 200, (size,), generator=torch.Generator().manual_seed(1))
    places = torch.tensor([place for each in found for place in each])
    weights = torch.randn(len(places), 1, generator=torch.Generator().manual_seed(2))
    hidden = plan_of(row, found)
    value = (hidden * weights).sum() / len(places)
    return value, torch.autograd.grad(value, list(network.parameters()), allow_unused=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_network_computes_and_learns_the_same(compiled, tiny_model, monkeypatch):
    network = load_model(tiny_model, torch.float32, "cpu", vision=False)
    network.requires_grad_(True)
    trees = ((9, 4, 11, 1), (3,), (1, 2, 2), (20, 30))  # past the window of the tiny model

    def branches(row, found):
        plan = Branched(trees)
        hidden = network(row[None], plan.positions(), plan)[0]
        return hidden[[place for each in found for place in each]]

    def whole(row, found):
        plan = Packed(tuple(map(len, found)))
        return network(
            row[[place for each in found for place in each]][None], plan.positions(), plan
        )[0]

    expected, theirs = losses(network, trees, whole)
    if compiled:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # with masks instead
    value, ours = losses(network, trees, branches)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    trees = ((8, 5, 11, 1), *trees[1:])  # a trunk that ends a token too early
    other = losses(network, ((9, 4, 11, 1), *trees[1:]), branches)[0]
    assert not torch.allclose(other, expected, rtol=1e-3)  # it can fail
