"""Losses on pairs against TRL's, values and gradients, and what must hold for any pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from singalaut.loss.apo import apo_down, apo_zero, dpo, ipo, pair_meters, simpo

GOLDEN = Path(__file__).parent / "golden"
BETAS = json.loads((GOLDEN / "trl.json").read_text())["pairs"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "trl.safetensors")


def ours(golden, name, beta, gamma=0.5):
    """The mean loss of TRL's pairs, and its gradient for each token's log-probability."""
    leaf = golden["pair.logprobs"].clone().requires_grad_()
    chosen, rejected = leaf.sum(1).chunk(2)
    reference_chosen, reference_rejected = golden["pair.reference"].chunk(2)
    tokens = golden["pair.lengths"].chunk(2)
    ratios = chosen - reference_chosen, rejected - reference_rejected
    if name == "simpo":
        losses = simpo(chosen, rejected, *tokens, beta, gamma)
    elif name == "ipo":
        losses = ipo(*ratios, *tokens, beta)
    else:
        losses = {"apo_zero": apo_zero, "apo_down": apo_down, "sigmoid": dpo}[name](*ratios, beta)
    loss = losses.mean()
    loss.backward()
    mask = torch.arange(leaf.shape[1]) < golden["pair.lengths"][:, None]
    return loss, leaf.grad * mask, mask


@pytest.mark.parametrize(("name", "beta"), [*BETAS.items(), ("simpo", 2.0)])
def test_same_as_trl(golden, name, beta):
    loss, gradient, mask = ours(golden, name, beta)
    wanted = golden[f"pair.{name}.gradient"] * mask
    torch.testing.assert_close(loss, golden[f"pair.{name}.loss"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=TOLERANCE)
    assert wanted.abs().max() > 1e-3
    other, changed, _ = ours(golden, name, beta * 1.05)  # the comparison must notice this
    assert (other - golden[f"pair.{name}.loss"]).abs() > TOLERANCE
    assert (changed - wanted).abs().max() > TOLERANCE


numbers = st.floats(-30, 30)


@settings(max_examples=100, deadline=None)
@given(chosen=numbers, rejected=numbers, beta=st.floats(0.01, 1))
def test_by_the_formulas(chosen, rejected, beta):
    """Plain loops in double precision."""
    from math import exp, log1p

    def sigmoid(x: float) -> float:
        return 1 / (1 + exp(-x)) if x > -700 else 0.0

    a, b = (torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected))
    r, s = beta * chosen, beta * rejected
    assert float(apo_zero(a, b, beta)) == pytest.approx(1 - sigmoid(r) + sigmoid(s), abs=1e-9)
    assert float(apo_down(a, b, beta)) == pytest.approx(sigmoid(r) + 1 - sigmoid(r - s), abs=1e-9)
    wanted = log1p(exp(s - r)) if s - r < 30 else s - r
    assert float(dpo(a, b, beta)) == pytest.approx(wanted, abs=1e-9)
    two, five = torch.tensor([2]), torch.tensor([5])
    margin = chosen / 2 - rejected / 5
    assert float(ipo(a, b, two, five, beta)) == pytest.approx((margin - 0.5 / beta) ** 2, rel=1e-9)
    x = beta * margin - 0.3
    assert float(simpo(a, b, two, five, beta, 0.3)) == pytest.approx(log1p(exp(-x)), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(chosen=numbers, rejected=numbers, beta=st.floats(0.05, 1))
def test_directions(chosen, rejected, beta):
    """APO-zero raises the chosen answer, APO-down lowers the rejected one; DPO does both."""
    a = torch.tensor([chosen], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([rejected], dtype=torch.float64, requires_grad=True)
    for loss, signs in ((apo_zero, (-1, 1)), (dpo, (-1, 1)), (apo_down, (None, 1))):
        gradients = torch.autograd.grad(loss(a, b, beta).sum(), (a, b))
        for gradient, sign in zip(gradients, signs, strict=True):
            assert sign is None or float(gradient) * sign >= 0


def test_extreme_ratios_stay_finite():
    far = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    near = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    for loss in (apo_zero, apo_down, dpo):
        found = loss(far, near, 0.1)
        gradients = torch.autograd.grad(found.sum(), (far, near))
        assert found.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_meters():
    found = pair_meters(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), 0.2)
    assert found.chosen_rewards.tolist() == pytest.approx([0.2, -0.4])
    assert found.margins.tolist() == pytest.approx([0.1, -1.0])
    assert found.correct.tolist() == [True, False]
