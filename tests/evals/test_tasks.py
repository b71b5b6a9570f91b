"""Packs of our own form: what is read, what is said of a malformed one, what prompts become."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.errors import DataError, RecipeError
from singalaut.evals.examples import question_texts, read_cell
from singalaut.evals.extraction import label_extractor, text_extractor
from singalaut.evals.pack import load_pack, pack_path
from singalaut.evals.robust import echoes, robust_label_extractor, robust_text_extractor
from singalaut.evals.tasks import choose
from singalaut.evals.template import Template


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")


def cell(pack: Path, name: str = "sentiment", language: str = "id", **options):
    task = next(task for task in load_pack(pack).tasks if task.name == name)
    return read_cell(task, task.languages[language], **options)


def test_a_pack_is_read_in_order(pack):
    loaded = load_pack(pack)
    assert loaded.name == "synthetic"
    assert [task.name for task in loaded.tasks] == ["sentiment", "translation-a", "translation-b"]
    read = cell(pack)
    first = read.examples[0]
    assert first.prompt.endswith('"Jawaban: ANSWER", {"x": 1}.\n\nkalimat positive 0 {text}')
    assert (first.id, first.gold, read.language.tag) == ("s0", "positive", "Jawaban:")
    assert read.language.labels == {"positive": "Positif", "negative": "Negatif"}
    assert [len(cell(pack, limit=n).examples) for n in (None, 1, 9)] == [4, 1, 4]
    assert read.name == "sentiment.id" and read.chance == 0.5
    assert cell(pack, "translation-a").examples[0].references == ("teks nomor 0",)


def test_tasks_and_languages_are_chosen_in_the_order_of_the_pack(pack):
    loaded = load_pack(pack)

    def names(*given):
        return [f"{task.name}.{spec.language}" for task, spec in choose(loaded, *given)]

    everything = ["sentiment.id", "sentiment.th", "translation-a.id", "translation-b.id"]
    assert names() == everything
    chosen = names(("translation-b", "sentiment"), ("id",))
    assert chosen == ["sentiment.id", "translation-b.id"]
    with pytest.raises(RecipeError, match="no task `sentimen`") as caught:
        names(("sentimen",))
    assert caught.value.hint == "did you mean `sentiment`?"
    with pytest.raises(RecipeError, match="no language `vi`"):
        names((), ("vi",))
    with pytest.raises(RecipeError, match="no task among translation-a is in th"):
        names(("translation-a",), ("th",))


@pytest.mark.parametrize(
    ("old", "new", "what", "place"),
    [
        ("max_tokens = 8", "max_token = 8", "unknown key `max_token`", "max_token"),
        ("tag = ", "tags = ", "unknown key `tags`", "languages.id.tags"),
        ("max_tokens = 8\n", "", "`max_tokens` is missing", "max_tokens"),
        ("max_tokens = 8", "max_tokens = 0", "greater than or equal to 1", "max_tokens"),
        ('"accuracy"', '"acuracy"', "unknown metric `acuracy`", "metric"),
        ('"sentiment"', '"../sentiment"', "pattern", "name"),
        ("version = 1", "version = ", "not a TOML file: .*line 3", "sentiment.toml"),
        ('tag = "Jawaban:"', 'tag = ""', "`tag` is missing", "[languages.id].tag"),
        (
            'labels = { positive = "Positif", negative = "Negatif" }\n',
            "",
            "accuracy needs at least two labels, found 0",
            "[languages.id]",
        ),
        ('"Negatif"', '"positif "', "written the same", "[languages.id]"),
        ('"accuracy"', '"chrf++"', "`labels` has no meaning", "[languages.id]"),
        ('"accuracy"', '"accuracy"\nmetrics = ["chrf++"]', "cannot be scored by `chrf", "metrics"),
        ('"accuracy"', '"accuracy"\nkind = "span"', "cannot be scored by `accuracy`", "kind"),
        ('"accuracy"', '"accuracy"\npooled = true', "`pooled` needs `slices`", "pooled"),
        ('"accuracy"', '"accuracy"\nchance = 2', "less than 1", "chance"),
        ("prompt = ", 'synonyms = { good = ["Baik"] }\nprompt = ', "`good`, which is no", "id"),
        ("data/sentiment.id.jsonl", "data/none.jsonl", "`data/none.jsonl` is missing", "id"),
        ("data/sentiment.id.jsonl", "../../x.jsonl", "outside of the pack", "[languages.id]"),
        ("[languages.id]", '[languages."a/b"]', "not a language code", "a/b"),
    ],
)
def test_a_malformed_task_file_is_named(pack, old, new, what, place):
    replace(pack / "sentiment.toml", old, new)
    with pytest.raises(DataError, match=what) as caught:
        load_pack(pack)
    assert "sentiment.toml" in caught.value.where
    assert place in caught.value.where


def test_an_unknown_key_is_answered_with_the_nearest(pack):
    replace(pack / "sentiment.toml", "max_tokens = 8", "max_token = 8")
    with pytest.raises(DataError) as caught:
        load_pack(pack)
    assert caught.value.hint == "did you mean `max_tokens`?"


def test_conversations_need_a_judge(pack):
    replace(pack / "translation-a.toml", '"chrf++"', '"win-rate"')
    with pytest.raises(DataError, match="scored by a judge") as caught:
        load_pack(pack)
    assert caught.value.where.endswith("judge")


@pytest.mark.parametrize(
    ("row", "kind", "what"),
    [
        ("{not json", "not_json", "not a JSON object"),
        ('"a text"', "not_json", "a str, an object is needed"),
        ('{"label": "positive", "text": "x"}', "missing_field", "`id` is missing"),
        ('{"id": 7, "label": "positive", "text": "x"}', "missing_field", "`id` is 7"),
        ('{"id": "n", "text": "x"}', "missing_label", "the label is missing"),
        ('{"id": "n", "label": ["positive"], "text": "x"}', "missing_label", "a text is needed"),
        ('{"id": "n", "label": "neutral", "text": "x"}', "unknown_label", "`neutral` is not among"),
        ('{"id": "n", "label": "positive", "texts": "x"}', "missing_field", "asks for `{text}`"),
        ('{"id": "n", "label": "positive", "text": 3}', "missing_field", "asks for `{text}`"),
        ('{"id": "n", "label": "positive", "text": "\\ud800"}', "not_json", "not a JSON object"),
        ("[" * 100_000, "not_json", "not a JSON object"),
    ],
)
def test_a_malformed_row_is_left_out_counted_and_named(pack, row, kind, what):
    file = pack / "data" / "sentiment.id.jsonl"
    with file.open("a", encoding="utf-8") as handle:
        handle.write("\n" + row + "\n")
    read = cell(pack, limit=1)  # all rows are read all the same
    assert read.problems.counts == {kind: 1} and read.problems.lost == 1
    [problem] = read.problems.first
    assert problem.where == "sentiment.id.jsonl, line 6" and what in problem.what
    assert len(cell(pack).examples) == 4


def test_rows_of_one_id_are_all_kept_under_names_of_their_own(pack):
    with (pack / "data" / "sentiment.id.jsonl").open("a") as handle:
        handle.write('{"id": "s1", "label": "positive", "text": "x"}\n')
    read = cell(pack)
    assert [example.id for example in read.examples] == ["s0", "s1", "s2", "s3", "s1#5"]
    assert read.problems.counts == {"duplicate_id": 1} and read.problems.lost == 0


def test_bytes_that_are_not_utf8_are_counted(pack):
    (pack / "data" / "sentiment.id.jsonl").write_bytes(
        b'{"id": "\xff"}\n{"id": "a", "label": "positive", "text": "x"}\n'
    )
    assert cell(pack).problems.counts == {"not_json": 1}


def test_a_prompt_cannot_show_the_gold_answer(pack):
    replace(pack / "sentiment.toml", "{text}'''", "{text} {label}'''")
    with pytest.raises(DataError, match=r"`{label}`, which the row lacks"):
        cell(pack)


def test_files_without_a_usable_row_and_folders_without_tasks_are_refused(pack, tmp_path):
    (pack / "data" / "sentiment.id.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="it has no rows"):
        cell(pack)
    with pytest.raises(DataError, match="has no task files"):
        load_pack(pack / "data")
    with pytest.raises(DataError, match="is not a folder"):
        load_pack(tmp_path / "nowhere")


def test_rows_may_be_compressed(pack):
    file = pack / "data" / "sentiment.id.jsonl"
    plain = cell(pack).examples
    file.with_name("s.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
    replace(pack / "sentiment.toml", "data/sentiment.id.jsonl", "data/s.jsonl.gz")
    assert cell(pack).examples == plain
    file.with_name("s.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="not a gzip file"):
        cell(pack)


def test_two_tasks_of_one_name_are_refused(pack):
    replace(pack / "translation-b.toml", "translation-b", "translation-a")
    with pytest.raises(DataError, match="two task files have the name `translation-a`"):
        load_pack(pack)


def test_worked_examples_stand_before_the_question(pack):
    rows = [{"id": f"e{i}", "label": "negative", "text": f"contoh {i}"} for i in range(3)]
    file = pack / "data" / "examples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new = 'examples = "data/examples.jsonl"\npreamble = "Pembuka."\nprompt = '
    replace(pack / "sentiment.toml", "prompt = ", new)
    [*before] = cell(pack, shots=2).examples[0].before
    assert [message.role for message in before] == ["user", "assistant"] * 2
    assert before[0].content.startswith("Pembuka.\n\nNilai") and "contoh 0" in before[0].content
    assert before[1].content == "Jawaban: Negatif"
    assert not cell(pack, shots=2).examples[0].prompt.startswith("Pembuka")
    assert cell(pack).examples[0].prompt.startswith("Pembuka.\n\nNilai")
    file.write_text(file.read_text() + "{\n")
    with pytest.raises(DataError, match="a worked example cannot be used"):
        cell(pack, shots=2)


def test_texts_of_questions_are_those_of_the_row(pack):
    task = load_pack(pack).tasks[1]
    texts = question_texts(task, task.languages["id"])
    assert texts == [("t0", ["text 0", "teks nomor 0"]), ("t1", ["text 1", "teks nomor 1"])]


@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.text(), min_size=1))
def test_filling_is_literal_and_happens_once(fields):
    template = "} {1} { " + " ".join(f"<{{{name}}}>" for name in fields)
    expected = "} {1} { " + " ".join(f"<{text}>" for text in fields.values())
    read = Template.plain(template)
    assert read.fill(fields) == expected
    assert read.fields == tuple(fields)
    some = dict(list(fields.items())[:1])
    assert read.partly(some).fill(fields) == expected


@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.text(), min_size=1))
def test_official_notation_is_that_of_python(fields):
    template = "{{x}} }} " + " ".join(f"<{{{name}}}>" for name in fields)
    assert Template.formatted(template).fill(fields) == template.format(**fields)


@pytest.mark.parametrize("text", ["{0}", "{a!r}", "{a:>5}", "{a.b}", "{", "}"])
def test_more_than_names_is_refused(text):
    with pytest.raises(ValueError, match=r"more than the name|Single|expected"):
        Template.formatted(text)


def test_the_embedded_pack_makes_prompts_whose_answers_are_read_and_echoes_are_not():
    for task, spec in choose(load_pack(pack_path("demo"))):
        read = read_cell(task, spec)
        if not spec.tag:
            continue
        assert spec.tag in spec.prompt.question.text, read.name
        echoed = echoes(spec.prompt.question.text, spec.tag)
        if task.kind == "labels":
            readers = (
                label_extractor("v1.2", spec.tag, spec.labels),
                robust_label_extractor(spec.tag, spec.labels, spec.synonyms, echoed),
            )
        else:
            readers = (
                text_extractor("v1.2", spec.tag),
                robust_text_extractor(spec.tag, "line", echoed),
            )
        for example in read.examples:
            gold = example.gold or example.references[0]
            for reader in readers:
                answer = reader(f"{spec.tag} {spec.labels.get(gold, gold)}")
                assert (answer.answer, answer.tagged) == (gold, True), (read.name, example.id)
            echo = readers[1](example.prompt)
            assert not echo.tagged or echo.answer != gold, (read.name, example.id)
