"""Plans against what was measured: speeds, peaks and caches in docs/performance.md."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from singalaut.model.config import SIZES
from singalaut.model.gemma3 import Gemma3
from singalaut.model.lora import add_adapter
from singalaut.rl.config import RlConfig
from singalaut.rl.plan import cache_bytes, engine_weight_bytes, rl_estimate, rl_memory
from singalaut.train.config import AdapterConfig, ApoConfig, SftConfig
from singalaut.train.devices import DEVICES, ENGINE_TOKENS, TRAINING_FLOPS, device_of
from singalaut.train.estimate import (
    Fleet,
    adapter_weights,
    apo_estimate,
    nearest_size,
    sft_estimate,
)
from singalaut.train.plan import GIB, memory_plan

DOCUMENT = (Path(__file__).parents[2] / "docs" / "performance.md").read_text("utf-8")
H100, H200 = DEVICES["NVIDIA H100"], DEVICES["NVIDIA H200"]
ROW = re.compile(
    r"^\| (\w+), (rounded|master|LoRA), (\d+) × ([\d,]+) tokens(?: each)?, keeps (\w+) \| ([\d,]+)"
    r".*?\| ([\d.]+)\s?% \| ([\d.]+) GiB \| ([\d.]+) GiB \|$",
    re.M,
)


def section(name):
    return DOCUMENT.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]


def measured(name):
    """Shape, precision, micro-batches, tokens, kept, tokens/s, MFU, peak and plan of each row."""
    rows = [list(row) for row in ROW.findall(section(name))]
    assert rows
    for row in rows:
        row[2:4] = [int(row[2]), int(row[3].replace(",", ""))]
        row[5:] = [float(value.replace(",", "")) for value in row[5:]]
    return rows


def shape_of(size):
    return replace(SIZES[size], vision=None)


def sft(**settings):
    given = {"data": [{"path": "rows"}], "steps": 10, "precision": "rounded", "batch_size": 1}
    return SftConfig.model_validate(given | settings)


@pytest.mark.parametrize(
    ("name", "processes"),
    [("sft-nvidia-h100-80gb-hbm3", 1), ("sft-nvidia-h200", 1), ("sft-2-nvidia-h200", 2)],
)
def test_planned_memory_is_within_five_percent_of_measured_peaks(name, processes):
    for size, precision, micros, tokens, keep, _, _, peak, planned in measured(name):
        learned = 0 if precision == "LoRA" else None
        plan = memory_plan(
            shape_of(size),
            tokens,
            precision="rounded" if precision == "LoRA" else precision,
            keep=keep,
            accumulates=micros > 1,
            learned=learned,
            processes=processes,
        )
        total = sum(plan.values()) / GIB
        assert total == pytest.approx(peak, rel=0.05), (size, precision)
        assert total == pytest.approx(planned, abs=0.06), (size, precision)
        assert 1.2 * total != pytest.approx(peak, rel=0.05)


def test_speeds_are_those_that_were_measured():
    (peak,) = re.findall(r"8192³: (\d+) TFLOP/s", section("sft-nvidia-h100-80gb-hbm3"))
    rows = measured("sft-nvidia-h100-80gb-hbm3")
    for size, precision, _, tokens, _, speed, mfu, *_ in rows:
        if precision != "rounded":
            continue
        assert TRAINING_FLOPS[size] == pytest.approx(mfu / 100 * float(peak) * 1e12, rel=0.01)
        found = sft_estimate(sft(), shape_of(size), [4096], 10, Fleet(H100))
        assert found.tokens / found.seconds["train"] == pytest.approx(speed, rel=0.03), size
        assert found.tokens == 40_960 and tokens % 4096 == 0
    rows = measured("sft-2-nvidia-h200")
    (row,) = [row for row in rows if row[0] == "27b"]
    size, speed = row[0], row[5]
    found = sft_estimate(sft(), shape_of(size), [4096], 10, Fleet(H200, 2))
    assert size == "27b" and found.tokens / found.seconds["train"] == pytest.approx(speed, rel=0.05)


def test_engine_speeds_are_those_that_were_measured():
    rows = re.findall(r"(\w+), 64 prompts × 8, 256 → 512 tokens \| ([\d,]+) tokens/s", DOCUMENT)
    found = {size: float(value.replace(",", "")) for size, value in rows}
    (largest,) = re.findall(r"27b, 64 requests, 128 → 256 tokens \| ([\d,]+) tokens/s", DOCUMENT)
    assert {**found, "27b": float(largest.replace(",", ""))} == ENGINE_TOKENS


def test_hours_energy_and_cost():
    fleet = Fleet(H100, 4, flops=4e14, watts=500, price=2.0)
    found = sft_estimate(sft(steps=1000), shape_of("1b"), [1000, 3000], 1000, fleet)
    hours = found.flops / (4 * 4e14) / 3600
    assert found.hours == pytest.approx(hours) and found.tokens == 2_000_000
    assert found.energy_kwh(fleet) == pytest.approx(hours * 4 * 0.5)
    assert found.cost(fleet) == pytest.approx(hours * 8)
    assert found.cost(Fleet(H100)) is None and found.speed_from == "as stated"
    slower = sft_estimate(sft(), shape_of("1b"), [1000], 10, Fleet(DEVICES["NVIDIA L40S"]))
    faster = sft_estimate(sft(), shape_of("1b"), [1000], 10, Fleet(H100))
    assert slower.hours / faster.hours == pytest.approx(989 / 362)


def test_alignment_takes_both_answers_and_the_reference_once():
    settings = {"data": [{"path": "x"}], "steps": 10, "batch_size": 4, "max_tokens": 500}
    config = ApoConfig.model_validate(settings)
    one = sft_estimate(sft(batch_size=80), shape_of("1b"), [500], 1, Fleet(H100))
    found = apo_estimate(config, shape_of("1b"), [500], 20, 10, Fleet(H100))
    # 40 pairs are learned from, of 20 there are; the reference goes over those once, forward
    assert found.flops == pytest.approx(one.flops * (1 + 0.5 / 3))
    assert set(found.seconds) == {"reference", "train"} and found.tokens == 40_000
    simpo = ApoConfig.model_validate(settings | {"loss": "simpo", "gamma": 0.5})
    assert apo_estimate(simpo, shape_of("1b"), [500], 20, 10, Fleet(H100)).flops == one.flops


def test_adapters_have_as_many_weights_as_the_network(tiny_config):
    adapter = AdapterConfig.model_validate({"rank": 3, "targets": ["query", "value", "down"]})
    network = Gemma3(tiny_config).requires_grad_(False)
    add_adapter(network, 3, 8.0, adapter.targets, seed=0)
    counted = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert adapter_weights(tiny_config, adapter) == counted


@pytest.mark.parametrize("size", ["1b", "4b"])
def test_the_learner_of_rl_is_planned_as_one_that_was_measured(size):
    """What has been measured of fine-tuning at 1B and 4B is the larger part of the plan."""
    rows = measured("sft-nvidia-h100-80gb-hbm3")
    (row,) = [row for row in rows if row[0] == size and row[1] == "rounded" and size in row[0]]
    _, precision, micros, tokens, keep, _, _, peak, _ = row
    plan = rl_memory(
        shape_of(size),
        answers=64,
        context_tokens=1024,
        micro_tokens=tokens,
        precision=precision,
        keep=keep,
    )
    engine = {name: part for name, part in plan.items() if name.startswith("engine's")}
    learner = (sum(plan.values()) - sum(engine.values())) / GIB
    without = plan["gradients"] / GIB if micros == 1 else 0.0  # one pass: none are kept
    assert learner - without == pytest.approx(peak, rel=0.05)
    assert engine["engine's weights"] == 0  # it reads those that are trained


def test_copies_of_the_engine_are_those_that_were_measured():
    (measured_gib,) = re.findall(r"1b, refresh of ([\d.]+) GiB of copies of float32", DOCUMENT)
    found = engine_weight_bytes(shape_of("1b"), "float32", False, False) / GIB
    assert found == pytest.approx(float(measured_gib), abs=0.05)
    assert engine_weight_bytes(shape_of("1b"), "rounded", False, False) == 0


@pytest.mark.parametrize("context", [40, 900, 5000])
def test_keys_and_values_are_those_that_the_engine_plans(context):
    from singalaut.generate import memory

    shape = shape_of("4b")
    room = memory.Room(16, context, 8192)
    pages = memory._pages(shape, room, -(-context // 32))
    assert cache_bytes(shape, 16, context) == memory._bytes(shape, torch.bfloat16, pages)


def recipe_27b():
    from singalaut.recipe.load import load_recipe

    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "rl-27b.toml")
    (stage,) = recipe.stage
    assert isinstance(stage, RlConfig)
    return stage


def test_the_largest_model_fits_on_eight_of_the_larger_devices():
    found = rl_estimate(recipe_27b(), shape_of("27b"), Fleet(H200, 8))
    assert 0.6 * H200.memory_bytes < found.memory_bytes < 0.95 * H200.memory_bytes
    assert found.memory_bytes > H100.memory_bytes  # and not on the smaller ones
    alone = rl_estimate(recipe_27b(), shape_of("27b"), Fleet(H200, 1))
    assert alone.memory_bytes > H200.memory_bytes
    assert alone.seconds["generate"] == pytest.approx(8 * found.seconds["generate"])


def test_the_table_in_the_document_is_what_is_planned():
    text = (Path(__file__).parents[2] / "docs" / "rl.md").read_text("utf-8")
    table = text.split("<!-- plan-27b -->")[1].split("<!-- /plan-27b -->")[0]
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([\d.]+) \|$", table, re.M))
    found = rl_estimate(recipe_27b(), shape_of("27b"), Fleet(H200, 8))
    wanted = {name: f"{size / GIB:.1f}" for name, size in found.memory.items() if size}
    assert rows == {**wanted, "all": f"{found.memory_bytes / GIB:.1f}"}


def test_devices_are_known_by_their_drivers_names():
    names = {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H200": "H200",
        "NVIDIA H100 PCIe": "H100 PCIe",
    }
    assert {name: device_of(name).name for name in names} == names
    assert device_of("h200").name == "H200" and device_of("l40s").name == "L40S"
    assert device_of("Matrox") is None
    assert nearest_size(shape_of("12b"), TRAINING_FLOPS) == "27b"


def test_lengths_may_be_many():
    lengths = np.random.default_rng(0).integers(10, 2000, 50_000)
    found = sft_estimate(sft(), shape_of("270m"), lengths, 10, Fleet(H100))
    exact = sft_estimate(sft(), shape_of("270m"), lengths[:4096], 10, Fleet(H100))
    assert found.tokens == pytest.approx(10 * lengths.mean())
    assert found.flops / found.tokens == pytest.approx(exact.flops / exact.tokens, rel=0.02)
