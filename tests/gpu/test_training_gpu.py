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
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.training import compile_layers
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


def test_optimiser_kernel():
    cases.check_master("cuda")
    cases.check_rounding("cuda")


def test_a_bfloat16_run_follows_a_float32_one():
    """Twenty steps on few rows; compiled, packed, in each precision."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 4900, (1, 600), generator=generator)
    micro = Micro(tokens, torch.ones(1, 600, dtype=torch.bool), (200, 300, 100))
    world = World(device=torch.device("cuda"))
    curves = {}
    for precision in ("float32", "master", "rounded"):
        model = initialise(Gemma3(CONFIG), 3).cuda().train()
        if precision != "float32":
            model.bfloat16()
            torch._dynamo.reset()
            compile_layers(model)
        optimizer = adamw(model, 3e-3, 0.0, precision)
        steps = [train_step(model, optimizer, [micro], 3e-3, 1.0, world) for _ in range(20)]
        curves[precision] = [meters.loss for meters in steps]
    print(curves)
    assert curves["float32"][-1] < 0.7 * curves["float32"][0]
    for precision in ("master", "rounded"):
        for found, wanted in zip(curves[precision], curves["float32"], strict=True):
            assert abs(found - wanted) <= 0.03 * wanted, precision
