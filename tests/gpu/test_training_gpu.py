"""Training on the device: kernels against PyTorch, bfloat16 runs against a float32 one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import training_cases as cases

from singalaut.data.batches import Micro
from singalaut.loss.logprobs import token_logprobs
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.training import compile_layers
from singalaut.train.muon import Muon
from singalaut.train.optim import adamw
from singalaut.train.parallel import World
from singalaut.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CONFIG = Gemma3Config(256, 512, 6, 4, 1, 64, 64.0, 128, 1024, 5000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [37, 8192, 262_144])
def test_losses_and_gradient_of_logits(vocabulary, dtype):
    from singalaut.loss.kernels import losses_and_error

    generator = torch.Generator().manual_seed(vocabulary)
    logits = (4 * torch.randn(64, vocabulary, generator=generator)).cuda().to(dtype)
    targets = torch.randint(0, vocabulary, (64,), generator=generator).cuda()
    exact = logits.float().requires_grad_()
    wanted = cross_entropy(exact, targets, reduction="none")
    (gradient,) = torch.autograd.grad(wanted.sum(), exact)
    losses = torch.empty(64, device="cuda")
    losses_and_error(logits, targets, losses, wants_error=True)
    torch.testing.assert_close(losses, wanted.detach(), rtol=1e-5, atol=1e-5)
    bound = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-6}
    torch.testing.assert_close(logits.float(), gradient, **bound)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_and_their_gradients(dtype, temperature):
    """Through kernels on the device, and by the formula in float64."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(300, 64, generator=generator).to(dtype)
    weight = torch.randn(20_000, 64, generator=generator).to(dtype)
    targets = torch.randint(0, 20_000, (300,), generator=generator)
    factors = torch.randn(300, generator=generator)
    h, w = (x.double().requires_grad_() for x in (hidden, weight))
    cold, plain = ((h @ w.T / t).log_softmax(-1) for t in (temperature, 1.0))
    chosen, alone = (x.gather(1, targets[:, None])[:, 0] for x in (cold, plain))
    (chosen * factors).sum().backward()
    wanted = chosen, -(cold.exp() * cold).sum(-1), alone, h.grad, w.grad
    h, w = (x.cuda().requires_grad_() for x in (hidden, weight))
    found = token_logprobs(h, w, targets.cuda(), temperature, 128)
    (found[0] * factors.cuda()).sum().backward()
    bound = 2e-3 if dtype == torch.float32 else 0.02  # products may be in TF32
    for ours, exact in zip((*found, h.grad, w.grad), wanted, strict=True):
        assert (ours.cpu() - exact).abs().mean() < bound * exact.abs().mean()
        assert (ours.cpu() - 1.1 * exact).abs().mean() > bound * exact.abs().mean()
    one, each = (
        torch.autograd.grad(
            (token_logprobs(h, w, targets.cuda(), temperature, 128)[0] * factor).sum(), h
        )[0]
        for factor in (1.0, torch.ones(300, device="cuda"))
    )
    assert torch.equal(one, each)  # a gradient that one number stands for


def test_optimiser_kernel():
    cases.check_master("cuda")
    cases.check_rounding("cuda")


@pytest.mark.parametrize("columns", [256, 300])
def test_optimiser_kernel_with_moments_in_8_bits(columns):
    cases.check_coded("cuda", columns)


def test_muon_in_bfloat16_steps_as_in_float32():
    """The same gradients: products in bfloat16 and moments in 8 bits change a few percent."""
    generator = torch.Generator().manual_seed(0)
    start = 0.05 * torch.randn(256, 512, generator=generator)
    gradients = torch.randn(6, 256, 512, generator=generator)
    found = {}
    for device, precision, moments in (
        ("cpu", "float32", "full"),
        ("cuda", "float32", "full"),
        ("cuda", "master", "full"),
        ("cuda", "rounded", "int8"),
    ):
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        weight = torch.nn.Parameter(start.to(device, dtype, copy=True))
        group = {"params": [weight], "weight_decay": 0.1, "rule": "muon", "side": None}
        world = World(device=torch.device(device))
        given = {"precision": precision, "moments": moments, "seed": 0, "world": world}
        optimizer = Muon([group], 2e-2, **given)
        for gradient in gradients:
            weight.grad = gradient.to(device, dtype)
            optimizer.step()
        found[device, precision, moments] = weight.detach().float().cpu()
    wanted = found.pop(("cpu", "float32", "full"))
    for key, weight in found.items():
        error = (weight - wanted).norm() / (wanted - start).norm()
        assert error < (0.08 if key[1] == "rounded" else 0.03), (key, error)


def test_a_bfloat16_run_follows_a_float32_one():
    """Twenty steps on few rows; compiled, packed, in each precision, also with 8-bit moments."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 4900, (1, 600), generator=generator)
    micro = Micro(tokens, torch.ones(1, 600, dtype=torch.bool), (200, 300, 100))
    world = World(device=torch.device("cuda"))
    curves = {}
    kinds = [(p, m) for p in ("float32", "master", "rounded") for m in ("full", "int8")]
    for precision, moments in kinds:
        model = initialise(Gemma3(CONFIG), 3).cuda().train()
        if precision != "float32":
            model.bfloat16()
            torch._dynamo.reset()
            compile_layers(model)
        optimizer = adamw(model, 3e-3, 0.0, precision, moments=moments)
        steps = [train_step(model, optimizer, [micro], 3e-3, 1.0, world) for _ in range(20)]
        curves[precision, moments] = [meters.loss for meters in steps]
    print(curves)
    exact = curves.pop(("float32", "full"))
    assert exact[-1] < 0.7 * exact[0]
    for kind, curve in curves.items():
        for found, wanted in zip(curve, exact, strict=True):
            assert abs(found - wanted) <= 0.03 * wanted, kind
