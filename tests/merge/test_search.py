"""The search: finds what it can find, forgets nothing, repeats nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from singalaut.artifact import Work
from singalaut.errors import CheckpointError, RecipeError
from singalaut.merge.config import MergeSearchConfig
from singalaut.merge.front import Trial, best, front
from singalaut.merge.search import Inputs, run_merge_search
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import load_model, save_model

NORM = "model.norm.weight"


@pytest.fixture
def models(tmp_path, tiny_config, tiny_tokenizer, monkeypatch):
    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path / "home"))
    for seed, name in enumerate(("base", "a", "b")):
        save_model(initialise(Gemma3(tiny_config), seed=seed), tmp_path / name, torch.float32)
        tiny_tokenizer.save(tmp_path / name)
    return tmp_path


class Judge:
    """Scores how near a model is to 0.3 a + 0.7 b, and how near to b."""

    def __init__(self, folder, stop_after=None):
        self.a, self.b = (load_file(folder / n / "model.safetensors")[NORM] for n in "ab")
        self.calls, self.stop_after = 0, stop_after

    def __call__(self, model, scratch):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        found = load_file(model / "model.safetensors")[NORM]
        wanted = 0.3 * self.a + 0.7 * self.b
        return {
            "near": -float((found - wanted).norm()),
            "b": -float((found - self.b).norm()),
            "all": 0.0,
        }


def search(folder, name, judge, **changes):
    given = {
        "models": [{"from": "a"}, {"from": "b"}],
        "objectives": ["near"],
        "trials": 16,
        **changes,
    }
    config = MergeSearchConfig.model_validate(given)
    paths = {label: folder / source for label, source in config.inputs().items()}
    work = Work(folder / name)
    work.path.mkdir(exist_ok=True)
    inputs = Inputs(paths, {}, {label: path.name for label, path in paths.items()}, "judge")
    run_merge_search(config, inputs, work=work, seed=3, evaluate=judge)
    found = json.loads((work.path / "search.json").read_text())
    for trial in found["all"]:
        trial["seconds"] = trial["cached"] = 0
    return found, work


def test_the_best_weights_are_found(models):
    judge = Judge(models)
    found, work = search(models, "work", judge)
    chosen = found["all"][found["best"]]
    first, second = chosen["values"]["weight[0]"], chosen["values"]["weight[1]"]
    assert first / (first + second) == pytest.approx(0.3, abs=0.08)
    assert chosen["scores"]["near"] > max(s["near"] for s in found["references"].values())
    assert judge.calls == 16 + 2
    merged = load_model(work.path / "model").final_norm.weight
    share = first / (first + second)
    torch.testing.assert_close(merged, share * judge.a + (1 - share) * judge.b)
    assert work.facts["search"]["best"] == found["best"]


def test_a_killed_search_ends_as_it_would_have(models, monkeypatch):
    whole, _ = search(models, "whole", Judge(models))
    monkeypatch.setenv("SINGALAUT_HOME", str(models / "other-home"))
    with pytest.raises(KeyboardInterrupt):
        search(models, "again", Judge(models, stop_after=9))
    judge = Judge(models)
    again, _ = search(models, "again", judge)
    assert again == whole
    assert judge.calls == 16 + 2 - 9  # none twice, none lost


def test_nothing_is_evaluated_twice(models):
    wanted, _ = search(models, "first", Judge(models))
    judge = Judge(models)
    found, _ = search(models, "second", judge)
    assert judge.calls == 0 and found["all"] == wanted["all"] and found["cached"] == 16
    search(models, "third", judge, trials=17)
    assert judge.calls == 1


def test_several_objectives_and_methods(models):
    found, work = search(
        models,
        "work",
        Judge(models),
        base="base",
        methods=["linear", "ties", "slerp"],
        ranges={"weight": (0.1, 1.0), "density": (0.2, 0.9), "t": (0, 1)},
        objectives=["near", "b"],
    )
    by_method = {trial["method"]: set(trial["values"]) for trial in found["all"]}
    assert by_method["linear"] == {"weight[0]", "weight[1]"}
    assert by_method["slerp"] == {"t"}
    assert by_method["ties"] == {"weight[0]", "weight[1]", "density[0]", "density[1]"}
    scores = {t["trial"]: t["scores"] for t in found["all"]}
    for number, mine in scores.items():
        beaten = any(
            other["near"] >= mine["near"] and other["b"] >= mine["b"] and other != mine
            for other in scores.values()
        )
        assert (number in found["front"]) != beaten
    page = (work.path / "search.html").read_text()
    assert "<svg" in page and page.count("<circle") == 16
    assert not re.search(r"(src|href)\s*=|<script|url\(|@import", page)


def test_what_cannot_be_merged_is_told(models):
    with pytest.raises(RecipeError, match="none of 3 merges could be evaluated: the weights"):
        search(models, "work", Judge(models), ranges={"weight": (0.0, 0.0)}, trials=3)


def test_some_trials_may_fail(models):
    """DELLA refuses some pairs of density and epsilon; those are counted and shown."""
    found, work = search(
        models,
        "work",
        Judge(models),
        base="base",
        methods=["della"],
        ranges={"density": (0.05, 0.95), "epsilon": (0.05, 0.5)},
        trials=10,
    )
    failed = [trial for trial in found["all"] if trial["error"]]
    assert 0 < len(failed) == found["failed"] < 10
    assert "does not lie between 0 and 1" in failed[0]["error"]
    assert "Not merged" in (work.path / "search.html").read_text()


def test_what_is_refused(models):
    judge = Judge(models)
    with pytest.raises(RecipeError, match="gives no score `thai`") as error:
        search(models, "a1", judge, objectives=["thai"])
    assert "`near`, `b`, `all`" in str(error.value)
    with pytest.raises(RecipeError, match="`ties` needs a base"):
        search(models, "a4", judge, methods=["linear", "ties"])
    with pytest.raises(RecipeError, match="`density` cannot be searched for with linear"):
        search(models, "a2", judge, ranges={"density": (0, 1)})
    with pytest.raises(RecipeError, match=r"ends before it begins: 1\.0, 0\.5"):
        search(models, "a3", judge, ranges={"weight": (1, 0.5)})


def test_models_that_do_not_fit_are_told_before_any_is_evaluated(models, tiny_config):
    wide = initialise(Gemma3(replace(tiny_config, intermediate_size=128)), seed=1)
    save_model(wide, models / "a", torch.float32)
    judge = Judge.__new__(Judge)  # which is never asked
    with pytest.raises(CheckpointError, match="`intermediate_size` is 64 here and 128"):
        search(models, "a5", judge)


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_fronts(scores):
    trials = [
        Trial(i, "linear", {}, {"x": float(x), "y": float(y)}, None, False, 0.0)
        for i, (x, y) in enumerate(scores)
    ]
    kept = {t.number for t in front(trials)}
    assert best(trials).number in kept
    for i, (x, y) in enumerate(scores):
        beaten = any(u >= x and v >= y and (u, v) != (x, y) for u, v in scores)
        assert (i in kept) != beaten
