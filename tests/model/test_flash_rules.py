"""What the CUDA kernel is told, with the kernel replaced by its own definition in plain PyTorch.

`tests/gpu/test_flash.py` holds the real kernel to the same mask.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reduced_shapes import VISION, reduced_seeing

from singalaut.model import attention
from singalaut.model.attention import Dense, Packed, visible
from singalaut.model.flash import ImageRuns, Spans
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.training import checkpoint_layers, compile_layers


def by_definition(query, key, value, cu_q, cu_k, scale, window, grad=None):
    """Spans that attend alone; queries are the last of their keys; a window of -1 is no limit.

    With `grad`, that of the outputs, the gradients of queries, keys and values instead.
    """
    left, right = window
    group = query.shape[1] // key.shape[1]
    found = []
    for i in range(len(cu_q) - 1):
        span = slice(int(cu_q[i]), int(cu_q[i + 1]))
        q = query[span].transpose(0, 1)
        k, v = (
            x[int(cu_k[i]) : int(cu_k[i + 1])].transpose(0, 1).repeat_interleave(group, 0)
            for x in (key, value)
        )
        places = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
        behind = places - torch.arange(k.shape[1])[None]
        seen = torch.ones_like(behind, dtype=torch.bool)
        seen = seen if left < 0 else seen & (behind <= left)
        seen = seen if right < 0 else seen & (-behind <= right)
        scores = q @ k.transpose(-1, -2) * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        if grad is None:
            found.append([weights @ v])
            continue
        g = grad[span].transpose(0, 1)
        of_weights = g @ v.transpose(-1, -2)
        inner = (of_weights * weights).sum(-1, keepdim=True)
        of_scores = weights * (of_weights - inner) * scale
        of_keys = (of_scores.transpose(-1, -2) @ q).unflatten(0, (-1, group)).sum(1)
        of_values = (weights.transpose(-1, -2) @ g).unflatten(0, (-1, group)).sum(1)
        found.append([of_scores @ k, of_keys, of_values])
    return [torch.cat([x.transpose(0, 1) for x in xs]) for xs in zip(*found, strict=True)]


@pytest.fixture(autouse=True, scope="module")
def kernel():
    """The operator of the kernel on a CPU, where it has none of its own."""
    from torch.nn.attention import varlen

    def forward(query, key, value, cu_q, cu_k, max_q, max_k, causal=False, scale=None, *rest):
        assert max_q >= int(cu_q.diff().max()) and max_k >= int(cu_k.diff().max())
        window = list(rest[0])
        assert causal == (window == [-1, 0])
        out = by_definition(query, key, value, cu_q, cu_k, scale, window)[0]
        return out, query.new_zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)

    def backward(grad, query, key, value, out, lse, cu_q, cu_k, max_q, max_k, causal, rng, *rest):
        scale, window = rest
        return tuple(by_definition(query, key, value, cu_q, cu_k, scale, window, grad))

    varlen._varlen_attn.register_kernel("cpu")(forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(backward)


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setattr(attention, "can_flash", lambda queries: True)


def row(lengths, images):
    """Groups of a packed row in which documents have the given images (start, length).

    A later image that lies in an earlier one cuts it in two, as groups are runs.
    """
    marks = torch.full((sum(lengths),), -1)
    number = start = 0
    for length, runs in zip(lengths, images, strict=True):
        for begin, size in runs:
            marks[start + begin : start + min(begin + size, length)] = number
            number += 1
        start += length
    begins = torch.cat((torch.tensor([True]), marks.diff() != 0))
    return (begins.cumsum(0) - 1).masked_fill(marks < 0, -1)


def tensors(total):
    generator = torch.Generator().manual_seed(total)
    q = torch.randn(1, 4, total, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(1, 2, total, 8, generator=generator, requires_grad=True) for _ in range(2))
    return q, k, v


def by_mask(q, k, v, window, images, documents):
    places = torch.arange(q.shape[2])
    seen = visible(places, places, window, images, documents)
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.3
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v.repeat_interleave(2, 1)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), window=st.one_of(st.none(), st.integers(1, 12)))
def test_packed_documents_with_images(data, window):
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    images = [
        data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(1, 7)), max_size=3))
        for n in lengths
    ]
    groups = row(lengths, images)
    plan = Packed(tuple(lengths), groups)
    inputs = tensors(sum(lengths))
    wanted = by_mask(*inputs, window, groups, plan.documents)
    before, attention.can_flash = attention.can_flash, lambda queries: True
    try:
        found = plan.attend(0, *inputs, 0.3, window)
    finally:
        attention.can_flash = before
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((wanted * weight).sum(), inputs)
    grads = torch.autograd.grad((found * weight).sum(), inputs)
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_whole_rows_with_a_past(flash):
    q, k, v = tensors(20)
    whole = Dense().attend(0, q, k, v, 0.3, 6)
    torch.testing.assert_close(whole, by_mask(q, k, v, 6, None, None), rtol=1e-4, atol=1e-5)
    last = attention.causal_attention(q[:, :, 15:], k, v, 0.3, 6)
    torch.testing.assert_close(last, whole[:, :, 15:], rtol=1e-4, atol=1e-5)
    rows = [torch.cat((x, x.flip(2))) for x in (q, k, v)]
    both = Dense().attend(0, *rows, 0.3, 6)
    torch.testing.assert_close(both[:1], whole, rtol=1e-4, atol=1e-5)


def test_runs_of_images():
    groups = row((6, 5), [[(1, 2)], [(0, 1), (2, 3)]])
    runs = ImageRuns.of((6, 5), groups, "cpu")
    assert runs.queries.tolist() == [1, 2, 6, 8, 9, 10]
    assert runs.keys.tolist() == [0, 1, 2, 6, 6, 7, 8, 9, 10]
    assert runs.query_spans.starts.tolist() == [0, 2, 3, 6]
    assert runs.key_spans.starts.tolist() == [0, 3, 4, 9]
    assert ImageRuns.of((3,), torch.full((3,), -1), "cpu") is None


@pytest.mark.parametrize(("lengths", "longest"), [((5, 3), 128), ((129,), 256), ((512, 1), 512)])
def test_the_bound_of_lengths_takes_few_values(lengths, longest):
    spans = Spans.of(lengths, "cpu")
    assert spans.longest == longest and spans.starts.dtype == torch.int32
    assert spans.starts.tolist()[-1] == sum(lengths)


def test_a_compiled_network_on_the_kernel(flash):
    torch._dynamo.reset()
    plain = initialise(Gemma3(reduced_seeing("4b")), seed=0)
    model = compile_layers(checkpoint_layers(copy.deepcopy(plain), "attention"), "aot_eager")
    image = [VISION.start_id, *[VISION.image_id] * VISION.image_tokens, VISION.end_id]
    lengths = (25, 39, 16)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 290, (1, sum(lengths)), generator=generator)
    tokens[0, 30 : 30 + len(image)] = torch.tensor(image)
    images = torch.randn(1, 4, plain.config.hidden_size, generator=generator)
    plan = Packed(lengths, plain.image_groups(tokens)[0])
    grads = []
    for network in (plain, model):
        network(tokens, plan.positions(), plan, images).square().mean().backward()
        found = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        grads.append(torch.cat(found))
    assert (grads[0] - grads[1]).norm() <= 1e-6 * grads[0].norm()
