"""Keys follow the content of settings and inputs: what changes a result, and nothing else."""

from __future__ import annotations

import shutil

import pytest

from singalaut.errors import RecipeError
from singalaut.recipe.load import load_recipe
from singalaut.recipe.plan import scan
from singalaut.recipe.run import plan_recipe

NAMES = ["sft", "merge", "evaluate", "card"]


def keys(file, *overrides):
    plan = plan_recipe(load_recipe(file, overrides), file.parent, fetch=False)
    return {stage.name: stage.key for stage in plan.stages}


def changed(before, after):
    return [name for name in NAMES if before[name] != after[name]]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sft.learning_rate=2e-4", NAMES),
        ("sft.data.0.weight=3", NAMES),
        ("sft.adapter.rank=8", NAMES),
        ("seed=6", NAMES),
        ("merge.models.1.weight=0.7", ["merge", "evaluate", "card"]),
        ("merge.models.0.from=sft", ["merge", "evaluate", "card"]),
        ("evaluate.limit=3", ["evaluate", "card"]),
        ("card.title=other", ["card"]),
        ("sft.save_every=5", []),
        ("sft.data.0.weight=2", []),
        ("name=other", []),
        ("output=elsewhere", []),
    ],
)
def test_setting_changes_the_key_of_its_stage_and_of_later_ones(recipe_file, override, expected):
    assert changed(keys(recipe_file), keys(recipe_file, override)) == expected


def test_content_of_files_counts_and_their_names_do_not(recipe_file):
    folder, before = recipe_file.parent, keys(recipe_file)
    (folder / "a.jsonl").rename(folder / "renamed.jsonl")
    (folder / "base").rename(folder / "moved")
    same = keys(recipe_file, "sft.data.0.path=renamed.jsonl", "model.base=moved")
    assert changed(before, same) == ["card"]  # which shows where the model came from
    (folder / "renamed.jsonl").write_text("other rows\n")
    other = keys(recipe_file, "sft.data.0.path=renamed.jsonl", "model.base=moved")
    assert changed(before, other) == NAMES


def test_content_of_base_and_pack_count(recipe_file):
    folder, before = recipe_file.parent, keys(recipe_file)
    (folder / "pack" / "task.toml").write_text("# other")
    assert changed(before, keys(recipe_file)) == ["evaluate", "card"]
    (folder / "base" / "config.json").write_text("{ }")
    assert changed(before, keys(recipe_file)) == NAMES


def test_order_of_data_counts(recipe_file):
    before = keys(recipe_file)
    swapped = "sft.data=[{path='b.jsonl', weight=2}, {path='a.jsonl'}]"
    assert changed(before, keys(recipe_file, swapped)) == NAMES


def test_recipe_can_be_moved_as_a_whole(recipe_file, tmp_path_factory):
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(recipe_file.parent, copy)
    assert keys(copy / recipe_file.name) == keys(recipe_file)


def test_rows_show_models_and_stages(recipe_file, monkeypatch):
    monkeypatch.chdir(recipe_file.parent)
    plan = plan_recipe(load_recipe(recipe_file), recipe_file.parent, fetch=False)
    base, sft, *_ = plan.as_rows()
    assert (base["stage"], base["state"], base["path"]) == ("base", "ready", "base")
    key = plan.stages[0].key[:8]
    assert (sft["state"], sft["key"], sft["path"]) == ("missing", key, f"runs/tiny/sft-{key}")


def test_base_that_is_to_be_fetched_leaves_the_keys_open(recipe_file):
    recipe = load_recipe(recipe_file, ["model.base=demo:gemma-3-270m"])
    plan = plan_recipe(recipe, recipe_file.parent, fetch=False)
    base, sft, *_ = plan.as_rows()
    assert (base["state"], base["path"]) == ("to fetch", "demo:gemma-3-270m")
    assert (sft["state"], sft["key"]) == ("missing", "")


def test_missing_data_is_named_before_anything_is_fetched(recipe_file):
    recipe = load_recipe(recipe_file, ["model.base=demo:gemma-3-270m", "sft.data.1.path=no.jsonl"])
    with pytest.raises(RecipeError, match=r"`sft\.data\.1` is not there") as caught:
        plan_recipe(recipe, recipe_file.parent, fetch=True)
    assert caught.value.where.endswith("no.jsonl")


def test_scan_lists_only_folders_of_stages(tmp_path):
    for name in ("sft-12345678.partial", "other", "x-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "sft-12345678.partial" / "state.json").write_text('{"seconds": 2.5}')
    (tmp_path / "other" / "manifest.json").write_text("{}")
    (row,) = scan(tmp_path)
    assert (row["stage"], row["state"], row["key"]) == ("sft", "partial", "12345678")
    assert row["seconds"] == 2.5
