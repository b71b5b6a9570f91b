"""The stage: it finds the rows of the target's kind, goes on where it was killed, hands data on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from singalaut.artifact import Work
from singalaut.data.store import Store
from singalaut.errors import DataError, RecipeError
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import save_model
from singalaut.select import features
from singalaut.select.config import SelectConfig
from singalaut.select.run import run_select
from singalaut.train.config import SftConfig
from singalaut.train.sft import run_sft


def run(tmp_path, model, pool, targets=(), name="work", **settings):
    settings = {
        **{"share": 0.25, "warmup_steps": 4, "learning_rate": 1e-3, "dimensions": 512},
        **settings,
    }
    config = SelectConfig(
        data=({"path": "pool"},),
        targets=[{"name": f"t{i}", "data": {"path": "t"}} for i in range(len(targets))],
        **settings,
    )
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    work = Work(folder)
    run_select(config, model=model, data=[pool], targets=list(targets), work=work, seed=1)
    return work


def chosen(work):
    lines = (work.path / "report" / "selection.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_influence_finds_the_rows_of_the_target(tmp_path, tiny_model, pool_file, target_file):
    work = run(tmp_path, tiny_model, pool_file, [target_file])
    rows = chosen(work)
    assert len(rows) == 10 and [row["language"] for row in rows].count("en") >= 9
    assert all(row["target"] == "t0" for row in rows)
    assert rows == sorted(rows, key=lambda row: -row["score"])
    store = Store.open(work.path / "data")
    assert len(store) == 10 and store.documents["row"].tolist() == [row["row"] for row in rows]
    report = json.loads((work.path / "report" / "selection.json").read_bytes())
    assert report["languages"]["en"] == {"pool": 10, "chosen": work_count(rows, "en")}
    assert report["targets"]["t0"]["mean_in_choice"] > report["targets"]["t0"]["mean_in_pool"]
    assert "chosen by influence" in (work.path / "report" / "selection.html").read_text()
    random = chosen(run(tmp_path, tiny_model, pool_file, name="random", method="random"))
    assert work_count(random, "en") < work_count(rows, "en")


def work_count(rows, language):
    return sum(row["language"] == language for row in rows)


def test_what_is_chosen_is_learned(tmp_path, tiny_model, pool_file):
    work = run(tmp_path, tiny_model, pool_file, method="length")
    config = SftConfig(prepared="select", steps=2, batch_size=4)
    folder = tmp_path / "sft"
    folder.mkdir()
    tuned = Work(folder)
    data = work.path / "data"
    run_sft(config, model=tiny_model, data=[], work=tuned, seed=0, prepared=data)
    assert len(tuned.metrics()) == 2
    assert sum(entry["rows"] for entry in tuned.facts["data"]) == 10


@pytest.mark.parametrize("dies_at", [1, 4, 9])
def test_a_killed_run_goes_on(dies_at, tmp_path, tiny_model, pool_file, target_file, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 10)
    whole = run(tmp_path, tiny_model, pool_file, [target_file], name="whole")
    real, calls = features.project, []

    def dies(*args):
        calls.append(1)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(features, "project", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny_model, pool_file, [target_file], name="killed")
    resumed = run(tmp_path, tiny_model, pool_file, [target_file], name="killed")
    assert len(calls) == 2 * 5 + 1  # nothing but the block in flight is done twice
    assert chosen(resumed) == chosen(whole)
    wanted, found = (Store.open(w.path / "data").documents for w in (whole, resumed))
    assert np.array_equal(wanted, found)
    assert resumed.metrics() == whole.metrics()


@pytest.mark.parametrize("method", ["gradient-norm", "el2n", "loss", "length", "bm25", "random"])
def test_other_methods_choose_too(method, tmp_path, tiny_model, pool_file, target_file):
    targets = [target_file] if method == "bm25" else []
    first = run(
        tmp_path, tiny_model, pool_file, targets, "first", method=method, count=6, share=None
    )
    again = run(
        tmp_path, tiny_model, pool_file, targets, "again", method=method, count=6, share=None
    )
    assert len(chosen(first)) == 6 and chosen(first) == chosen(again)
    if method == "length":
        tokens = [row["tokens"] for row in chosen(first)]
        assert min(tokens) >= 20


@pytest.mark.parametrize("diversity", ["k-centre", "facility-location"])
def test_quotas_and_variety(diversity, tmp_path, tiny_model, pool_file, target_file):
    settings = {"quota_by": "language", "quotas": {"th": 0.5}, "diversity": diversity}
    rows = chosen(run(tmp_path, tiny_model, pool_file, [target_file], **settings))
    assert work_count(rows, "th") == work_count(rows, "en") == 5


def test_settings_and_data_that_do_not_fit_are_refused(
    tmp_path, tiny_model, pool_file, write, monkeypatch
):
    for settings in ({}, {"share": 0.1, "count": 3}, {"share": 0.1}, {"share": 0.1, "quotas": {}}):
        with pytest.raises(ValueError, match="it needs"):
            SelectConfig(data=({"path": "p"},), **settings)
    quota = {"quota_by": "language", "quotas": {"xx": 1.0}}
    monkeypatch.setattr("singalaut.select.run._measure", None)  # told before gradients are taken
    with pytest.raises(RecipeError, match="of `xx`"):
        run(tmp_path, tiny_model, pool_file, **{"method": "gradient-norm"} | quota)
    with pytest.raises(ValueError, match="that come to 1 at most"):
        quota["quotas"] = {"th": 0.8, "en": 0.8}
        SelectConfig(data=({"path": "p"},), share=0.1, method="length", **quota)
    with pytest.raises(DataError):
        run(tmp_path, tiny_model, write("empty.jsonl", [{"odd": 1}]), method="length")


def test_checkpoints_count_by_their_learning_rates(tmp_path, tiny_model, pool_file, target_file):
    """The scores of a falling rate are those of each checkpoint, weighted by its rate."""
    from singalaut.select.features import Features
    from singalaut.select.scores import influence

    settings = {"checkpoints": 2, "warmup_steps": 4, "final_learning_rate": 0.25, "count": 40}
    settings |= {"share": None}
    work = run(tmp_path, tiny_model, pool_file, [target_file], **settings)
    config = SelectConfig(data=({"path": "p"},), method="length", **settings)
    assert [config.rate(step) / config.learning_rate for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert config.measured_after() == [2, 4]
    found = {row["row"]: row["score"] for row in chosen(work)}

    def kept(name, count):
        folder = work.path / ".work" / "features" / name
        parts = [("vectors", np.float16, (count, 512)), ("norms", np.float32, (count,))]
        arrays = [np.fromfile(folder / f"{n}.bin", dtype).reshape(s) for n, dtype, s in parts]
        return Features(*arrays, np.zeros(count, np.float32))

    each = [influence([kept(f"{i}-0", 40)], [[kept(f"{i}-1", 6)]], [1.0])[:, 0] for i in range(2)]
    wanted = (0.75 * each[0] + 0.25 * each[1]) / 1.0
    assert [found[row] for row in sorted(found)] == pytest.approx(wanted.tolist(), abs=1e-6)
    equal = (each[0] + each[1]) / 2
    assert np.abs(wanted - equal).max() > 1e-4
    plain = SelectConfig(data=({"path": "p"},), method="length", count=1)
    assert "final_learning_rate" not in plain.key_settings()


def test_a_damaged_model_is_told(tmp_path, tiny_config, tiny_tokenizer, pool_file, target_file):
    network = initialise(Gemma3(tiny_config), seed=0)
    network.layers[0].mlp.down.weight.data[0, 0] = math.nan
    save_model(network, tmp_path / "damaged", torch.float32)
    tiny_tokenizer.save(tmp_path / "damaged")
    with pytest.raises(DataError, match="not finite"):
        run(tmp_path, tmp_path / "damaged", pool_file, [target_file], share=0.5)
