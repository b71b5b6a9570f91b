"""The chunked loss against plain cross-entropy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from singalaut.loss.logprobs import negative_log_likelihood, token_logprobs
from singalaut.loss.sft import sft_loss


def tensors(rows: int, width: int = 16, vocabulary: int = 50):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(0, vocabulary, (rows,), generator=generator)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), chunk=st.integers(1, 50))
def test_loss_and_gradients_match_cross_entropy(rows, chunk):
    hidden, weight, targets = tensors(rows)
    wanted = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected = torch.autograd.grad(3 * wanted, (hidden, weight))
    ours, terms = negative_log_likelihood(hidden, weight, targets, chunk)
    grads = torch.autograd.grad(3 * ours, (hidden, weight))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)
    apart = cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(terms, apart.detach(), rtol=1e-5, atol=1e-5)
    assert not terms.requires_grad
    for ours_grad, their_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours_grad, their_grad, rtol=1e-4, atol=1e-4)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, targets = tensors(9)
    weight.requires_grad_(False)
    negative_log_likelihood(hidden, weight, targets)[0].backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert negative_log_likelihood(hidden, weight, targets)[0] > 0


def test_only_masked_tokens_count():
    hidden, weight, _ = tensors(12)
    rows = hidden.view(2, 6, 16)
    tokens = torch.arange(12).view(2, 6)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    wanted = sum(
        cross_entropy(rows[b, t - 1] @ weight.T, tokens[b, t]) for b, t in ((0, 2), (0, 3), (1, 5))
    )
    torch.testing.assert_close(sft_loss(rows, weight, tokens, mask, 3)[0], wanted / 3)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(sft_loss(rows, weight, tokens, ~mask, 3)[0], wanted / 3)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), chunk=st.integers(1, 50), temperature=st.sampled_from([1.0, 0.7]))
def test_log_probabilities_entropies_and_gradients(rows, chunk, temperature):
    hidden, weight, targets = tensors(rows)
    upstream = torch.linspace(-1, 2, rows)
    whole = (hidden @ weight.T / temperature).log_softmax(-1)
    wanted = whole.gather(1, targets[:, None])[:, 0]
    expected = torch.autograd.grad(wanted, (hidden, weight), upstream)
    ours, entropies, plain = token_logprobs(hidden, weight, targets, temperature, chunk)
    grads = torch.autograd.grad(ours, (hidden, weight), upstream)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    cold = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(plain, cold, rtol=1e-5, atol=1e-5)
    assert not plain.requires_grad
    torch.testing.assert_close(entropies, -(whole.exp() * whole).sum(-1), rtol=1e-4, atol=1e-4)
    for ours_grad, their_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours_grad, their_grad, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours, wanted + 1e-3, rtol=1e-5, atol=1e-5)
