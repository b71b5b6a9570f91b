"""Training state that is saved from a CUDA device and brought back to it."""

from __future__ import annotations

import pytest
import torch

from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.train.checkpoint import Checkpoints
from singalaut.train.optim import adamw, muon
from singalaut.train.parallel import World

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIG = Gemma3Config(32, 64, 6, 4, 2, 16, 16.0, 8, 512, 512, 8.0, global_every=3)


WORLD = World(device=torch.device("cuda"))


def begin(precision, make=adamw, moments="full"):
    model = initialise(Gemma3(CONFIG), seed=0).cuda()
    if precision != "float32":
        model.bfloat16()
    return model, make(model, 1e-2, 0.1, precision, 4, moments, WORLD)


def steps(model, optimizer, first, last):
    for step in range(first, last):
        tokens = torch.arange(step, step + 20, device="cuda")[None]
        model.logits(model(tokens)).float().logsumexp(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("moments", ["full", "int8"])
@pytest.mark.parametrize("make", [adamw, muon])
@pytest.mark.parametrize("precision", ["float32", "master", "rounded"])
def test_a_resumed_run_goes_on(tmp_path, precision, make, moments):
    model, optimizer = begin(precision, make, moments)
    steps(model, optimizer, 0, 3)
    checkpoints = Checkpoints(tmp_path, model, optimizer, WORLD)
    checkpoints.save(3)
    checkpoints.finish()
    steps(model, optimizer, 3, 6)
    again, other = begin(precision, make, moments)
    assert Checkpoints(tmp_path, again, other, WORLD).load() == 3
    steps(again, other, 3, 6)
    # a bit in a gradient may become a code or a rounding in bfloat16; a step is 1e-2 long
    exact = make is adamw and moments == "full"
    for (name, one), two in zip(model.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 if exact else 1e-3, msg=name)
