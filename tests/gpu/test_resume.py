"""Training state that is saved from a CUDA device and brought back to it."""

from __future__ import annotations

import pytest
import torch

from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.train.checkpoint import load_state, save_state
from singalaut.train.optim import adamw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIG = Gemma3Config(32, 64, 6, 4, 2, 16, 16.0, 8, 512, 512, 8.0, global_every=3)


def begin():
    model = initialise(Gemma3(CONFIG), seed=0).cuda()
    return model, adamw(model, 1e-2, 0.1)


def steps(model, optimizer, first, last):
    for step in range(first, last):
        tokens = torch.arange(step, step + 20, device="cuda")[None]
        model.logits(model(tokens)).logsumexp(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_resumed_run_goes_on(tmp_path):
    model, optimizer = begin()
    steps(model, optimizer, 0, 3)
    save_state(tmp_path / "state.safetensors", model, optimizer, 3)
    steps(model, optimizer, 3, 6)
    again, other = begin()
    assert load_state(tmp_path / "state.safetensors", again, other) == 3
    steps(again, other, 3, 6)
    for (name, one), two in zip(model.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6, msg=name)
