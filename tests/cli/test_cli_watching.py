"""The commands report and recipe plan, as a user calls them."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def tuned(tmp_path, tiny_model, cli):
    """A recipe whose stage `sft` has finished, with answers on the way."""
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "ข้าว?"}, {"role": "assistant", "content": "th in he"}]
    rows.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(6)))
    (tmp_path / "questions.txt").write_text("an ng\n")
    recipe = tmp_path / "w.toml"
    recipe.write_text(
        f'name = "w"\n[model]\nbase = "{tiny_model}"\n'
        '[[stage]]\nkind = "sft"\ndata = [{ path = "rows.jsonl" }]\nepochs = 1\nbatch_size = 2\n'
        'watch = { samples = ["the"], samples_file = "questions.txt", sample_tokens = 3 }\n'
    )
    assert cli("run", str(recipe)).exit_code == 0
    return recipe


def test_report_of_a_finished_stage(tuned, tmp_path, cli):
    shown = cli("report", "w.toml:sft")
    page = tmp_path / shown.stdout.strip()
    text = page.read_text("utf-8")
    assert page.parent.name == "report" and "Finished" in text and "3 of 3 steps" in text
    assert "Answers while training" in text and "an ng" in text and "epochs" in text
    manifest = json.loads((page.parents[1] / "manifest.json").read_text())
    assert "watch.samples" in manifest["inputs"]
    copy = cli("report", str(page.parents[1]), "--output", "copy.html")
    assert copy.stdout.strip() == "copy.html" and "Finished" in (tmp_path / "copy.html").read_text()
    assert cli("status", "w.toml").stdout.count("finished") == 1  # nothing in it has changed


def test_questions_and_trackers_change_no_key(tuned, tmp_path, cli):
    (tmp_path / "questions.txt").write_text("another\n")
    shown = cli("run", "w.toml", "--set", "sft.watch.sample_every=1")
    assert shown.exit_code == 0 and "finished before" in shown.stderr


def test_report_of_a_stage_under_way_and_of_none(tmp_path, cli):
    folder = tmp_path / "sft-1.partial"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0, "gradient_norm": 2.0}\n')
    shown = cli("report", "sft-1")
    assert shown.stdout.strip() == "sft-1.partial/report/report.html"
    assert "Under way" in (folder / "report" / "report.html").read_text("utf-8")
    missing = cli("report", "nothing")
    assert missing.exit_code == 2 and "no such stage" in missing.stderr
    empty = cli("report", str(tmp_path))
    assert empty.exit_code == 2 and "no folder of a stage that trains" in empty.stderr


def test_a_missing_tracker_is_told_before_anything_is_trained(tuned, cli, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    shown = cli("run", "w.toml", "--set", "sft.watch.trackers=['trackio']", "--set", "sft.epochs=2")
    assert shown.exit_code == 1 and "`trackio` is not installed" in shown.stderr
    unknown = cli("run", "w.toml", "--set", "sft.watch.trackers=['mlflow']")
    assert unknown.exit_code == 2 and "tensorboard" in unknown.stderr


def test_plan_of_a_recipe(tuned, cli):
    shown = cli("recipe", "plan", "w.toml", "--gpu", "H200", "--gpus", "2", "--price", "3")
    assert shown.exit_code == 0 and "memory of each of 2 H200" in shown.stdout
    found = json.loads(cli("recipe", "plan", "w.toml", "--gpu", "l40s", "--json").stdout)["sft"]
    assert found["steps"] == 3 and found["shape"] == "custom" and found["gpu"] == "L40S"
    counted = found["tokens"]
    stated = cli("recipe", "plan", "w.toml", "--length", "100", "--rows", "40", "--json").stdout
    found = json.loads(stated)["sft"]
    assert found["steps"] == 20 and found["tokens"] == 4000 != counted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpu", "TPU"), "`TPU` is no GPU that is known"),
        (("--shape", "7b"), "`7b` is no shape"),
        (("--mfu", "0.4", "--tflops", "300"), "say the same"),
        (("--gpus", "3", "--set", "sft.replicas=2"), "need a multiple of 2 GPUs, not 3"),
        (("--set", "sft.tensor_parallel=3"), "does not divide"),
        (("--stage", "x"), "no stage is named `x`\n  where: --stage"),
    ],
)
def test_plans_that_cannot_be_made(tuned, cli, options, message):
    shown = cli("recipe", "plan", "w.toml", *options)
    assert shown.exit_code == 2 and message in shown.stderr


def test_plan_of_a_model_that_is_not_here(tmp_path, cli):
    recipe = tmp_path / "far.toml"
    text = '[model]\nbase = "{}"\n[[stage]]\nkind = "sft"\ndata = [{{ hub = "org/rows" }}]\n{}\n'
    recipe.write_text('name = "far"\n' + text.format("org/gemma-3-12b-it", "steps = 10"))
    found = json.loads(cli("recipe", "plan", "far.toml", "--json").stdout)["sft"]
    assert found["shape"] == "12b" and "2048 tokens" in found["notes"][0]
    told = cli("recipe", "plan", "far.toml", "--gpu", "L40S").stdout
    assert "does NOT fit" in told and "what would help: set `precision" in told
    told = cli("recipe", "plan", "far.toml", "--set", "sft.precision=rounded").stdout
    assert "what would help: set `moments" in told
    recipe.write_text('name = "far"\n' + text.format("org/mine", "steps = 10"))
    unknown = cli("recipe", "plan", "far.toml")
    assert unknown.exit_code == 2 and "`--shape`" in unknown.stderr
    recipe.write_text('name = "far"\n' + text.format("org/gemma-3-1b", "epochs = 2"))
    unknown = cli("recipe", "plan", "far.toml")
    assert unknown.exit_code == 2 and "--rows" in unknown.stderr
