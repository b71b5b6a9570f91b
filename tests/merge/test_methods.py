"""Every method against mergekit's own output, and what must hold for any tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import arguments, chosen, golden_cases, golden_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.merge.blocks import InMemory
from singalaut.merge.methods import METHODS, Chosen, merge_tensors
from singalaut.merge.selection import count_upper, find_cuts

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def golden():
    return golden_tensors()


def whole(method, models, parameters, base=None, *, elements=1 << 19, seed=0):
    """The merged tensor, in blocks of `elements` entries."""
    blocks = InMemory(models, base, elements=elements, seed=seed)
    combine = METHODS[method].prepare(blocks, parameters)
    parts = [combine(i, blocks.read(i)) for i in range(len(blocks.bounds))]
    return torch.cat(parts).reshape(models[0].shape)


def identify(case):
    return f"{case['out']}-{case['method']}-{case['shape']}"


@pytest.mark.parametrize("case", golden_cases("cases"), ids=identify)
def test_same_as_mergekit(golden, case):
    models, base, parameters = arguments(golden, case)
    found = merge_tensors(case["method"], models, parameters, base=base)
    torch.testing.assert_close(found, golden[case["out"]], rtol=0, atol=TOLERANCE)


def test_the_comparison_notices_each_parameter(golden):
    """A changed parameter must be seen, else the comparison above would show nothing."""
    for case in golden_cases("cases"):
        if case["shape"] != "matrix":
            continue
        models, base, parameters = arguments(golden, case)
        for name, value in case["parameters"].items():
            if isinstance(value, bool) or name in ("max_iter", "tol"):
                continue
            of_models = name in METHODS[case["method"]].of_models
            changed = [v * 0.9 for v in value] if isinstance(value, list) else value * 0.9
            if of_models and set(np.atleast_1d(value)) == {1.0}:
                continue
            if name == "weight" and parameters.shared.get("normalize", True):
                changed = [*value[:-1], value[-1] * 0.5]
            other = chosen(case["method"], len(models), {**case["parameters"], name: changed})
            found = merge_tensors(case["method"], models, other, base=base)
            assert (found - golden[case["out"]]).abs().max() > TOLERANCE, (case, name)


@pytest.mark.parametrize("case", golden_cases("random"), ids=lambda c: f"{c['out']}-{c['method']}")
def test_random_methods_have_the_same_distribution(golden, case):
    models, base, parameters = arguments(golden, case)
    draws = torch.stack(
        [
            merge_tensors(case["method"], models, parameters, base=base, seed=seed)
            for seed in range(case["draws"])
        ]
    )
    mean, std = golden[f"{case['out']}.mean"], golden[f"{case['out']}.std"]
    error = (std.square() + draws.std(0).square()).sqrt() / case["draws"] ** 0.5
    z = (draws.mean(0) - mean) / error.clamp(min=1e-6)
    assert z.abs().max() < 5  # of 240 entries; 4.5 standard errors are exceeded once in 600 runs
    assert 0.85 < z.std() < 1.15  # as a normal variable
    torch.testing.assert_close(draws.std(0).mean(), std.mean(), rtol=0.03, atol=0)
    shifted = chosen(case["method"], 3, {**case["parameters"], "density": [0.4, 0.5, 0.8]})
    other = torch.stack(
        [
            merge_tensors(case["method"], models, shifted, base=base, seed=seed)
            for seed in range(100)
        ]
    )
    assert ((other.mean(0) - mean) / (std / 10)).abs().max() > 5 or not torch.isclose(
        other.std(0).mean(), std.mean(), rtol=0.03
    )


@pytest.mark.parametrize("method", sorted(METHODS))
def test_blocks_make_no_difference(golden, method):
    few = METHODS[method].models[1] or 3
    models = [golden[f"coarse.{label}"] for label in "abc"][:few]
    base = None if METHODS[method].base == "unused" else golden["coarse.base"]
    given = {"density": 0.4, "t": 0.3, "select_topk": 0.4, "filter_wise": False}
    known = {**METHODS[method].of_models, **METHODS[method].shared}
    parameters = chosen(method, few, {n: v for n, v in given.items() if n in known})
    if method.startswith(("dare", "della")):  # numbers are drawn by block
        parameters = chosen(method, few, {"density": 1.0})
    one = whole(method, models, parameters, base)
    for elements in (24, 70, 200):
        many = whole(method, models, parameters, base, elements=elements)
        torch.testing.assert_close(many, one, rtol=0, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.integers(-4, 4), min_size=1, max_size=60),
    elements=st.integers(1, 20),
    share=st.floats(0, 0.999),
)
def test_cuts_are_those_of_a_stable_sort(data, elements, share):
    values = torch.tensor(data, dtype=torch.float32).abs().reshape(-1, 1) * 0.37
    blocks = InMemory([values], elements=elements)

    def series(rows):
        return rows.models

    place = int(share * len(data))
    cut = find_cuts(blocks, series, count_upper(blocks, series, 1), [[place]])[0][0]
    ordered, order = torch.sort(values[:, 0], stable=True)
    value = torch.tensor(cut.bits, dtype=torch.int32).view(torch.float32)
    assert value == ordered[place]
    assert cut.less == int((ordered < value).sum()) and cut.greater == int((ordered > value).sum())
    before = set(order[:place].tolist())
    taken = cut.first(place - cut.less)
    for (start, stop), count in zip(blocks.bounds, taken, strict=True):
        equal = [i for i in range(start, stop) if values[i, 0] == value]
        assert set(equal[:count]) == before & set(equal)


@settings(max_examples=30, deadline=None)
@given(method=st.sampled_from(sorted(METHODS)), seed=st.integers(0, 50))
def test_a_model_merged_with_itself_stays(method, seed):
    model = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
    few = METHODS[method].models[1] or 3
    given = {"t": 0.5} if method == "slerp" else {}
    if method in ("task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"):
        given["normalize"] = True
    base = None if METHODS[method].base == "unused" else model
    found = merge_tensors(method, [model] * few, chosen(method, few, given), base=base)
    torch.testing.assert_close(found, model, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_is_not_a_number_stays_visible(method, golden):
    few = METHODS[method].models[1] or 3
    models = [golden[f"matrix.{label}"].clone() for label in "abc"][:few]
    models[-1][3, 4] = float("nan")
    base = None if METHODS[method].base == "unused" else golden["matrix.base"]
    given = {"density": 0.3, "t": 0.3, "weight": [1.0, 1.0, 0.0][:few]}
    known = {**METHODS[method].of_models, **METHODS[method].shared}
    parameters = chosen(method, few, {n: v for n, v in given.items() if n in known})
    found = merge_tensors(method, models, parameters, base=base)
    assert not torch.isfinite(found).all()


def test_seeds_and_names_decide_what_is_random(golden):
    models, base = [golden["matrix.a"]], golden["matrix.base"]
    parameters = chosen("dare_linear", 1, {"density": 0.5})

    def run(seed, name):
        return merge_tensors("dare_linear", models, parameters, base=base, seed=seed, name=name)

    assert torch.equal(run(1, "x"), run(1, "x"))
    assert not torch.equal(run(1, "x"), run(2, "x"))
    assert not torch.equal(run(1, "x"), run(1, "y"))


def test_sparse_share_of_kept_entries(golden):
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(40, 50)
    model = torch.randn(40, 50, generator=generator)
    for method, density in (("ties", 0.3), ("breadcrumbs", 0.6)):
        found = merge_tensors(method, [model], chosen(method, 1, {"density": density}), base=base)
        assert int((found != 0).sum()) == int(density * model.numel())
    kept = merge_tensors(
        "dare_linear", [model], chosen("dare_linear", 1, {"density": 0.3}), base=base
    )
    assert abs(int((kept != 0).sum()) / 2000 - 0.3) < 0.05
    assert isinstance(chosen("ties", 1, {}), Chosen)
