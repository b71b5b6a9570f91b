"""Packed weights of fewer bits against products with what they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.errors import MachineError
from singalaut.model.linear import INT4_GROUP, Int4, Linear


def layer(width: int, count: int, seed: int = 0) -> Linear:
    made = Linear(width, count).requires_grad_(False)
    made.weight.copy_(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))
    return made


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """The weight after rounding, by the plain definition."""
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale
    out = torch.empty_like(weight)
    for row, values in zip(out, weight, strict=True):
        for first in range(0, len(values), INT4_GROUP):
            group = values[first : first + INT4_GROUP]
            if len(group) < INT4_GROUP:  # padded with zeros
                group = torch.cat((group, torch.zeros(INT4_GROUP - len(group))))
            scale = ((group.max() - group.min()) / 15).bfloat16().float()
            middle = (group.min() + 8 * scale).bfloat16().float()
            steps = ((group - middle) / scale).round().clamp(-8, 7)
            end = min(first + INT4_GROUP, len(values))
            row[first:end] = (steps * scale + middle)[: end - first]
    return out


@pytest.mark.parametrize("kind", ["int8", "int4"])
@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 6).map(lambda n: 32 * n), count=st.integers(1, 70), rows=st.integers(1, 80)
)
def test_products_are_those_of_the_rounded_weight(kind, width, count, rows):
    module = layer(width, count, seed=width + count)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    x[0, 0] = 100.0  # one entry that would drown the others in eight bits
    module.pack(kind)
    with torch.inference_mode():
        found = module(x)
    inputs = x.bfloat16().float() if kind == "int4" else x
    wanted = inputs @ rounded(module.weight, kind).T
    close = {"int8": 2e-3, "int4": 1e-2}[kind]
    assert (found - wanted).norm() < close * wanted.norm()
    assert (found - wanted * 1.05).norm() > close * wanted.norm()


def test_bits_cost_what_they_should():
    module = layer(640, 320)
    x = torch.randn(4, 640, generator=torch.Generator().manual_seed(1))
    wanted = module(x)
    for kind, most in (("int8", 0.01), ("int4", 0.1)):
        module.pack(kind)
        with torch.inference_mode():
            error = (module(x) - wanted).norm() / wanted.norm()
        assert most / 10 < error < most
    module.unpack()
    assert torch.equal(module(x), wanted)


def test_widths_that_are_no_multiple_of_a_group():
    module = layer(50, 20)
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    packed = Int4.of(module.weight)
    error = (packed.product(x) - module(x)).norm() / module(x).norm()
    assert packed.product(x).shape == (3, 20) and error < 0.1


def test_what_cannot_be_packed_is_refused():
    module = layer(32, 16).to(torch.float64)
    with pytest.raises(MachineError, match="int8 need"):
        module.pack("int8")
