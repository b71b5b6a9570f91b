"""The stage that chooses pairs: it finds those of the target's kind, and goes on where it was."""

from __future__ import annotations

import json

import pytest

from singalaut.artifact import Work
from singalaut.errors import DataError
from singalaut.select import features
from singalaut.select.config import SelectPairsConfig
from singalaut.select.pairs import run_select_pairs
from singalaut.train.apo import run_apo
from singalaut.train.config import ApoConfig


def pair(number, kind):
    if kind == "sum":
        texts = (f"{number} plus {number}?", f"It is {2 * number}.", f"no no {number}")
    else:
        texts = (
            "spell " + "abc"[number % 3] * (1 + number % 4),
            "x y z " * (1 + number % 3),
            "th th",
        )
    row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
    return {**row, "language": "en" if kind == "sum" else "th"}


@pytest.fixture
def pool(write):
    rows = [pair(i, "sum" if i % 4 == 0 else "x") for i in range(32)]
    return write("pool.jsonl", [*rows, {"prompt": "p", "chosen": "same", "rejected": "same"}])


@pytest.fixture
def target(write):
    return write("target.jsonl", [pair(i, "sum") for i in range(50, 56)])


def run(tmp_path, model, pool, targets=(), name="work", **settings):
    given = {"share": 0.25, "warmup_steps": 4, "learning_rate": 1e-3, "dimensions": 512}
    config = SelectPairsConfig(
        data=({"path": "pool"},),
        targets=[{"name": f"t{i}", "data": {"path": "t"}} for i in range(len(targets))],
        **(given | settings),
    )
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    work = Work(folder)
    run_select_pairs(config, model=model, data=[pool], targets=list(targets), work=work, seed=1)
    return work


def lines(work, name):
    return [json.loads(x) for x in (work.path / name).read_text("utf-8").splitlines()]


def test_influence_finds_the_pairs_of_the_target(tmp_path, tiny_model, pool, target):
    work = run(tmp_path, tiny_model, pool, [target], final_learning_rate=0.5)
    rows = lines(work, "report/selection.jsonl")
    assert len(rows) == 8 and [row["language"] for row in rows].count("en") >= 7
    assert rows == sorted(rows, key=lambda row: -row["score"]) and rows[0]["target"] == "t0"
    chosen = lines(work, "data/pairs.jsonl")
    assert [row["language"] for row in chosen].count("en") >= 7
    report = json.loads((work.path / "report" / "selection.json").read_bytes())
    assert report["targets"]["t0"]["mean_in_choice"] > report["targets"]["t0"]["mean_in_pool"]
    assert report["languages"]["en"]["pool"] == 8 and report["pool"] == 32
    assert "chosen by influence" in (work.path / "report" / "selection.html").read_text()
    random = run(tmp_path, tiny_model, pool, name="random", method="random")
    found = [row["language"] for row in lines(random, "data/pairs.jsonl")]
    assert found.count("en") < 7


def test_what_is_chosen_is_aligned_with(tmp_path, tiny_model, pool):
    work = run(tmp_path, tiny_model, pool, method="gradient-norm", loss="dpo")
    folder = tmp_path / "apo"
    folder.mkdir()
    aligned = Work(folder)
    config = ApoConfig(pairs="select_pairs", steps=1, batch_size=4)
    data = [work.path / "data" / "pairs.jsonl"]
    run_apo(config, model=tiny_model, data=data, work=aligned, seed=0)
    assert aligned.facts["pairs"]["pairs"] == 8 and not aligned.facts["pairs"]["refused"]


@pytest.mark.parametrize("dies_at", [1, 4, 7])
def test_a_killed_run_goes_on(dies_at, tmp_path, tiny_model, pool, target, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 10)
    whole = run(tmp_path, tiny_model, pool, [target], name="whole")
    real, calls = features.project, []

    def dies(*args):
        calls.append(1)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(features, "project", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny_model, pool, [target], name="killed")
    resumed = run(tmp_path, tiny_model, pool, [target], name="killed")
    assert len(calls) == 2 * 5 + 1  # nothing but the block in flight is done twice
    for name in ("data/pairs.jsonl", "report/selection.jsonl"):
        assert lines(resumed, name) == lines(whole, name)
    assert resumed.metrics() == whole.metrics()


def test_quotas_by_language(tmp_path, tiny_model, pool):
    settings = {"method": "random", "quota_by": "language", "quotas": {"en": 0.75}, "count": 8}
    work = run(tmp_path, tiny_model, pool, share=None, **settings)
    assert [row["language"] for row in lines(work, "data/pairs.jsonl")].count("en") == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": None}, "either `share` or `count`"),
        ({"method": "influence"}, "`targets` with the method"),
        ({"pairs": "p", "method": "random"}, "either `data` or `pairs`"),
        ({"quotas": {"en": 1.0}, "method": "random"}, "`quota_by` with `quotas`"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        SelectPairsConfig(data=({"path": "p"},), **({"share": 0.5} | settings))


def test_a_pool_without_pairs_is_refused(tmp_path, tiny_model, write):
    empty = write("none.jsonl", [{"prompt": "p", "chosen": "same", "rejected": "same"}])
    with pytest.raises(DataError, match="no pair to learn from"):
        run(tmp_path, tiny_model, empty, method="random")


def test_the_policy_of_the_pool_is_handed_on(tmp_path, tiny_model, pool, caplog):
    """`apo` says so where rejected answers are another model's, also of pairs that were chosen."""
    stage = tmp_path / "pairs-1"
    (stage / "data").mkdir(parents=True)
    (stage / "report").mkdir()
    made = stage / "data" / "pairs.jsonl"
    made.write_text("".join(pool.read_text().splitlines(keepends=True)[:32]))
    (stage / "report" / "pairs.json").write_text('{"policy": "somebody else"}')
    work = run(tmp_path, tiny_model, made, method="random")
    assert (
        json.loads((work.path / "report" / "pairs.json").read_bytes())["policy"] == "somebody else"
    )
    folder = tmp_path / "apo"
    folder.mkdir()
    config = ApoConfig(pairs="select_pairs", steps=1, batch_size=2)
    with caplog.at_level("WARNING", "singalaut"):
        data = [work.path / "data" / "pairs.jsonl"]
        run_apo(config, model=tiny_model, data=data, work=Work(folder), seed=0)
    assert "written by another model" in caplog.text
