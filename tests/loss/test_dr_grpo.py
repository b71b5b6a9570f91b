"""Policy losses against TRL's and against plain loops, and what splitting a step may not change."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from singalaut.loss.dr_grpo import (
    advantages,
    aggregate,
    aggregate_by_answer,
    cispo_loss,
    kl_estimate,
    policy_loss,
    truncated_importance,
)

GOLDEN = Path(__file__).parent / "golden"
STORED = json.loads((GOLDEN / "trl.json").read_text())
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "trl.safetensors")


def ours(golden, case, leaf):
    """The loss of a stored case."""
    old, mask = golden["policy.old"], golden["policy.mask"].bool()
    worth, answers = golden["policy.advantages"], len(golden["policy.old"])
    if case["loss_type"] == "cispo":
        loss = cispo_loss(leaf, old, worth, mask, max_ratio=case["epsilon_high"])
    else:
        loss = policy_loss(
            leaf,
            old,
            worth,
            mask,
            clip_low=case["epsilon_low"],
            clip_high=case["epsilon_high"],
            per_sequence=case.get("importance_sampling_level") == "sequence",
        )
    loss = loss + case["beta"] * kl_estimate(leaf, golden["policy.reference"], mask)
    if case["loss_type"] == "grpo":
        return aggregate_by_answer(loss, mask, answers)
    constant = answers * STORED["length"]
    return aggregate(loss, mask, constant if case["loss_type"] == "dr_grpo" else int(mask.sum()))


@pytest.mark.parametrize("number", range(len(STORED["policies"])))
def test_same_as_trl(golden, number):
    case = STORED["policies"][number]
    leaf = golden["policy.logprobs"].clone().requires_grad_()
    loss = ours(golden, case, leaf)
    loss.backward()
    wanted, gradient = golden[f"policy.{number}.loss"], golden[f"policy.{number}.gradient"]
    torch.testing.assert_close(loss, wanted, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(leaf.grad, gradient, rtol=0, atol=TOLERANCE)
    assert gradient.abs().max() > 1e-3
    changed = {**case, "epsilon_high": case["epsilon_high"] * 0.7}
    assert abs(float(ours(golden, changed, leaf.detach()) - wanted)) > TOLERANCE


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), low=st.floats(0, 0.5), high=st.floats(0, 0.5))
def test_by_plain_loops(seed, low, high):
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(4, 6, generator=generator, dtype=torch.float64)
    new = old + 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    worth = torch.randn(4, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) < 0.7
    found = policy_loss(new, old, worth, mask, clip_low=low, clip_high=high)
    for b in range(4):
        for t in range(6):
            ratio, a = math.exp(float(new[b, t] - old[b, t])), float(worth[b])
            wanted = -min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
            assert float(found[b, t]) == pytest.approx(wanted if mask[b, t] else 0.0, abs=1e-12)


def test_advantages_by_plain_loops():
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.5], [2.0, 2.0, 2.0, 2.0]])
    assert advantages(rewards)[0].tolist() == pytest.approx([0.5, -0.5, 0.0, 0.0])
    std = torch.tensor([1.0, 0.0, 0.5, 0.5]).std()
    wanted = [0.5 / (std + 1e-4), -0.5 / (std + 1e-4), 0.0, 0.0]
    assert advantages(rewards, "standardised")[0].tolist() == pytest.approx([*map(float, wanted)])
    others = [1 - 1 / 3, 0 - 2 / 3, 0.5 - 0.5, 0.5 - 0.5]
    assert advantages(rewards, "leave_one_out")[0].tolist() == pytest.approx(others)
    for baseline in ("mean", "standardised", "leave_one_out"):
        assert advantages(rewards, baseline)[1].tolist() == [0.0] * 4


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_leave_one_out_is_a_multiple_of_dr_grpo(values):
    rewards = torch.tensor([values], dtype=torch.float64)
    share = len(values) / (len(values) - 1)
    torch.testing.assert_close(advantages(rewards, "leave_one_out"), share * advantages(rewards))


def test_what_could_not_be_scored_pushes_nothing():
    nan = float("nan")
    rewards = torch.tensor([[1.0, nan, 0.0, nan], [nan, nan, nan, 3.0]])
    for baseline in ("mean", "standardised", "leave_one_out"):
        found = advantages(rewards, baseline)
        assert found.isfinite().all() and found[0, 1] == found[0, 3] == 0
        assert found[0, 0] == -found[0, 2] > 0
        assert found[1].tolist() == [0.0] * 4
    assert advantages(rewards)[0, 0] == 0.5  # not 0.75: the mean is of two answers


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.integers(1, 7))
def test_splitting_a_step_changes_nothing(seed, cuts):
    generator = torch.Generator().manual_seed(seed)
    loss = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(8, 5, generator=generator) < 0.6
    for whole, how in ((aggregate, 40.0), (aggregate_by_answer, 8)):
        parts = [whole(loss[i : i + cuts], mask[i : i + cuts], how) for i in range(0, 8, cuts)]
        torch.testing.assert_close(torch.stack(parts).sum(), whole(loss, mask, how))


@pytest.mark.parametrize("per_sequence", [False, True])
def test_what_is_masked_may_be_anything(per_sequence):
    old = -torch.rand(3, 4)
    new = (old + 0.1).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    spoiled = torch.where(mask, old, float("-inf"))
    worth = torch.tensor([1.0, -1.0, 2.0])

    def run(behaviour):
        loss = policy_loss(
            new, behaviour, worth, mask, clip_low=0.2, clip_high=0.2, per_sequence=per_sequence
        )
        total = aggregate(loss + kl_estimate(new, behaviour, mask), mask, 12)
        return total, torch.autograd.grad(total, new)[0]

    for ours_, wanted in zip(run(spoiled), run(old), strict=True):
        assert torch.equal(ours_, wanted) and ours_.isfinite().all()


def test_kl_estimates():
    """Their means over samples of π: all near the KL, k3 never negative, k2 with its gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    other = (logits + 0.1 * torch.randn(5, generator=generator, dtype=torch.float64)).detach()
    policy, reference = logits.log_softmax(-1), other.log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    mask = torch.ones(1, 5, dtype=torch.bool)
    weights = policy.exp().detach()[None]
    for kind, tolerance in (("k1", 1e-12), ("k3", 1e-12), ("k2", 1e-4)):
        found = kl_estimate(policy[None], reference[None], mask, kind)
        assert float((weights * found).sum().detach()) == pytest.approx(
            float(exact.detach()), abs=tolerance
        )
    assert (kl_estimate(policy[None], reference[None], mask) >= 0).all()
    k2 = (weights * kl_estimate(policy[None], reference[None], mask, "k2")).sum()
    wanted, found = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (exact, k2))
    torch.testing.assert_close(found, wanted)


def test_truncated_importance():
    ours_ = torch.tensor([[0.0, -1.0, -1.0]], requires_grad=True)
    theirs = torch.tensor([[-2.0, -1.0, float("-inf")]])
    mask = torch.tensor([[True, True, False]])
    found = truncated_importance(ours_, theirs, mask, cap=2.0)
    assert found.tolist() == [[2.0, 1.0, 1.0]] and not found.requires_grad
