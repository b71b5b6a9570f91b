"""The fast runner against plain forward passes on the device."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "generate"))
import engine_cases as cases
from engine_cases import VOCAB, Ids, answer, difference, run

from singalaut.generate.core import Core
from singalaut.generate.memory import Room

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def small(size: str, dtype: torch.dtype = torch.bfloat16):
    return cases.small(size).to("cuda", dtype)


@pytest.mark.parametrize("size", ["270m", "4b", "27b"])
@pytest.mark.parametrize("slots", [1, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_plain_passes(size, slots, dtype):
    model = small(size, dtype)
    core = Core(model, Ids(), Room(slots, 2048, 300), 200 << 20)
    lengths = [1, 40, 127, 128, 129, 300, 700, 33, 65, 64, 31, 500]
    generator = torch.Generator().manual_seed(1)
    answers = []
    for order, length in enumerate(lengths):
        prompt = torch.randint(110, VOCAB, (length,), generator=generator).tolist()
        kind = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 20}]
        answers.append(answer(prompt, order, max_tokens=150, **kind[order % 3]))
    run(core, answers)
    assert [a.num_written for a in answers] == [150] * len(lengths)
    found = torch.cat([difference(core, each) for each in answers])
    print(size, slots, dtype, found.abs().mean().item(), found.abs().max().item())
    mean, largest = (0.01, 0.2) if dtype == torch.bfloat16 else (1e-4, 1e-3)
    assert found.abs().mean() < mean and found.abs().max() < largest
    assert all(pool.used == 0 for pool in core.scheduler.tables.pools.values())


def test_preemption_sharing_and_features():
    model = small("1b")
    core = Core(model, Ids(), Room(8, 2048, 256), 12 << 20)
    stem = list(range(200, 300))
    params = [
        {"temperature": 1.0, "repetition_penalty": 1.2},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.0, "logit_bias": {7: 50.0}},
        {"temperature": 1.0, "min_tokens": 5},
        {"temperature": 1.0, "top_logprobs": 3},
        {"temperature": 0.0, "prompt_logprobs": True},
    ]
    answers = [answer([*stem, 300 + i], i, max_tokens=100, **p) for i, p in enumerate(params)]
    answers += [answer([*stem, 400 + i], 50 + i, max_tokens=100) for i in range(10)]
    run(core, answers)
    assert core.statistics()["shared_tokens"] > 96 * 8
    assert set(answers[2].tokens[-100:]) == {7}
    assert len(answers[5].prompt_logprobs) == 101
    found = torch.cat([difference(core, each) for each in answers])
    assert found.abs().mean() < 0.01 and found.abs().max() < 0.2


def test_a_seed_decides_whatever_the_company():
    model = small("270m", torch.float32)  # in bfloat16 the batch changes roundings
    core = Core(model, Ids(), Room(16, 2048, 512), 200 << 20)
    alone = answer([5, 6, 7], 3, max_tokens=40)
    run(core, [alone])
    again = answer([5, 6, 7], 3, max_tokens=40)
    run(core, [answer([9] * n, 100 + n, max_tokens=30) for n in range(1, 12)] + [again])
    assert again.tokens == alone.tokens


def test_weights_that_change_are_seen():
    model = small("270m")
    core = Core(model, Ids(), Room(4, 2048, 512), 50 << 20)
    before = answer([5, 6, 7], 3, max_tokens=20)
    run(core, [before])
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.up.weight.mul_(-1)
    core.weights_changed()
    after = answer([5, 6, 7], 3, max_tokens=20)
    run(core, [after])
    assert after.tokens != before.tokens
    assert difference(core, after).abs().max() < 0.2
    core.sleep()
    core.wake()
    again = answer([5, 6, 7], 3, max_tokens=20)
    run(core, [again])
    assert again.tokens == after.tokens


def test_numbers_that_are_none_end_one_request():
    model = small("270m")
    with torch.no_grad():
        model.embedding.weight[VOCAB + 5] = float("nan")
    core = Core(model, Ids(), Room(4, 2048, 512), 50 << 20)
    good, bad = answer([5, 6, 7], 1, max_tokens=10), answer([5, VOCAB + 5, 7], 2, max_tokens=10)
    run(core, [good, bad])
    assert good.finish == "length"
    assert bad.finish == "error" and "layer 0" in bad.error


@pytest.mark.parametrize("weights", [None, "int8", "fp8"])
@pytest.mark.parametrize("size", ["1b", "4b"])
def test_any_company_gives_the_same_bits(size, weights):
    model = small(size)
    ways = {"batch_invariant": True, "weights": weights}
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 20},
        {"temperature": 1.0, "top_p": 0.9, "top_logprobs": 3},
        {"temperature": 1.0, "repetition_penalty": 1.2},
        {"temperature": 1.0, "prompt_logprobs": True},
    ]
    generator = torch.Generator().manual_seed(4)
    stem = torch.randint(110, VOCAB, (200,), generator=generator).tolist()
    asked = [(stem[: 40 * (i % 5)] + stem[i : i + 30], kinds[i % 6]) for i in range(18)]

    def bits(each):
        return each.tokens.tolist(), each.logprobs, each.top_logprobs, each.prompt_logprobs

    lonely = Core(model, Ids(), Room(1, 2048, 2048), 200 << 20, **ways)
    wanted = []
    for order, (prompt, kind) in enumerate(asked):
        lonely.weights_changed()  # nothing is known of the others
        wanted.append(answer(prompt, order, max_tokens=60, **kind))
        run(lonely, wanted[-1:])
    crowded = Core(model, Ids(), Room(12, 2048, 100), 14 << 20, **ways)
    found = [answer(prompt, i, max_tokens=60, **kind) for i, (prompt, kind) in enumerate(asked)]
    run(crowded, found[::-1])
    counts = crowded.statistics()
    print(size, weights, counts["preemptions"], counts["shared_tokens"])
    assert [bits(each) for each in found] == [bits(each) for each in wanted]
    if weights is None:
        differences = torch.cat([difference(lonely, each) for each in wanted])
        assert differences.abs().mean() < 0.01 and differences.abs().max() < 0.2


@pytest.mark.parametrize("weights", ["int8", "fp8"])
@pytest.mark.parametrize("slots", [1, 4, 32])
def test_weights_of_eight_bits_are_close(weights, slots):
    model = small("1b")
    core = Core(model, Ids(), Room(slots, 2048, 512), 200 << 20, weights=weights)
    answers = [answer([5, 6, 7 + i], i, max_tokens=50) for i in range(slots)]
    run(core, answers)
    found = torch.cat([difference(core, each) for each in answers])
    print(weights, slots, found.abs().mean().item(), found.abs().max().item())
    assert 1e-4 < found.abs().mean() < (0.1 if weights == "int8" else 0.3)
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.up.weight.mul_(-1)
    core.weights_changed()
    after = [answer([5, 6, 7 + i], i, max_tokens=50) for i in range(slots)]
    run(core, after)
    found = torch.cat([difference(core, each) for each in after])
    assert found.abs().mean() < (0.1 if weights == "int8" else 0.3)
