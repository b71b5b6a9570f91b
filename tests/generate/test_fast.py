"""The fast runner in Triton's interpreter: exact in float32, whatever is asked of it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("tests/gpu runs these on the device", allow_module_level=True)

from engine_cases import Ids, answer, difference, run, small

from singalaut.generate import core as core_module
from singalaut.generate.core import Core
from singalaut.generate.fast import FastRunner
from singalaut.generate.kernels.matmul import Quantised
from singalaut.generate.memory import Room
from singalaut.model.linear import Linear

TINY = {
    "hidden_size": 64, "intermediate_size": 64, "num_layers": 2, "global_every": 2,
    "vocab_size": 500, "window": 40, "max_positions": 128, "head_dim": 16,
}  # fmt: skip
KINDS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.2},
    {"temperature": 0.0, "top_logprobs": 3, "prompt_logprobs": True},
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("size", "slots", "lengths"), [("1b", 1, [33, 5]), ("4b", 3, [1, 32, 70])])
def test_log_probabilities_are_those_of_plain_passes(size, slots, lengths, monkeypatch):
    monkeypatch.setattr(core_module, "PlainRunner", FastRunner)
    core = Core(small(size, **TINY), Ids(500), Room(slots, 128, 60), 20 << 20)
    generator = torch.Generator().manual_seed(1)
    answers = []
    for order, length in enumerate(lengths):
        prompt = torch.randint(110, 500, (length,), generator=generator).tolist()
        answers.append(answer(prompt, order, max_tokens=3, **KINDS[order + slots]))
    run(core, answers)
    assert [each.num_written for each in answers] == [3] * len(lengths)
    for each in answers:
        assert difference(core, each).abs().max() < 1e-4
        scored = each.request.sampling.prompt_logprobs
        assert len(each.prompt_logprobs) == (each.num_prompt if scored else 0)
    assert all(pool.used == 0 for pool in core.scheduler.tables.pools.values())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("slots", [1, 2])
def test_weights_of_eight_bits(slots, kind, monkeypatch):
    """Against a plain model that has the rounded weights."""
    monkeypatch.setattr(core_module, "PlainRunner", FastRunner)
    model = small("1b", **TINY)
    core = Core(model, Ids(500), Room(slots, 128, 60), 20 << 20, weights=kind)
    answers = [answer([2, 150 + i], i, max_tokens=3, **KINDS[1]) for i in range(slots)]
    run(core, answers)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear) and module is not model.embedding:
                module.weight.copy_(Quantised.of(module.weight, kind).dequantised())
        head = Quantised.of(model.embedding.weight, kind).dequantised()
    for each in answers:
        rounded = difference(core, each, head)
        assert rounded.abs().max() < 1e-4
        assert (difference(core, each) - rounded).abs().max() > 1e-4
