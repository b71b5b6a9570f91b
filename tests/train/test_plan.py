"""The memory plan beside what an optimiser, an average and gradients really hold."""

from __future__ import annotations

import pytest
import torch

from singalaut.errors import MachineError
from singalaut.model.config import SIZES, Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.train.average import Average
from singalaut.train.optim import adamw, muon
from singalaut.train.plan import GIB, check_memory, memory_plan, remedies

CONFIG = Gemma3Config(256, 512, 2, 4, 1, 64, 64.0, 128, 1024, 2000)
KINDS = [
    (rule, precision, moments)
    for rule in ("adamw", "muon")
    for precision in ("float32", "master", "rounded")
    for moments in ("full", "int8")
]


def held(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(("rule", "precision", "moments"), KINDS)
def test_what_is_kept_is_what_was_planned(rule, precision, moments):
    """Within 2 %: norms are not counted."""
    model = initialise(Gemma3(CONFIG), 0).requires_grad_(True)
    if precision != "float32":
        model.bfloat16()
    make = muon if rule == "muon" else adamw
    optimizer = make(model, 1e-3, 0.0, precision, 0, moments)
    average = Average(model, optimizer, 0.9)
    model(torch.arange(9)[None]).float().square().mean().backward()
    gradients = held(p.grad for p in model.parameters())
    optimizer.step()
    given = {"precision": precision, "rule": rule, "moments": moments, "keep": "all"}
    plan = memory_plan(CONFIG, 9, has_average=True, **given)
    kept = held(tensor for state in optimizer.state.values() for tensor in state.values())
    assert kept == pytest.approx(plan["optimiser"], rel=0.02)
    assert gradients == pytest.approx(plan["gradients"], rel=0.02)
    assert held(model.parameters()) == pytest.approx(plan["weights"], rel=0.02)
    assert held(average.kept.values()) == pytest.approx(plan["average"], rel=0.02)


def test_processes_divide_what_replicas_do_not():
    def plan(**more):
        return memory_plan(SIZES["4b"], 4096, precision="master", keep="all", **more)

    one, eight, replicas = plan(), plan(processes=8), plan(processes=8, replicas=2)
    for part in ("weights", "optimiser", "gradients"):
        assert eight[part] == one[part] // 8 and replicas[part] == one[part] // 4
    kept = "kept for the backward pass"
    neighbours = plan(processes=8, tensor=4)
    assert one[kept] == eight[kept] > neighbours[kept] > one[kept] / 4
    assert neighbours["put together"] < eight["put together"]


def test_a_refusal_names_8_bits():
    plan = memory_plan(SIZES["27b"], 4096, precision="master", keep="all")
    with pytest.raises(MachineError, match="the device has 80") as refused:
        check_memory(plan, 80 * GIB, "27b")
    assert 'moments = "int8"' in str(refused.value)
    has = {"precision": "rounded", "moments": "int8", "adapter": None}
    assert remedies(plan, 80 * GIB, has) == ["train an `adapter`", "use more GPUs by `torchrun`"]
    given = {"keep": "inputs", "micro_tokens": 4096}
    assert remedies(plan, 10**12, given) == ["lower `micro_tokens`"]
    rl = {"precision": "master", "adapter": None, "sharded": False}  # which has no `moments`
    assert remedies(plan, 80 * GIB, rl) == [
        'set `precision = "rounded"`',
        "train an `adapter`",
        "use more GPUs by `torchrun` and `sharded = true`",
    ]
