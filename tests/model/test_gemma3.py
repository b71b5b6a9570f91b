"""The network against `transformers`, and attention against a brute-force mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reduced_shapes import REDUCED, WINDOW, reduced

from singalaut.model import attention
from singalaut.model.attention import Packed, causal_attention, visible
from singalaut.model.config import SIZES
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import hf_name, parameter_shapes

LENGTHS = (WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 1)


def random_tokens(rows: int, length: int, vocabulary: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, vocabulary, (rows, length), generator=generator)


@pytest.mark.parametrize("size", REDUCED)
def test_logits_match_transformers(size, oracle):
    ours = initialise(Gemma3(reduced(size)), seed=1)
    theirs = oracle(ours)
    for length in LENGTHS:
        tokens = random_tokens(2, length)
        with torch.no_grad():
            difference = ours.logits(ours(tokens)) - theirs(tokens).logits
        assert difference.abs().max() <= 1e-4, length


@pytest.mark.parametrize(
    "change",
    [
        {"window": WINDOW - 1},
        {"rope_factor": 4.0},
        {"rope_theta": 9e5},
        {"rope_local_theta": 9e3},
        {"query_scalar": 128.0},
        {"norm_eps": 1e-3},
        {"global_every": 5},
    ],
)
def test_the_comparison_notices_a_wrong_constant(change, oracle):
    ours = initialise(Gemma3(reduced("27b")), seed=1)
    theirs = oracle(ours)
    wrong = Gemma3(replace(ours.config, **change))
    wrong.load_state_dict(ours.state_dict())
    tokens = random_tokens(2, LENGTHS[-1])
    with torch.no_grad():
        difference = wrong.logits(wrong(tokens)) - theirs(tokens).logits
    assert difference.abs().max() > 1e-4


def test_gradients_match_transformers(oracle):
    ours = initialise(Gemma3(reduced("4b")), seed=2)
    theirs = oracle(ours)
    tokens = random_tokens(2, 2 * WINDOW + 1)
    ours.logits(ours(tokens)).square().mean().backward()
    theirs(tokens).logits.square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted = expected[hf_name(name)].grad
        error = (parameter.grad - wanted).norm() / wanted.norm()
        assert error <= 1e-4, name


def test_bfloat16_stays_as_close_as_the_library_to_itself(oracle):
    ours = initialise(Gemma3(reduced("1b")), seed=3)
    exact = oracle(ours)
    theirs = oracle(ours.bfloat16(), torch.bfloat16)
    tokens = random_tokens(4, 2 * WINDOW)
    with torch.no_grad():
        wanted = exact(tokens).logits.log_softmax(-1)
        our_error = (ours.logits(ours(tokens)).float().log_softmax(-1) - wanted).abs().mean()
        their_error = (theirs(tokens).logits.float().log_softmax(-1) - wanted).abs().mean()
    assert our_error <= 1.2 * their_error


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 40),
    window=st.one_of(st.none(), st.integers(1, 12)),
    queries=st.integers(1, 40),
    one_mask=st.sampled_from([0, 2048]),
)
def test_attention_is_what_the_mask_says(length, window, queries, one_mask):
    attention.ONE_MASK_TOKENS = one_mask  # 0 cuts every sequence that is longer than its window
    queries = min(queries, length)
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(2, 4, length, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, length, 8, generator=generator).unbind(0)
    places = torch.arange(length)
    scores = (q @ k.repeat_interleave(2, 1).transpose(-1, -2)) * 0.3
    scores = scores.masked_fill(~visible(places, places, window), float("-inf"))
    expected = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    last = slice(length - queries, length)
    found = causal_attention(q[:, :, last], k, v, 0.3, window)
    attention.ONE_MASK_TOKENS = 2048
    torch.testing.assert_close(found, expected[:, :, last])


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 2 * WINDOW + 3), min_size=1, max_size=4))
def test_packed_documents_do_not_see_each_other(lengths):
    model = initialise(Gemma3(reduced("4b")), seed=4)
    rows = [random_tokens(1, length) for length in lengths]
    plan = Packed(tuple(lengths))
    with torch.no_grad():
        packed = model(torch.cat(rows, 1), plan.positions(), plan)
        alone = torch.cat([model(row) for row in rows], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def test_published_parameter_counts():
    counts = {name: config.num_parameters for name, config in SIZES.items()}
    assert counts == {
        "270m": 268_098_176,
        "1b": 999_885_952,
        "4b": 3_880_263_168,
        "12b": 11_766_034_176,
        "27b": 27_009_346_304,
    }
    assert all(config.size_name == name for name, config in SIZES.items())
    tiny = Gemma3(reduced("12b"))
    found = {name: tuple(p.shape) for name, p in tiny.named_parameters()}
    assert list(found.items()) == list(parameter_shapes(tiny.config).items())
    assert sum(p.numel() for p in tiny.parameters()) == tiny.config.num_parameters
