"""Stages run once, go on after an error, and hand their folders to the next ones."""

from __future__ import annotations

import json

import pytest

from singalaut.errors import ArtifactError, RecipeError
from singalaut.recipe.lineage import lineage
from singalaut.recipe.load import load_recipe
from singalaut.recipe.opening import model_path
from singalaut.recipe.run import plan_recipe, run_one_stage, run_recipe
from singalaut.recipe.wiring import STAGES

NAMES = ["sft", "merge", "evaluate", "card"]


class Stages(dict):
    """Code for each kind that writes what it was given; `broken` names a stage that fails."""

    def __init__(self):
        super().__init__(dict.fromkeys(STAGES, self.run))
        self.ran = []
        self.broken = None

    def run(self, stage, plan, work):
        self.ran.append(stage.name)
        if stage.name == self.broken:
            (work.path / "half").write_text("")
            raise ValueError("broken")
        models = [
            model_path(stage, plan, label) for label in stage.inputs if label.startswith("model")
        ]
        assert all((model / "config.json").exists() for model in models)
        (work.path / "model").mkdir()
        (work.path / "model" / "config.json").write_text(f'"{stage.name}"')


@pytest.fixture
def stages():
    return Stages()


@pytest.fixture
def run(recipe_file, stages):
    def run(*overrides, **options):
        stages.ran.clear()
        recipe = load_recipe(recipe_file, overrides)
        return run_recipe(recipe, recipe_file.parent, stages=stages, **options)

    return run


def test_each_kind_of_stage_has_code():
    from singalaut.recipe.schema import KINDS

    assert set(STAGES) == set(KINDS)


def test_stages_run_once_and_later_runs_find_them(run, stages, recipe_file):
    first = run()
    assert stages.ran == NAMES
    again = run()
    assert stages.ran == [] and [a.path for a in again] == [a.path for a in first]
    for artifact, name in zip(first, NAMES, strict=True):
        assert artifact.path.name == f"{name}-{artifact.key[:8]}"
        assert artifact.path.parent == recipe_file.parent / "runs" / "tiny"
    run("merge.models.1.weight=0.7")
    assert stages.ran == ["merge", "evaluate", "card"]


def test_manifest_tells_settings_and_inputs_without_folders_of_this_machine(run, recipe_file):
    data = recipe_file.parent / "a.jsonl"
    sft, merge, *_ = run(f"sft.data.0.path={data}")
    config = sft.manifest["config"]
    assert (config["data"][0]["path"], config["steps"]) == ("a.jsonl", 3)
    assert merge.manifest["inputs"]["models.1"] == {"path": sft.path.name, "key": sft.key}
    given = {k: v for k, v in merge.manifest["config"]["models"][1].items() if v is not None}
    assert given == {"from": "sft", "weight": 0.8}
    assert str(recipe_file.parent) not in json.dumps(dict(sft.manifest))


def test_failed_stage_leaves_earlier_ones_and_goes_on(run, stages):
    stages.broken = "merge"
    with pytest.raises(ValueError, match="broken"):
        run()
    assert stages.ran == ["sft", "merge"]
    stages.broken = None
    made = run()
    assert stages.ran == ["merge", "evaluate", "card"]
    assert (made[1].path / "half").exists()


def test_until_and_from_choose_stages(run, stages):
    run(until="merge")
    assert stages.ran == ["sft", "merge"]
    run(from_="evaluate", until="evaluate")
    assert stages.ran == ["evaluate"]
    run(from_="merge")
    assert stages.ran == ["card"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_": "evaluate"}, "needs the stage `sft`, which has not finished"),
        ({"from_": "evalute"}, "no stage is named `evalute`"),
        ({"until": "x"}, "no stage is named `x`"),
        ({"from_": "card", "until": "sft"}, "comes after"),
    ],
)
def test_wrong_choice_of_stages_is_refused(run, stages, options, message):
    with pytest.raises(RecipeError, match=message):
        run(**options)
    assert stages.ran == []


def test_one_stage_of_a_recipe_is_the_same_artifact(run, recipe_file):
    sft, *_ = run()
    found = run_one_stage(load_recipe(recipe_file), "sft", recipe_file.parent)
    assert found == sft


def test_damaged_output_stops_the_run(run, stages):
    sft, *_ = run(until="sft")
    (sft.path / "model" / "config.json").write_text("other")
    with pytest.raises(ArtifactError, match="has changed"):
        run()
    assert stages.ran == []


def test_damaged_output_shows_in_the_plan(run, recipe_file):
    sft, *_ = run(until="sft")
    (sft.path / "model" / "config.json").unlink()
    plan = plan_recipe(load_recipe(recipe_file), recipe_file.parent, fetch=False)
    assert [stage.state() for stage in plan.stages] == ["damaged", "missing", "missing", "missing"]


def test_several_starting_models_and_a_root_of_their_own(run, stages, recipe_file):
    folder = recipe_file.parent
    models = {"base": "base", "sft-model": "base"}
    made = run(models=models, root=folder / "here", until="sft")
    assert made[0].path.parent == folder / "here"


def test_lineage_has_the_base_and_the_stages_that_led_to_a_model(run, recipe_file):
    sft, merge, *_ = run()
    plan = plan_recipe(load_recipe(recipe_file), recipe_file.parent, fetch=False)
    base, *stages = lineage("merge", plan)
    assert base == {"stage": "base", "source": "base", "content": plan.models["base"].key}
    assert stages == [dict(sft.manifest), dict(merge.manifest)]
    assert [entry["stage"] for entry in lineage("sft", plan)] == ["base", "sft"]


def test_stage_of_another_run_can_be_the_base(run, stages, recipe_file):
    sft, *_ = run(until="sft")
    made = run(f"model.base={sft.path}", "name=second", until="merge")
    assert stages.ran == ["sft", "merge"] and made[0].key != sft.key
