"""SEA-HELM's own files: prompts to the byte, labels, suites, what is missing and what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml

from singalaut.errors import DataError
from singalaut.evals.config import EvaluateConfig
from singalaut.evals.evaluate import read_cells
from singalaut.evals.examples import read_cell
from singalaut.evals.official import is_official, our_code
from singalaut.evals.pack import load_pack
from singalaut.evals.profiles import PROFILES
from singalaut.evals.tasks import choose

SHARED = Path(__file__).parents[3] / "shared" / "sea-helm"
if not SHARED.is_dir():
    SHARED = Path(__file__).parents[4] / "shared" / "sea-helm"
needs_packs = pytest.mark.skipif(not SHARED.is_dir(), reason="the official packs are not here")
NEW = """
sentiment:
  metadata: {version: 1.1}
  name: sentiment_analysis
  competency: nlu
  metric_class: F1AccMetric
  languages:
    id:
      filepath: hub/sentiment
      example_filepath: hub/sentiment
      max_tokens: 32
      prompt_template:
        preamble: |-
          Apa sentimennya?
          "{answer_tag} ANSWER"
        task_template: |-
          Kalimat: {text}
        answer_template: "{answer_tag} {label}"
        answer_tag: "Jawaban:"
sentiment-logprobs:
  metadata: ${sentiment.metadata}
  languages: ${sentiment.languages}
pragmatic-single:
  metadata: {version: 1.1}
  competency: linguistic-diagnostics
  languages:
    id:
      filepath: seahelm_tasks/pragmatic.jsonl
      max_tokens: 32
      prompt_template:
        {preamble: "", task_template: "{text}", answer_template: "", answer_tag: "Jawaban:"}
unknown:
  metadata: {version: 1}
  competency: vision
  metric_class: SomethingElse
  languages: {id: {filepath: x.jsonl, max_tokens: 3}}
"""
OLD = """
sentiment:
  metadata: {version: 1}
  competency: nlu
  temperature: 0
  languages:
    id:
      filepath: seahelm_tasks/rows.jsonl
      example_filepath: seahelm_tasks/examples.jsonl
      max_tokens: 32
      prompt_template:
        template: "Apa?\\nJawaban: $OPTION{fewshot_examples}\\n\\nKalimat: {text}"
        fewshot_example: "\\n\\nKalimat: {text}\\nJawaban: {label}"
        fewshot_label: "Jawaban: {label}"
