"""Recipes are read, changed by overrides, and refused with the line and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from singalaut.errors import RecipeError
from singalaut.recipe.load import load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent.parent


def complaint(recipe_file, old, new, overrides=()):
    """The error of the tiny recipe after one change."""
    text = recipe_file.read_text()
    assert text.count(old) >= 1
    recipe_file.write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, overrides)
    return caught.value


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("**/*.toml")), ids=lambda f: f.stem)
def test_every_recipe_parses(file):
    assert load_recipe(file).stage


def test_recipe_has_names_defaults_and_values(recipe_file):
    recipe = load_recipe(recipe_file)
    assert [stage.name for stage in recipe.stage] == ["sft", "merge", "evaluate", "card"]
    sft = recipe.stage[0]
    assert (sft.model, sft.data[0].weight, sft.data[1].weight, sft.adapter.rank) == (
        "base",
        2,
        1,
        4,
    )
    assert recipe.stage[1].models[1].source == "sft"
    assert recipe.output == "runs"


@pytest.mark.parametrize(
    ("old", "new", "line", "what", "hint"),
    [
        ("seed = 5", "sed = 5", 3, "`sed` is not a setting of a recipe", "`seed`"),
        ("base = ", "bose = ", 6, "`bose` is not a setting of `model`", "`base`"),
        ("steps = 3", "step = 3", 14, "`step` is not a setting of `sft`", "`steps`"),
        ("rank = 4", "ronk = 4", 15, "`ronk` is not a setting of `sft.adapter`", "`rank`"),
        (", weight = 2.0", ", wait = 2.0", 11, "is not a setting of `sft.data[0]`", "`weight`"),
        ("from = \"sft\"", "fro = \"sft\"", 19, "`fro` is not a setting of", "`from`"),
        ("pack = ", "zzzz = ", 24, "`zzzz` is not a setting of `evaluate`", "`limit`"),
    ],
)  # fmt: skip
def test_unknown_key_is_named_with_line_and_nearest_name(recipe_file, old, new, line, what, hint):
    error = complaint(recipe_file, old, new)
    text = str(error)
    assert f"line {line}" in text and what in text and hint in text


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("steps = 3", 'steps = "x"', 14, '`sft.steps` needs a whole number, found the text "x"'),
        ("steps = 3", "steps = 3.5", 14, "`sft.steps` needs a whole number, found 3.5"),
        ("steps = 3", "steps = true", 14, "`sft.steps` needs a whole number, found `true`"),
        ("steps = 3", "steps = 0", 14, "`sft.steps` needs 1 or more, found 0"),
        ("steps = 3", "", 8, "`sft`: it needs either `steps` or `epochs`"),
        ("steps = 3", "steps = 3\nepochs = 1", 8, "either `steps` or `epochs`"),
        ("weight = 2.0", "weight = inf", 11, "`sft.data[0].weight` needs a finite number"),
        ("rank = 4", 'targets = ["querry"]', 15, "`sft.adapter.targets[0]` cannot be"),
        ("weight = 2.0", 'columns = { promt = "q" }', 11, "a name in `sft.data[0].columns`"),
        ("rank = 4", "targets = []", 15, "needs at least 1 entry, found an empty list"),
        ('kind = "card"', 'kind = "crad"', 27, "no kind of stage is `crad`"),
        ('kind = "card"', "", 26, "does not say its `kind`"),
        ("seed = 5", "seed = -1", 3, "`seed` needs 0 or more, found -1"),
        ('name = "tiny"', 'name = "a/b"', 2, "cannot name a folder"),
        ('kind = "merge"', 'kind = "merge"\nname = "seed"', 19, "no stage can be named `seed`"),
        ('kind = "merge"', 'kind = "merge"\nname = "sft"', 19, "two stages are named `sft`"),
    ],
)  # fmt: skip
def test_wrong_value_is_told_in_plain_words(recipe_file, old, new, line, what):
    text = str(complaint(recipe_file, old, new))
    assert f"line {line}" in text and what in text
    assert "pydantic" not in text and "Input should" not in text


@pytest.mark.parametrize(
    ("old", "new", "what", "hint"),
    [
        ('model = "merge"', 'model = "mergge"', "names `mergge`", "did you mean `merge`?"),
        ('model = "merge"', 'model = "evaluate"', "`evaluate` gives an evaluation", "`merge`"),
        ('evaluation = "evaluate"', 'evaluation = "sft"', "needs an evaluation", "`evaluate`"),
        ('from = "sft"', 'from = "merge"', "`merge` is not earlier", "`sft`"),
        ('"merge"]', '"card"]', "`card` is not earlier", "`sft`"),
    ],
)
def test_reference_to_nothing_fitting_names_the_nearest(recipe_file, old, new, what, hint):
    text = str(complaint(recipe_file, old, new))
    assert what in text and hint in text and "line " in text


def test_second_stage_of_a_kind_needs_a_name(recipe_file):
    again = '[[stage]]\nkind = "sft"\nmodel = "sft"\ndata = [{ path = "a.jsonl" }]\nsteps = 1\n'
    text = recipe_file.read_text()
    error = complaint(recipe_file, text, text + again)
    assert error.what == "two stages are named `sft`" and 'name = "sft-2"' in error.hint
    recipe_file.write_text(text + again.replace('"sft"\nmodel', '"sft"\nname = "more"\nmodel'))
    assert load_recipe(recipe_file).stage[-1].name == "more"


def test_all_problems_are_told_at_once(recipe_file):
    error = complaint(recipe_file, 'path = "a.jsonl"', "step = 3", ["merge.metod=linear"])
    assert error.what.startswith("2 settings cannot be used")
    for part in ("line 11", "`step` is not a setting of `sft.data[0]`", "--set merge.metod"):
        assert part in error.what


def test_single_table_of_stages_gets_the_remedy(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('name = "a"\nmodel = { base = "b" }\n[stage]\nkind = "sft"\n')
    with pytest.raises(RecipeError, match="two brackets"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'name = "a"\nseed = five\n', "r.toml, line 2, column 8"),
        (b'name = "a', "not TOML"),
        (b'name = "\xff"', "not UTF-8"),
        (b"", "`name` is missing"),
    ],
)
def test_file_that_is_no_recipe(tmp_path, content, message):
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.toml")
    assert message in str(caught.value)


def test_missing_recipe_and_folder(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "r.toml")
    with pytest.raises(RecipeError, match="this is a folder"):
        load_recipe(tmp_path)


def test_overrides_change_what_they_name(recipe_file):
    recipe = load_recipe(
        recipe_file,
        [
            "sft.learning_rate=2e-4",
            "seed=3",
            "model.base=demo:gemma-3-270m",
            "sft.adapter.rank=8",
            "sft.data.1.language=th",
            "evaluate.models=['base']",
            "card.title=a model, tuned",
            "output=",
        ],
    )
    sft, _, evaluate, card = recipe.stage
    assert (sft.learning_rate, recipe.seed, recipe.model.base) == (2e-4, 3, "demo:gemma-3-270m")
    assert (sft.adapter.rank, sft.data[1].language) == (8, "th")
    assert (evaluate.models, card.title, recipe.output) == (("base",), "a model, tuned", "runs")


def test_empty_override_takes_a_setting_away(recipe_file):
    assert load_recipe(recipe_file).stage[0].adapter is not None
    assert load_recipe(recipe_file, ["sft.adapter="]).stage[0].adapter is None
    made = load_recipe(recipe_file, ["sft.adapter=", "sft.adapter.rank=2"]).stage[0].adapter
    assert made is not None and made.rank == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sftt.steps=3", "did you mean `sft`?"),
        ("sed=3", "did you mean `seed`?"),
        ("sft.stps=3", "did you mean `steps`?"),
        ("sft.steps=x", "needs a whole number"),
        ("sft.data.7.path=x", "is a list of 2"),
        ("sft.steps.more=1", "is a single value"),
        ("sft=1", "is a stage"),
        ("sft.steps", "KEY=VALUE"),
        ("=1", "KEY=VALUE"),
    ],
)
def test_wrong_override_is_shown_as_written(recipe_file, override, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [override])
    assert message in str(caught.value) and f"--set {override}" in str(caught.value)


def test_plain_values_can_refer_to_the_models_they_are_given():
    data = {
        "name": "merge",
        "model": {"base": "x"},
        "stage": [{"kind": "merge", "models": [{"from": "one"}, {"from": "two"}]}],
    }
    assert parse_recipe(data, models=("one", "two")).stage[0].models[1].source == "two"
    with pytest.raises(RecipeError, match="names `two`"):
        parse_recipe(data, models=("one",))


def test_a_recipe_may_start_from_several_models(recipe_file):
    text = recipe_file.read_text()
    assert text.count("[model]\n") == 1
    recipe_file.write_text(text.replace("[model]\n", '[model]\nothers = { tuned = "x/y" }\n'))
    recipe = load_recipe(recipe_file, ["merge.models.1.from=tuned"])
    assert recipe.model.sources() == {"base": recipe.model.base, "tuned": "x/y"}
    assert recipe.stage[1].models[1].source == "tuned"
    for name in ("base", "sft", "a b"):
        recipe_file.write_text(
            text.replace("[model]\n", f'[model]\nothers = {{ "{name}" = "x/y" }}\n')
        )
        said = "two stages are named `sft`" if name == "sft" else "cannot be named"
        with pytest.raises(RecipeError, match=said):
            load_recipe(recipe_file)
