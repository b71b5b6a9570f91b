"""Muon against PyTorch's own, and against what singular values say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from singalaut.model.hf import load_model
from singalaut.train.config import SftConfig
from singalaut.train.muon import Muon, orthogonal
from singalaut.train.optim import ALONE, muon, parameter_groups
from singalaut.train.parallel import World

RATE, DECAY = 2e-2, 0.1


@pytest.fixture
def matrices():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in [(24, 40), (40, 24), (32, 32)]]


def steps(matrices, world=ALONE, count=6, precision="float32", **more):
    """The matrices after steps of ours along the gradients of `gradients`."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    ours = [nn.Parameter(matrix.to(dtype, copy=True)) for matrix in matrices]
    group = {"params": ours, "weight_decay": DECAY, "rule": "muon", "side": None}
    optimizer = Muon([group], RATE, precision=precision, seed=0, world=world, **more)
    for step in range(count):
        for parameter, gradient in zip(ours, gradients(matrices, step), strict=True):
            parameter.grad = gradient.to(dtype)
        optimizer.step()
    return ours, optimizer


def gradients(matrices, step):
    generator = torch.Generator().manual_seed(100 + step)
    scales = (1e-3, 1.0, 30.0)  # which of no consequence, as the length of a step is given
    return [s * torch.randn(m.shape, generator=generator) for s, m in zip(scales, matrices)]  # noqa: B905


@pytest.fixture
def library(matrices):
    theirs = [nn.Parameter(matrix.clone()) for matrix in matrices]
    optimizer = torch.optim.Muon(
        theirs, lr=RATE, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(6):
        for parameter, gradient in zip(theirs, gradients(matrices, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return theirs


def test_steps_equal_the_librarys(matrices, library, monkeypatch):
    """The library makes its matrix products in bfloat16; so do we here."""
    ours, _ = steps(matrices, products=torch.bfloat16)
    for mine, wanted in zip(ours, library, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=2e-6)
    monkeypatch.setattr("singalaut.train.muon.RMS", 0.201)
    wrong, _ = steps(matrices, products=torch.bfloat16)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong[0], library[0], rtol=0, atol=2e-6)


def test_products_in_float32_differ_by_rounding_alone(matrices, library):
    ours, _ = steps(matrices)
    for mine, wanted, start in zip(ours, library, matrices, strict=True):
        moved = (wanted - start).norm()
        assert 0 < (mine - wanted).norm() < 0.01 * moved


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32), (1, 16)])
def test_singular_values_become_one_and_vectors_stay(shape):
    """To the third of 1 that five rounds leave, as the source says."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    made = orthogonal(matrix, torch.float32)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ made @ v.T
    assert ((found.diagonal() > 0.66) & (found.diagonal() < 1.34)).all(), found.diagonal()
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-4
    assert values.max() > 1.34 or shape[0] == 1


def test_a_step_is_as_long_as_adamws(matrices):
    (moved,) = {round(float((s - m).square().mean().sqrt()) / RATE, 1) for s, m in one(matrices)}
    assert moved == 0.2


def one(matrices):
    ours, _ = steps(matrices, count=1)
    return [
        (mine.detach(), start * (1 - RATE * DECAY))
        for mine, start in zip(ours, matrices, strict=True)
    ]


@pytest.mark.parametrize("precision", ["master", "rounded"])
@pytest.mark.parametrize("moments", ["full", "int8"])
def test_other_precisions_follow(matrices, precision, moments):
    matrices = [0.05 * matrix for matrix in matrices]
    exact, _ = steps(matrices)
    found, optimizer = steps(matrices, precision=precision, moments=moments)
    for mine, wanted, start in zip(found, exact, matrices, strict=True):
        state = optimizer.state[mine]
        held = state["master"] if precision == "master" else mine.float()
        assert state["momentum"].dtype == {
            ("master", "full"): torch.float32,
            ("rounded", "full"): torch.bfloat16,
        }.get((precision, moments), torch.int8)
        error = ((held - wanted).norm() / (wanted - start).norm()).item()
        assert error < (0.03 if moments == "full" else 0.06), error


def test_matrices_of_layers_are_muons_and_nothing_else(tiny_model):
    model = load_model(tiny_model).requires_grad_(True)
    names = {id(p): name for name, p in model.named_parameters()}
    rules = {
        names[id(parameter)]: group["rule"]
        for group in muon(model, 1e-3, 0.1).param_groups
        for parameter in group["params"]
    }
    assert set(rules) == set(names.values())
    for name, rule in rules.items():
        layered = name.startswith("layers.") and "norm" not in name
        assert (rule == "muon") == layered, name
    assert {group["rule"] for group in parameter_groups(model, 0.1)} == {"adamw"}


def test_an_adapter_is_refused():
    data = ({"path": "rows"},)
    with pytest.raises(ValueError, match="`muon` is for whole matrices"):
        SftConfig(data=data, steps=1, optimizer="muon", adapter={"rank": 4})


def test_the_world_decides_what_products_are_made_in():
    group = {"params": [nn.Parameter(torch.zeros(2, 2))], "rule": "muon", "side": None}
    given = {"precision": "float32", "seed": 0}
    assert Muon([group], 1.0, world=World(), **given)._products == torch.float32
    device = torch.device("cuda")
    assert Muon([group], 1.0, world=World(device=device), **given)._products == torch.bfloat16