"""
ROWS = [
    {"id": 1, "label": "positive", "prompts": [{"text": "bagus {x}"}], "metadata": {}},
    {"id": 1, "label": "neutral", "prompts": [{"text": "biasa"}], "metadata": {}},
    {"id": 2, "label": "superb", "prompts": [{"text": "?"}], "metadata": {}},
    {"id": 3, "prompts": [{"text": "?"}]},
    {"id": 4, "label": "positive", "prompts": [{"words": "?"}]},
    {"id": 5, "label": "positive"},
]


@pytest.fixture
def official(tmp_path) -> Path:
    """A tiny pack in both forms, with rows as in v1.0.0."""
    for version, text in (("v1.0.0", OLD), ("v1.2.1", NEW)):
        folder = tmp_path / "prompts" / version / "seahelm_tasks" / "nlu"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(text, "utf-8")
    suite = "seahelm:\n  id: [sentiment, mt-bench-judge, kalahi-judge]\n"
    (folder.parent / "task_config.yaml").write_text(suite)
    data = tmp_path / "data" / "seahelm_tasks"
    data.mkdir(parents=True)
    write(data / "rows.jsonl", ROWS)
    write(data / "examples.jsonl", [{"label": "Netral", "prompts": [{"text": "contoh"}]}])
    rows = [
        {"label": label, "prompts": [{"text": "x"}], "metadata": {"linguistic_phenomenon": "s"}}
        for label in (True, "No", "Tidak")
    ]
    write(data / "pragmatic.jsonl", rows)
    return tmp_path


def write(file: Path, rows) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def cell(folder: Path, name: str, profile: str = "card", **options):
    pack = load_pack(folder, PROFILES[profile])
    task = next(task for task in pack.tasks if task.name == name)
    return read_cell(task, task.languages["id"], **options)


def test_tasks_come_from_the_files_and_labels_from_the_table(official):
    assert is_official(official) and not is_official(official / "data")
    pack = load_pack(official)
    assert [task.name for task in pack.tasks] == ["pragmatic-single", "sentiment"]
    assert pack.skipped == ("unknown",)
    assert pack.averaged == ("id",)
    assert pack.expected == {"id": ("sentiment", "mt-bench")}  # as the card's protocol has it
    wanted = load_pack(official, PROFILES["v1.2"]).expected
    assert wanted == {"id": ("sentiment", "mt-bench-judge", "kalahi-judge")}
    counted = [(task.name, spec.counted) for task, spec in choose(pack, extras=True)]
    assert counted == [("pragmatic-single", False), ("sentiment", True)]
    assert [task.name for task, _ in choose(pack)] == ["sentiment"]


def test_rows_of_the_first_version_serve_newer_prompts(official):
    read = cell(official, "sentiment")
    assert [(e.id, e.gold) for e in read.examples] == [("1", "Positif"), ("1#2", "Netral")]
    assert read.examples[0].prompt == ('Apa sentimennya?\n"Jawaban: ANSWER"\n\nKalimat: bagus {x}')
    assert read.problems.counts == {
        "duplicate_id": 1,
        "unknown_label": 1,
        "missing_label": 1,
        "missing_field": 2,
    }
    assert read.problems.lost == 4 and read.chance == pytest.approx(1 / 3)
    old = cell(official, "sentiment", "v1.0")
    assert old.examples[0].prompt == "Apa?\nJawaban: $OPTION\n\nKalimat: bagus {x}"
    assert old.language.tag == "Jawaban:" and old.task.temperature == 0


def test_worked_examples_are_turns_or_stand_inside(official):
    new = cell(official, "sentiment", shots=5).examples[0]
    assert [(m.role, m.content) for m in new.before] == [
        ("user", 'Apa sentimennya?\n"Jawaban: ANSWER"\n\nKalimat: contoh'),
        ("assistant", "Jawaban: Netral"),
    ]
    assert new.prompt == "Kalimat: bagus {x}"
    old = cell(official, "sentiment", "v1.0", shots=5).examples[0]
    assert old.before == ()
    assert old.prompt == (
        "Apa?\nJawaban: $OPTION\n\nKalimat: contoh\nJawaban: Netral\n\nKalimat: bagus {x}"
    )


def test_four_words_may_stand_for_two_labels(official):
    read = cell(official, "pragmatic-single")
    assert [example.gold for example in read.examples] == ["Benar", "Tidak", "Tidak"]
    assert [example.slice for example in read.examples] == ["s"] * 3
    assert read.chance == 0.5 and read.task.pooled and read.task.group == "pragmatics"


def test_rows_of_the_hub_are_preferred_and_may_be_compressed(official):
    folder = official / "data" / "hub" / "hub" / "sentiment" / "id"
    folder.mkdir(parents=True)
    row = {"id": 9, "label": "Netral", "prompts": [{"text": "dari hub"}], "metadata": {}}
    (folder / "eval.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    assert [example.id for example in cell(official, "sentiment").examples] == ["9"]


def test_prompts_and_rows_may_lie_apart(official, tmp_path):
    apart = tmp_path / "apart"
    (tmp_path / "data").rename(apart)
    task = load_pack(official).tasks[1]
    assert task.languages["id"].data is None
    with pytest.raises(DataError, match="has no rows in `id`"):
        read_cell(task, task.languages["id"])
    found = load_pack(official, data=[apart]).tasks[1].languages["id"].data
    assert found == apart / "seahelm_tasks" / "rows.jsonl"


def test_tasks_whose_rows_are_not_here_are_told_of(official, caplog):
    (official / "data" / "seahelm_tasks" / "rows.jsonl").unlink()
    with caplog.at_level("WARNING", "singalaut"):
        cells = read_cells(load_pack(official), EvaluateConfig(extras=True))
    assert [cell.task.name for cell in cells] == ["pragmatic-single"]
    assert "rows are not here: sentiment (1 language);" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("max_tokens: 32", "most_tokens: 32", "KeyError: 'max_tokens'"),
        ("{text}", "{text", "not in SEA-HELM's form: ValueError"),
        ("metadata: {version: 1.1}", "metadata: [", "not a YAML file"),
    ],
)
def test_a_malformed_task_file_is_named(official, old, new, what):
    file = official / "prompts" / "v1.2.1" / "seahelm_tasks" / "nlu" / "config.yaml"
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(DataError, match=what):
        load_pack(official)


def test_a_profile_whose_prompts_are_not_there_is_refused(official):
    import shutil

    shutil.rmtree(official / "prompts" / "v1.0.0")
    with pytest.raises(DataError, match=r"`v1.0` needs the prompts of SEA-HELM v1\.0") as caught:
        load_pack(official, PROFILES["v1.0"])
    assert "v1.2" in caught.value.hint


class Builder:
    """What the official configuration builds, from the YAML and the rows, by plain formatting."""

    def __init__(self, version: str):
        self.tasks: dict = {}
        for file in (SHARED / "prompts" / version).rglob("config.yaml"):
            self.tasks |= yaml.safe_load(file.read_text("utf-8"))

    def conversation(self, name: str, code: str, row: dict, shots: list[dict]) -> list[str]:
        spec = self.tasks[name]["languages"][code]["prompt_template"]
        fields = row["prompts"][0]
        if "template" in spec:
            inside = "".join(
                spec["fewshot_example"].format(label=shot["label"], **shot["prompts"][0])
                for shot in shots
            )
            return [spec["template"].format(fewshot_examples=inside, **fields)]
        tag = spec["answer_tag"]
        contents = []
        for shot in shots:
            contents.append(spec["task_template"].format(**shot["prompts"][0], answer_tag=tag))
            given = {**shot["prompts"][0], "label": shot["label"], "answer_tag": tag}
            contents.append(spec["answer_template"].format(**given))
        contents.append(spec["task_template"].format(**fields))
        contents[0] = (spec["preamble"].format(answer_tag=tag) + "\n\n" + contents[0]).strip()
        return contents


def rows_of(file: Path) -> list[dict]:
    raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [json.loads(line) for line in raw.decode().split("\n") if line.strip()]


def native(label, written: list[str]):
    """A worked example's label where its rows are of the first version and the prompts are not."""
    if isinstance(label, int):
        return written[label]
    return written["ABCD".index(label)] if written[0] == "က" and label in "ABCD" else label


