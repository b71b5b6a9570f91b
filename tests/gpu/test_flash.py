"""The CUDA attention against the mask's definition, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch

from singalaut.model.attention import Dense, Packed, causal_attention, visible
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.training import checkpoint_layers, compile_layers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CASES = [
    (700, 700, 512, 4, 1, 256),
    (700, 700, None, 4, 1, 256),
    (3, 800, 512, 8, 4, 256),
    (1300, 1300, 1024, 8, 4, 128),
]


def tensors(rows, new, total, heads, groups, width):
    generator = torch.Generator("cuda").manual_seed(new)

    def random(count, length):
        x = torch.randn(rows, count, length, width, device="cuda", generator=generator)
        return x.bfloat16().requires_grad_()

    return random(heads, new), random(groups, total), random(groups, total)


def exact(q, k, v, scale, window):
    """In float32 with the whole mask."""
    total, group = k.shape[2], q.shape[1] // k.shape[1]
    places = torch.arange(total, device="cuda")
    scores = q.float() @ k.float().repeat_interleave(group, 1).transpose(-1, -2) * scale
    hidden = ~visible(places[total - q.shape[2] :], places, window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return weights @ v.float().repeat_interleave(group, 1)


def error(found, wanted):
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


@pytest.mark.parametrize(("new", "total", "window", "heads", "groups", "width"), CASES)
def test_outputs_and_gradients(new, total, window, heads, groups, width):
    inputs = tensors(2, new, total, heads, groups, width)
    wanted = exact(*inputs, 0.06, window)
    found = causal_attention(*inputs, 0.06, window)
    assert error(found, wanted) < 5e-3
    weight = torch.randn_like(wanted)
    expected = torch.autograd.grad((wanted * weight).sum(), inputs)
    grads = torch.autograd.grad((found.float() * weight).sum(), inputs)
    assert max(error(a, b) for a, b in zip(grads, expected, strict=True)) < 1e-2


def test_a_wrong_window_is_noticed():
    inputs = tensors(1, 700, 700, 4, 1, 256)
    assert error(causal_attention(*inputs, 0.06, 511), exact(*inputs, 0.06, 512)) > 5e-3


@pytest.mark.parametrize("window", [512, None])
def test_images_in_packed_documents(window):
    lengths, (heads, groups, width) = (300, 900), (8, 4, 256)
    images = torch.full((1200,), -1)
    images[40:296], images[310:566], images[900:1156] = 0, 1, 2
    plan = Packed(lengths, images, "cuda")
    inputs = tensors(1, 1200, 1200, heads, groups, width)
    places = torch.arange(1200, device="cuda")
    seen = visible(places, places, window, plan.images, plan.documents)
    q, k, v = (x.float() for x in inputs)
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.06
    wanted = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v.repeat_interleave(2, 1)
    found = plan.attend(0, *inputs, 0.06, window)
    assert error(found, wanted) < 5e-3
    weight = torch.randn_like(wanted)
    expected = torch.autograd.grad((wanted * weight).sum(), inputs)
    grads = torch.autograd.grad((found.float() * weight).sum(), inputs)
    assert max(error(a, b) for a, b in zip(grads, expected, strict=True)) < 1e-2
    causal = Packed(lengths, device="cuda").attend(0, *inputs, 0.06, window)
    assert error(causal, wanted) > 5e-2


@pytest.mark.parametrize("keep", ["inputs", "attention", "products"])
def test_compiled_and_recomputed_layers(keep):
    torch._dynamo.reset()
    config = Gemma3Config(256, 512, 6, 4, 1, 256, 256.0, 512, 4096, 512, 8.0)
    plain = initialise(Gemma3(config), seed=0).cuda().bfloat16()
    model = compile_layers(checkpoint_layers(copy.deepcopy(plain), keep))
    for lengths in ((700, 300), (400, 401, 203), (64,)):
        tokens = torch.randint(5, 500, (1, sum(lengths)), device="cuda")
        plan = Packed(lengths, device="cuda")
        grads = []
        for network in (plain, model):
            network.zero_grad()
            network(tokens, plan.positions(), plan).float().square().mean().backward()
            grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        assert error(grads[1], grads[0]) < 2e-2


def test_packed_documents_equal_separate_ones():
    lengths = (5, 700, 1, 94)
    inputs = tensors(1, 800, 800, 8, 4, 256)
    packed = Packed(lengths, device="cuda").attend(0, *inputs, 0.06, 512)
    split = zip(*(x.split(lengths, dim=2) for x in inputs), strict=True)
    alone = torch.cat([Dense().attend(0, *piece, 0.06, 512) for piece in split], dim=2)
    assert error(packed, alone) < 5e-3
