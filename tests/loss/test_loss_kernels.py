"""The kernel of the loss in Triton's interpreter; tests/gpu runs it on the device."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

if torch.cuda.is_available():
    pytest.skip("tests/gpu runs this on the device", allow_module_level=True)
pytest.importorskip("triton")


@pytest.mark.parametrize("vocabulary", [37, 8192, 20_000])
def test_losses_and_gradient_of_logits(vocabulary):
    from singalaut.loss.kernels import losses_and_error

    generator = torch.Generator().manual_seed(vocabulary)
    logits = (4 * torch.randn(5, vocabulary, generator=generator)).requires_grad_()
    targets = torch.tensor([0, vocabulary - 1, 3, 3, 17])
    wanted = cross_entropy(logits, targets, reduction="none")
    (gradient,) = torch.autograd.grad(wanted.sum(), logits)
    found, losses = logits.detach().clone(), torch.empty(5)
    losses_and_error(found, targets, losses, wants_error=False)
    torch.testing.assert_close(losses, wanted.detach())
    assert torch.equal(found, logits)
    losses_and_error(found, targets, losses, wants_error=True)
    torch.testing.assert_close(losses, wanted.detach())
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, gradient * 1.001, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("vocabulary", [37, 8192, 20_000])
def test_log_probabilities_and_their_gradient(vocabulary, temperature):
    from singalaut.loss.kernels import logprob_gradient, row_figures

    generator = torch.Generator().manual_seed(vocabulary)
    logits = 4 * torch.randn(5, vocabulary, generator=generator)
    logits[3, 3] += 25.0  # a small entropy, which no difference of large numbers gives
    logits.requires_grad_()
    targets = torch.tensor([0, vocabulary - 1, 3, 3, 17])
    logp = (logits.double() / temperature).log_softmax(-1)
    wanted = logp.gather(1, targets[:, None])[:, 0]
    factors = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    (gradient,) = torch.autograd.grad((wanted * factors).sum(), logits)
    with torch.no_grad():
        normalisers = (logits.double() / temperature).logsumexp(-1)
        entropies = -(logp.exp() * logp).sum(-1)
        plain = logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    given, found = logits.detach(), [torch.empty(5) for _ in range(4)]
    row_figures(given, targets, temperature, *found)
    for ours, theirs in zip(found, (wanted, normalisers, entropies, plain), strict=True):
        torch.testing.assert_close(ours, theirs.detach().float(), rtol=2e-5, atol=3e-7)
    ours = torch.empty_like(given)
    logprob_gradient(given, targets, temperature, normalisers, factors, ours)
    torch.testing.assert_close(ours, gradient, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours, gradient * 1.001, rtol=1e-5, atol=1e-6)
