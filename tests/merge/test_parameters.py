"""Settings to numbers: the same as mergekit resolves, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from golden_cases import golden_parameters
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.errors import RecipeError
from singalaut.merge.config import Filtered, MergeConfig
from singalaut.merge.mergekit import Translation, read_mergekit
from singalaut.merge.parameters import check_known, resolve
from singalaut.merge.plan import check_inputs, gather_inputs, make_pieces
from singalaut.model.config import SIZES

SIX_LAYERS = replace(SIZES["270m"], num_layers=6)
UNUSED = {"int8_mask", "rescale"}


def pieces_of(raw: dict, shape=SIX_LAYERS):
    translation = Translation(raw, "golden")
    found = translation.settings({name: name for name in translation.models})
    config = MergeConfig.model_validate(found)
    check_known(config)
    check_inputs(config)
    folders = {label: Path(name) for label, name in config.inputs().items()}
    given = gather_inputs(config, folders, {}, dict.fromkeys(folders.values(), shape))
    return config, make_pieces(config, given, shape)


@pytest.mark.parametrize("label", golden_parameters())
def test_values_are_those_of_mergekit(label):
    golden = golden_parameters()[label]
    shape = replace(SIX_LAYERS, global_every=3)  # slices of three layers keep the pattern
    config, pieces = pieces_of(golden["config"], shape)
    assert {piece.place for piece in pieces} == set(golden["tensors"])
    checked = 0
    for piece in pieces:
        wanted = golden["tensors"][piece.place]
        for name, value in wanted["shared"].items():
            if name not in UNUSED and value is not None:
                assert math.isclose(piece.chosen.shared[name], value, abs_tol=1e-12), piece.place
                checked += 1
        theirs = {m: (source, values) for m, source, values in wanted["models"]}
        if config.base:
            theirs.pop(config.base)
        for (entry, name), mine in zip(piece.models, piece.chosen.models, strict=True):
            source, values = theirs.pop(entry.settings.source)
            layer = [part for part in source.split(".") if part.isdigit()]
            assert layer == [part for part in name.split(".") if part.isdigit()], piece.place
            for key, value in values.items():
                assert math.isclose(mine[key], value, abs_tol=1e-12), (piece.place, key)
                checked += 1
        assert not theirs
    assert checked > 70


def test_a_change_is_noticed():
    golden = golden_parameters()["gradients"]
    golden["config"]["parameters"]["lambda"][1] += 0.1
    _, pieces = pieces_of(golden["config"])
    wanted = {place: tensor["shared"]["lambda"] for place, tensor in golden["tensors"].items()}
    assert any(abs(piece.chosen.shared["lambda"] - wanted[piece.place]) > 0.01 for piece in pieces)


@settings(max_examples=80, deadline=None)
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=6), progress=st.floats(0, 1))
def test_gradients_stay_between_their_neighbours(values, progress):
    found = resolve(tuple(values), "x", progress)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    assert resolve(tuple(values), "x", 0.0) == values[0]
    assert math.isclose(resolve(tuple(values), "x", 1.0), values[-1], abs_tol=1e-12)
    assert resolve((Filtered(filter="*", value=tuple(values)),), "x", progress) == found


@pytest.mark.parametrize(
    ("filter_", "fits"),
    [
        ("mlp", True),
        ("self_attn", False),
        ("*", True),
        ("model.layers.3.*", True),
        ("*.4.*", False),
    ],
)
def test_filters(filter_, fits):
    setting = (Filtered(filter=filter_, value=2.0),)
    assert (resolve(setting, "model.layers.3.mlp.up_proj.weight", 0.0) == 2.0) == fits


def refused(pattern: str, **settings):
    config = MergeConfig.model_validate(settings)
    with pytest.raises(RecipeError, match=pattern):
        check_known(config)
        check_inputs(config)
        folders = {label: Path(name) for label, name in config.inputs().items()}
        shapes = dict.fromkeys(folders.values(), SIX_LAYERS)
        given = gather_inputs(config, folders, {}, shapes)
        make_pieces(config, given, SIX_LAYERS)


A, B, C = ({"from": name} for name in "abc")


def test_what_methods_refuse():
    refused("`ties` needs a base", models=[A, B], method="ties")
    refused("`linear` does not use a base", models=[A, B], base="c")
    refused("needs either `models` or `slices`", models=[])
    refused("`slerp` merges 2 models, found 3", models=[A, B, C], method="slerp")
    refused("`slerp` needs the parameter `t`", models=[A, B], method="slerp")
    refused(
        "`model_stock` merges 2 or more models beside the base, found 1",
        models=[A],
        base="c",
        method="model_stock",
    )
    refused("`linear` does not know the parameter `density`", models=[A, {**B, "density": 0.5}])
    refused(
        "`ties` does not know the parameter `t`",
        models=[A],
        base="b",
        method="ties",
        parameters={"t": 0.5},
    )
    refused("`density` is 1.5", models=[A], base="b", method="ties", parameters={"density": 1.5})
    refused(
        "density 0.9 ± epsilon 0.15",
        models=[A],
        base="b",
        method="della",
        parameters={"density": 0.9},
    )
    refused(r"weights \[1.0, -1.0\] sum to zero", models=[A, {**B, "weight": -1.0}])
    refused(
        r"weights \[1.0, -1.0\] sum to zero", models=[A, {**B, "weight": -1.0}], method="nuslerp"
    )
    refused("`embeddings_from` names `c`, which is none", models=[A, B], embeddings_from="c")
    refused("only in `slices`", models=[{**A, "layers": [0, 3]}])


def test_weights_that_sum_to_zero_somewhere():
    """A gradient may do so in one layer only; the tensor is named."""
    gradient = [1.0, -1.0]
    refused(
        r"sum to zero\n  where: merge, tensor `model.layers.5.self_attn.q_proj.weight`",
        models=[A, {**B, "weight": [{"filter": "q_proj", "value": gradient}, {"value": 1.0}]}],
    )


def test_what_slices_refuse():
    def source(model: str, start: int, stop: int) -> dict:
        return {"from": model, "layers": [start, stop]}

    refused("has no `layers`", slices=[{"sources": [A]}])
    refused(
        "the same number of layers", slices=[{"sources": [source("a", 0, 6), source("b", 0, 5)]}]
    )
    refused(
        "has no layer 6, only 6", slices=[{"sources": [source("a", 0, 7)]}], method="passthrough"
    )
    refused(
        "layer 5 of `a` is a global layer, layer 0 of the output a window layer",
        slices=[{"sources": [source("a", 5, 6)]}],
        method="passthrough",
    )
    refused(
        "the slice has no source `b`, the base",
        slices=[{"sources": [source("a", 0, 6)]}],
        base="b",
        method="ties",
    )


def translate(text: str) -> dict:
    translation = Translation(yaml.safe_load(text), "merge.yml")
    return translation.settings({name: name.upper() for name in translation.models})


def test_bases_in_mergekit_files():
    models = "models: [{model: a}, {model: b}]\nbase_model: "
    assert translate(f"merge_method: ties\n{models}b")["models"] == [{"from": "A"}]
    assert translate(f"merge_method: ties\n{models}b")["base"] == "B"
    slerp = translate(f"merge_method: slerp\n{models}b\nparameters: {{t: 0.3}}")
    assert slerp["models"] == [{"from": "B"}, {"from": "A"}] and "base" not in slerp
    assert translate(f"merge_method: karcher\n{models}c")["models"][-1] == {"from": "C"}


def test_other_settings_in_mergekit_files():
    found = translate(
        "merge_method: linear\nmodels: [{model: a+lora, parameters: {weight: 1e-1}}, "
        "{model: {model: {path: b}, lora: {path: other}}}]\n"
        "dtype: float32\nout_dtype: bfloat16\ntokenizer_source: union\n"
        "parameters: {normalize: false, int8_mask: true, weight: 1e0}"
    )
    assert found["models"] == [
        {"from": "A", "adapter": "lora", "weight": 0.1},
        {"from": "B", "adapter": "other"},
    ]
    assert found["dtype"] == "bfloat16" and found["tokenizer"] == "union"
    assert found["parameters"] == {"normalize": False, "weight": 1.0}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("merge_method: multislerp\nmodels: [{model: a}]", "merge_method: multislerp"),
        ("merge_method: linear\nmodules: {text: {}}", "`modules`"),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: float16", "dtype: float16"),
        ("merge_method: linear\nmodels: [{model: a}]\nout_dtype: int8", "`out_dtype: int8`"),
        ("merge_method: linear\nmodels: [{model: a}]\nchat_template: auto", "`chat_template`"),
        (
            "merge_method: linear\nslices: [{sources: [{model: a}], residual_weight: 1}]",
            "`slices.residual_weight`",
        ),
        (
            "merge_method: linear\nmodels: [{model: {model: a, override_architecture: X}}]",
            "override_architecture",
        ),
        (
            "merge_method: linear\nmodels: [{model: a}]\ntokenizer: {tokens: {x: {source: a}}}",
            "`tokenizer.tokens`",
        ),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: much}}]", "weight: much"),
        (
            "merge_method: linear\nmodels: [{model: a}]\nparameters: {normalize: [true, false]}",
            "parameters.normalize",
        ),
        ("merge_method: linear\nmodels: [a]", "`models` that is not a list of entries"),
    ],
)
def test_what_mergekit_has_and_we_have_not(text, named):
    with pytest.raises(RecipeError, match="is not supported here") as error:
        translate(text)
    assert named in str(error.value) and "merge.yml" in str(error.value)


def test_files_that_are_not_mergekits(tmp_path):
    file = tmp_path / "x.yml"
    for text, said in (
        ("a: [", "not YAML"),
        ("- 1", "no `merge_method`"),
        ("a: 1", "no `merge_method`"),
        ("", "no `merge_method`"),
        ("name: a\n---\nname: b", r"several merges in one file \(2\)"),
    ):
        file.write_text(text)
        with pytest.raises(RecipeError, match=said):
            read_mergekit(file)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_mergekit(tmp_path / "absent.yml")
