"""Moments in 8 bits: what a code may be wrong by, and training beside AdamW in float32."""

from __future__ import annotations

import pytest
import torch
import training_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from singalaut.model.hf import load_model
from singalaut.train import moments
from singalaut.train.adamw import AdamW
from singalaut.train.moments import BLOCK, Coded, blocks_of
from singalaut.train.optim import adamw

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs it there")


def coded(numbers, signed, seed=0):
    kind = torch.int8 if signed else torch.uint8
    scales = torch.zeros(len(numbers), blocks_of(numbers.shape[1]))
    made = Coded(torch.zeros(numbers.shape, dtype=kind), scales)
    made.encode(numbers, torch.Generator().manual_seed(seed))
    return made


def numbers_of(rows, columns, signed, seed):
    """Over many orders of magnitude, with nothing among them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, columns)
    made = torch.randn(shape, generator=generator) * 10 ** (
        4 * torch.rand(shape, generator=generator) - 6
    )
    made[torch.rand(shape, generator=generator) < 0.1] = 0
    return made if signed else made.square()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 300), st.booleans(), st.integers(0, 99))
def test_a_code_is_a_neighbour_and_stays(rows, columns, signed, seed):
    exact = numbers_of(rows, columns, signed, seed)
    made = coded(exact, signed)
    found = made.decoded()
    scales = made.scales.repeat_interleave(BLOCK, 1)[:, :columns]
    top, power = (127, 3) if signed else (255, 4)
    code = (found.abs() / scales.clamp(min=1e-38)).pow(1 / power) * top
    gap = scales * ((code + 1).pow(power) - code.pow(power)) / top**power
    assert ((found - exact).abs() <= gap * 1.001 + 1e-30).all()
    assert (found * exact >= 0).all() and (found[exact == 0] == 0).all()
    if not signed:
        assert (found[exact > 0] > 0).all()
    again = coded(found, signed, seed=1)
    torch.testing.assert_close(again.decoded(), found, rtol=1e-3, atol=0)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_right_on_average(signed):
    exact = numbers_of(3, 200, signed, 5)
    largest = exact.abs().amax()
    exact = exact[exact.abs() > 1e-7 * largest][None]
    rounds = 600
    mean = sum(coded(exact, signed, seed).decoded() for seed in range(rounds)) / rounds
    # a gap is at most 7 times the number that begins it, and less by far for all but the least
    spread = (mean - exact).abs() / exact.abs()
    assert spread.median() < 0.01 and spread.max() < 0.7
    assert abs(float((mean / exact).mean()) - 1) < 0.02


def follow(optimizer, weight, count=300):
    """The distance from the goal of a noisy quadratic, whose neighbours differ by a thousand."""
    generator = torch.Generator().manual_seed(3)
    columns = weight.shape[1]
    curvature = (10 ** torch.linspace(-3, 0, columns))[torch.randperm(columns, generator=generator)]
    for _ in range(count):
        noise = 0.1 * torch.randn(weight.shape, generator=generator)
        weight.grad = (curvature * (weight.detach().float() - 1) + curvature * noise).to(weight)
        optimizer.step()
    return (weight.detach().float() - 1).abs().mean().item()


def made(precision, kept, weight):
    groups = [{"params": [weight], "weight_decay": 0.0}]
    return AdamW(groups, 5e-3, precision=precision, seed=1, moments=kept)


@pytest.mark.parametrize("precision", ["float32", "master"])
def test_steps_follow_those_with_whole_moments(precision):
    """Within 3 % of the way over 300 steps."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    whole, ours = (nn.Parameter(torch.zeros(8, 300, dtype=dtype)) for _ in range(2))
    wanted = follow(made(precision, "full", whole), whole)
    optimizer = made(precision, "int8", ours)
    found = follow(optimizer, ours)
    assert wanted < 0.2
    assert found == pytest.approx(wanted, abs=0.03)
    assert (ours - whole).detach().float().norm() < 0.03 * whole.detach().float().norm()
    state = optimizer.state[ours]
    assert state["exp_avg"].dtype == torch.int8 and state["exp_avg_sq"].dtype == torch.uint8
    assert state["exp_avg_scale"].shape == (8, 3)


def test_evenly_spaced_codes_would_not_do(monkeypatch):
    """The comparison above notices a law that has too little room for small squares."""
    whole, ours = (nn.Parameter(torch.zeros(8, 300)) for _ in range(2))
    follow(made("float32", "full", whole), whole)
    monkeypatch.setattr(
        moments, "_law", lambda codes: (127, 1) if codes.dtype == torch.int8 else (255, 1)
    )
    follow(made("float32", "int8", ours), ours)
    assert (ours - whole).detach().norm() > 0.1 * whole.detach().norm()


def test_a_models_losses_follow(tiny_model):
    """Thirty steps of a whole network: within 1 % of the fall."""
    curves = {}
    for kept in ("full", "int8"):
        model = load_model(tiny_model).requires_grad_(True).train()
        optimizer = adamw(model, 3e-3, 0.1, seed=2, moments=kept)
        tokens = torch.randint(5, 500, (2, 60), generator=torch.Generator().manual_seed(0))
        losses = []
        for _ in range(30):
            logits = model.logits(model(tokens))[:, :-1]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves[kept] = losses
    fall = curves["full"][0] - curves["full"][-1]
    assert fall > 1
    for one, other in zip(*curves.values(), strict=True):
        assert abs(one - other) < 0.01 * fall


@interpreted
@pytest.mark.parametrize("columns", [256, 300])
def test_the_kernel_does_what_the_plain_step_does(columns):
    pytest.importorskip("triton")
    cases.check_coded("cpu", columns)


def test_plain_codes_are_held_to_the_same():
    from singalaut.train.adamw import plain_step

    cases.check_coded("cpu", 300, plain_step)
