"""The model card: a golden file, what it must say, and what it must never say.

`SINGALAUT_REWRITE_GOLDEN=1 pytest tests/publish` writes the golden file anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from singalaut.artifact import Work
from singalaut.errors import ArtifactError
from singalaut.publish.card import GEMMA_NOTICE, base_model, card_markdown, portable, run_card
from singalaut.publish.config import CardConfig

GOLDEN = Path(__file__).parent / "golden" / "card.md"
HARDWARE = {"cpu": "A processor", "cores": 2, "memory_gib": 7.8, "gpus": [], "system": "Linux"}
PACKAGES = {"python": "3.11.9", "singalaut": "0.1.0", "torch": "2.13.0"}
BASE = {"stage": "base", "source": "demo:gemma-3-270m", "content": "ab" * 32}
SFT = {
    "kind": "sft",
    "key": "12" * 32,
    "stage": "sft",
    "version": 1,
    "config": {
        "kind": "sft",
        "name": "sft",
        "data": [{"path": "data/quickstart.jsonl", "weight": 1.0, "language": "th"}],
        "steps": 60,
        "learning_rate": 4e-4,
        "adapter": {"rank": 16, "targets": ["query", "value"]},
    },
    "inputs": {
        "model": {"path": "gemma-3-270m", "key": "ab" * 32},
        "data.0": {"path": "quickstart.jsonl", "key": "cd" * 32},
    },
    "data": [
        {"source": "quickstart.jsonl", "language": "th", "rows": 40, "licence": "Apache-2.0"},
        {"source": "quickstart.jsonl", "language": "id", "rows": 38, "licence": "CC0-1.0"},
    ],
    "seed": 17,
    "seconds": 91.25,
    "packages": PACKAGES,
    "hardware": HARDWARE,
}
MERGE = {
    "kind": "merge",
    "key": "34" * 32,
    "stage": "merge",
    "version": 2,
    "config": {"kind": "merge", "name": "merge", "method": "linear", "adapter": None},
    "seed": 17,
    "seconds": 4.5,
    "energy_kwh": 0.0123,
    "packages": PACKAGES,
    "hardware": HARDWARE | {"gpus": ["A GPU"]},
}
EVALUATION = {
    "kind": "evaluate",
    "key": "56" * 32,
    "stage": "evaluate",
    "version": 1,
    "seed": 17,
    "seconds": 60.0,
    "packages": PACKAGES,
    "hardware": HARDWARE,
}
RESULTS = {
    "format": 1,
    "pack": "demo",
    "models": {"base": {}, "merge": {}},
    "tasks": {
        "sentiment": {"version": 1, "licence": "Apache-2.0", "languages": {"id": {}, "no": {}}},
    },
    "rows": [
        {
            "kind": kind,
            "name": name,
            "metric": metric,
            "n": 16,
            "scores": {"base": 0.0, "merge": 62.5},
            "extracted": {"base": 0.0625, "merge": 0.9375},
        }
        for kind, name, metric in (
            ("task", "sentiment", "accuracy"),
            ("language", "id", "normalised mean"),
            ("overall", "all", "normalised mean"),
        )
    ],
}
LINEAGE = [BASE, SFT, MERGE]


def card(**changes) -> str:
    arguments = {
        "title": "A tuned Gemma 3 270M",
        "weights": MERGE,
        "lineage": LINEAGE,
        "results": RESULTS,
        "evaluation": EVALUATION,
    }
    return card_markdown(**(arguments | changes))


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_is_the_golden_one():
    if os.environ.get("SINGALAUT_REWRITE_GOLDEN"):
        GOLDEN.write_text(card(), "utf-8")
    assert card() == GOLDEN.read_text("utf-8")


def test_the_front_matter_is_yaml_of_the_right_types():
    about = front_matter(card())
    assert about["license"] == "gemma"
    assert about["language"] == ["id", "no", "th"]
    assert about["base_model"] == ["google/gemma-3-270m"]
    assert about["pipeline_tag"] == "text-generation"
    assert {"sft", "merge", "singalaut"} <= set(about["tags"])
    bare = front_matter(card(lineage=[{"stage": "base", "source": "some/folder"}], results=None))
    assert "base_model" not in bare and "language" not in bare


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("demo:gemma-3-270m", "google/gemma-3-270m"),
        ("google/gemma-3-4b-pt", "google/gemma-3-4b-pt"),
        ("hf:someone/some-gemma", "someone/some-gemma"),
        ("models/gemma", None),
        ("google/a/b", None),
        ("gemma.gguf", None),
        ("unknown", None),
    ],
)
def test_a_base_is_named_only_where_it_is_known(source, name):
    assert base_model(source) == name


def test_what_was_not_recorded_is_said_to_be_missing():
    text = card()
    assert GEMMA_NOTICE in text
    assert "| sft | A processor, 2 cores, no GPU | 91.2 | not measured |" in text
    assert "| merge | A processor, 2 cores, A GPU | 4.5 | 0.012 |" in text
    assert "62.5 (94 %)" in text
    assert "is a demonstration" in text
    assert "is a demonstration" not in card(results=RESULTS | {"pack": "mine"})
    assert "has not been evaluated" in card(results=None, evaluation=None)
    without_counts = {k: v for k, v in SFT.items() if k != "data"}
    row = "| sft | quickstart.jsonl | th | not recorded | not recorded | cdcdcdcdcdcdcdcd |"
    assert row in card(lineage=[BASE, without_counts])
    alone = card(lineage=[BASE], results=None, evaluation=None)
    assert "No stage of this model read training data" in alone
    assert "no stage was run" in alone


def test_a_model_of_two_origins_and_a_removed_stage_are_told():
    other = {"stage": "chatty", "source": "google/gemma-3-270m-it", "content": "ef" * 32}
    removed = {name: MERGE[name] for name in ("kind", "key", "stage", "version", "config")}
    text = card(lineage=[BASE, other, removed], evaluation=None)
    assert front_matter(text)["base_model"] == ["google/gemma-3-270m", "google/gemma-3-270m-it"]
    assert "| merge | not recorded | not recorded | not measured |" in text
    assert "| chatty | efefefefefefefef |  |  |" in text


def test_texts_from_outside_cannot_break_a_table():
    stage = SFT | {"stage": "a|b", "config": {"note": "x | y\nz"}}
    text = card(title="One\ntwo", lineage=[BASE, stage])
    assert "# One two\n" in text
    assert "| a\\|b | sft | note = x \\| y z |" in text


@pytest.fixture
def folders(tmp_path):
    model, evaluation, work = tmp_path / "merge-34", tmp_path / "evaluate-56", tmp_path / "work"
    for folder in (model / "model", evaluation / "results", work):
        folder.mkdir(parents=True)
    (model / "manifest.json").write_text(json.dumps(MERGE))
    (evaluation / "manifest.json").write_text(json.dumps(EVALUATION))
    (evaluation / "results" / "results.json").write_text(json.dumps(RESULTS))
    return model, evaluation, Work(work)


def test_a_release_has_the_card_the_notice_and_the_lineage(folders):
    model, evaluation, work = folders
    config = CardConfig(model="merge", evaluation="evaluate", title="A tuned Gemma 3 270M")
    run_card(config, model=model, evaluation=evaluation, lineage=LINEAGE, work=work)
    release = work.path / "release"
    assert sorted(p.name for p in release.iterdir()) == [
        "NOTICE",
        "README.md",
        "manifest-lineage.json",
    ]
    assert (release / "README.md").read_text("utf-8") == card()
    assert json.loads((release / "manifest-lineage.json").read_bytes()) == LINEAGE
    assert GEMMA_NOTICE in (release / "NOTICE").read_text("utf-8")


def test_a_plain_model_directory_without_evaluation_will_do(folders):
    model, _, work = folders
    config = CardConfig(model="base")
    run_card(config, model=model / "model", evaluation=None, lineage=[BASE], work=work)
    text = (work.path / "release" / "README.md").read_text("utf-8")
    assert "They are the directory `model`;" in text


def test_nothing_in_a_release_names_a_place_on_this_machine(folders):
    model, evaluation, work = folders
    base = BASE | {"source": "/home/ana/models/gemma.gguf"}
    data = [{"path": "/home/ana/rows.jsonl", "language": "th"}]
    stage = SFT | {"config": {"data": data, "home": "~/x/y", "other": "C:\\ana\\z"}}
    config = CardConfig(model="merge")
    run_card(config, model=model, evaluation=evaluation, lineage=[base, stage], work=work)
    for file in (work.path / "release").iterdir():
        text = file.read_text("utf-8")
        assert "ana" not in text.replace("manifest", "") and "~/" not in text, file.name
    assert "gemma.gguf" in (work.path / "release" / "README.md").read_text("utf-8")


def test_a_folder_that_is_no_evaluation_is_named(folders):
    model, _, work = folders
    with pytest.raises(ArtifactError, match=r"`results\.json` cannot be read"):
        run_card(CardConfig(model="m"), model=model, evaluation=model, lineage=LINEAGE, work=work)


def json_of(text: st.SearchStrategy[str]) -> st.SearchStrategy:
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), text)
    return st.recursive(
        leaves, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner))
    )


@given(json_of(st.text(st.characters(exclude_characters="/\\~"))), json_of(st.text("/\\~aC: ")))
def test_only_absolute_paths_are_cut_and_only_once(plain, paths):
    assert portable(plain) == plain
    assert portable(portable(paths)) == portable(paths)
