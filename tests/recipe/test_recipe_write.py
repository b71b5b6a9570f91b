"""A recipe that is written out loads again to the same recipe, and every key has its line."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from singalaut.evals.config import EvaluateConfig
from singalaut.merge.config import Filtered, MergeConfig, MergeInput, Parameters
from singalaut.publish.config import CardConfig
from singalaut.recipe.lines import key_lines
from singalaut.recipe.load import parse_recipe
from singalaut.recipe.schema import ModelConfig, Recipe
from singalaut.recipe.write import recipe_toml
from singalaut.train.config import ALL_PROJECTIONS, AdapterConfig, DataSource, SftConfig

texts = st.text(max_size=20)
positive = st.floats(1e-12, 1e12)
counts = st.integers(1, 2**40)
sources = st.builds(
    DataSource, path=texts, weight=positive, language=st.none() | st.sampled_from(["th", "km"])
)
adapters = st.builds(
    AdapterConfig,
    rank=counts,
    alpha=positive,
    targets=st.lists(st.sampled_from(ALL_PROJECTIONS), min_size=1).map(tuple),
)
sft = st.builds(
    SftConfig,
    data=st.lists(sources, min_size=1, max_size=3).map(tuple),
    steps=counts,
    learning_rate=st.floats(1e-12, 1.0),
    adapter=st.none() | adapters,
)
number = st.floats(allow_nan=False, allow_infinity=False)
gradient = st.one_of(number, st.lists(number, min_size=1, max_size=3).map(tuple))
filtered = st.builds(Filtered, filter=st.text(max_size=9), value=gradient)
parameter = st.one_of(gradient, st.lists(filtered, min_size=1, max_size=2).map(tuple))
merge = st.builds(
    MergeConfig,
    models=st.lists(
        st.builds(
            MergeInput,
            source=st.sampled_from(["base", "sft"]),
            weight=parameter,
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    parameters=st.builds(Parameters, normalize=st.booleans(), density=parameter),
)
evaluate = st.builds(
    EvaluateConfig,
    models=st.lists(st.sampled_from(["base", "sft", "merge"]), min_size=1, max_size=3).map(tuple),
    pack=texts,
    tasks=st.lists(texts, max_size=2).map(tuple),
    limit=st.none() | counts,
)
card = st.builds(
    CardConfig,
    model=st.just("merge"),
    evaluation=st.sampled_from([None, "evaluate"]),
    title=texts,
)
recipes = st.builds(
    Recipe,
    name=st.sampled_from(["tiny", "ไทย", "v1.5"]),
    seed=st.integers(0, 2**63 - 1),
    output=texts,
    model=st.builds(ModelConfig, base=texts),
    stage=st.tuples(sft, merge, evaluate, card),
)


@given(recipes)
def test_written_recipe_loads_again_to_the_same(recipe):
    assert parse_recipe(tomllib.loads(recipe_toml(recipe))) == recipe


@given(recipes, st.sampled_from(["\n", "\r\n", "\n# [x] = {\n", "\n\n"]))
def test_every_key_of_a_recipe_has_its_line(recipe, newline):
    text = newline.join(recipe_toml(recipe).split("\n"))
    lines = text.split("\n")
    found = key_lines(text)
    for path in _paths(tomllib.loads(text)):
        line = lines[found[path] - 1]
        assert str(path[-1]) in line or isinstance(path[-1], int)
    for index, stage in enumerate(recipe.stage):
        assert f'kind = "{stage.kind}"' in lines[found["stage", index, "kind"] - 1]


def _paths(value, path=()):
    """The path of every key and entry."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(inner, (*path, key))


def test_lines_of_all_that_toml_can_write():
    text = '''\
a.b = 1 # a.c = 2
"c d" = """
[x]
k = "1" """
e = \'\'\'
'' ]
\'\'\'
'f' = [ # one
  1, [2,
  3],
  { g = "]}", h.i = 1979-05-27 07:32:00 },
]
[j.k]
l = true
[[m]]
n = 1
[m.o]
p = 1
[[m.q]]
[[m]]
n = """x""""
[[m.q]]
r = "\\"]"
[[m.q]]
r = 2
'''
    tomllib.loads(text)
    expected = {
        ("a", "b"): 1,
        ("c d",): 2,
        ("e",): 5,
        ("f",): 8,
        ("f", 0): 9,
        ("f", 1, 1): 10,
        ("f", 2, "g"): 11,
        ("f", 2, "h", "i"): 11,
        ("j", "k"): 13,
        ("j", "k", "l"): 14,
        ("m", 0): 15,
        ("m", 0, "o", "p"): 18,
        ("m", 0, "q", 0): 19,
        ("m", 1, "n"): 21,
        ("m", 1, "q", 0, "r"): 23,
        ("m", 1, "q", 1, "r"): 25,
    }
    found = key_lines(text)
    assert {path: found[path] for path in expected} == expected
    assert set(_paths(tomllib.loads(text))) <= set(found)
