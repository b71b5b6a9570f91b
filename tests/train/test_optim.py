"""AdamW in bfloat16: the step, its rounding, and the kernel in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import training_cases as cases

from singalaut.train.adamw import AdamW, plain_step

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs it there")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_follow_the_library(dtype):
    torch.manual_seed(0)
    start = torch.randn(40, 30).to(dtype)
    theirs = torch.nn.Parameter(start.float().clone())
    ours = torch.nn.Parameter(start.clone())
    library = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    groups = [{"params": [ours], "weight_decay": 0.1}]
    optimizer = AdamW(groups, 1e-2, precision="master", seed=0)
    for _ in range(20):
        gradient = torch.randn(40, 30).bfloat16()
        theirs.grad, ours.grad = gradient.float(), gradient.to(ours.dtype)
        library.step()
        optimizer.step()
    found = optimizer.state[ours]["master"]
    torch.testing.assert_close(found, theirs.data, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, start.float(), rtol=1e-5, atol=1e-6)


def test_small_steps_are_not_lost():
    """A step of a thousandth of a bfloat16 gap moves the weights as far as it should."""
    weight = torch.nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
    groups = [{"params": [weight], "weight_decay": 0.0}]
    optimizer = AdamW(groups, 1e-5, precision="rounded", seed=1)
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(1 - 50e-5, abs=1e-4)
    nearest = torch.ones(1, dtype=torch.bfloat16) - 1e-5
    assert nearest == 1


def test_plain_rounding_is_right_on_average():
    cases.check_rounding("cpu", plain_step)


@interpreted
def test_the_kernel_with_a_float32_copy():
    pytest.importorskip("triton")
    cases.check_master("cpu")


@interpreted
def test_the_kernel_rounds_at_random():
    pytest.importorskip("triton")
    cases.check_rounding("cpu")


def test_infinities_stay():
    weight = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    moments = torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)
    gradient = torch.tensor([float("inf"), float("nan")], dtype=torch.bfloat16)
    plain_step(weight, gradient, *moments, None, cases.NUMBERS, 0)
    assert moments[0][0] == float("inf") and moments[0][1].isnan()
