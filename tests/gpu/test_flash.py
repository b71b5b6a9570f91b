"""The CUDA attention against the mask's definition, forward and backward."""

from __future__ import annotations

import pytest
import torch

from singalaut.model.attention import Dense, Packed, causal_attention, visible

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


def test_packed_documents_equal_separate_ones():
    lengths = (5, 700, 1, 94)
    inputs = tensors(1, 800, 800, 8, 4, 256)
    packed = Packed(lengths).attend(0, *inputs, 0.06, 512)
    split = zip(*(x.split(lengths, dim=2) for x in inputs), strict=True)
    alone = torch.cat([Dense().attend(0, *piece, 0.06, 512) for piece in split], dim=2)
    assert error(packed, alone) < 5e-3