@needs_packs
@pytest.mark.parametrize(
    ("profile", "version", "cells", "rows"),
    [("v1.0", "v1.0.0", 49, 27_819), ("card", "v1.2.1", 56, 30_619)],
)
def test_prompts_are_those_of_the_official_configuration(profile, version, cells, rows):
    builder = Builder(version)
    pack = load_pack(SHARED, PROFILES[profile])
    checked = 0
    there = [(t, spec) for t, spec in choose(pack, extras=True) if spec.data is not None]
    for task, spec in there:
        named = builder.tasks[task.name]["languages"]
        code = next(code for code in named if our_code(code) == spec.language)
        raw = rows_of(spec.data)
        read = read_cell(task, spec)
        assert len(read.examples) == len(raw), read.name
        for row, example in zip(raw, read.examples, strict=True):
            assert [example.turns[0]] == builder.conversation(task.name, code, row, [])
            checked += 1
        if spec.examples is None:
            continue
        examples = rows_of(spec.examples)
        shown = read_cell(task, spec, limit=40, shots=5)
        for row, example in zip(raw, shown.examples, strict=False):
            subject = row["prompts"][0].get("subject", "").lower() if task.shots_by else None
            shots = [e for e in examples if subject in (None, e["metadata"].get("subject"))][:5]
            if profile == "card" and spec.labels:
                written = list(spec.labels)
                shots = [{**shot, "label": native(shot["label"], written)} for shot in shots]
            wanted = builder.conversation(task.name, code, row, shots)
            assert [m.content for m in example.before] + [example.turns[0]] == wanted
    assert (len(there), checked) == (cells, rows)


@needs_packs
def test_every_gold_label_of_the_packs_is_known():
    for profile in ("card", "v1.0"):
        for task, spec in choose(load_pack(SHARED, PROFILES[profile]), extras=True):
            if spec.data is None:
                continue
            read = read_cell(task, spec)
            assert read.problems.lost == 0, read.name
            assert spec.licence, read.name
            if task.kind == "labels":
                assert set(spec.labels) >= {example.gold for example in read.examples}
                assert not any(
                    a != b and b.startswith(a) for a in spec.labels for b in spec.labels
                ), "no label begins another, so the order of alternatives does not matter"
