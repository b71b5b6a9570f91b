"""Packs: what is read, and what is said of a malformed one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.errors import DataError, RecipeError
from singalaut.evals.runner import judge
from singalaut.evals.tasks import _fill, chunks, examples, load_pack, pack_path


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")


def test_a_pack_is_read_in_order(pack):
    loaded = load_pack(pack)
    assert loaded.name == "synthetic"
    assert [task.name for task in loaded.tasks] == ["sentiment", "translation-a", "translation-b"]
    sentiment = loaded.tasks[0]
    first = examples(sentiment, "id")[0]
    assert first.prompt.endswith('"Jawaban: ANSWER", {"x": 1}.\n\nkalimat positive 0 {text}')
    assert (first.id, first.gold, first.tag) == ("s0", "positive", "Jawaban:")
    assert first.labels == {"positive": "Positif", "negative": "Negatif"}
    assert [len(examples(sentiment, "id", n)) for n in (None, 1, 9)] == [4, 1, 4]


def test_chunks_choose_tasks_and_languages_in_the_order_of_the_pack(pack):
    loaded = load_pack(pack)
    everything = ["sentiment.id", "sentiment.th", "translation-a.id", "translation-b.id"]
    assert [chunk.name for chunk in chunks(loaded)] == everything
    chosen = chunks(loaded, ("translation-b", "sentiment"), ("id",), 1)
    assert [chunk.name for chunk in chosen] == ["sentiment.id", "translation-b.id"]
    with pytest.raises(RecipeError, match="no task `sentimen`") as caught:
        chunks(loaded, ("sentimen",))
    assert caught.value.hint == "did you mean `sentiment`?"
    with pytest.raises(RecipeError, match="no language `vi`"):
        chunks(loaded, (), ("vi",))
    with pytest.raises(RecipeError, match="no task among translation-a is in th"):
        chunks(loaded, ("translation-a",), ("th",))


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
        (
            'labels = { positive = "Positif", negative = "Negatif" }\n',
            "",
            "accuracy needs at least two labels, found 0",
            "[languages.id]",
        ),
        ('"Negatif"', '"positif "', "written the same", "[languages.id]"),
        ('"accuracy"', '"chrf++"', "`labels` has no meaning", "[languages.id]"),
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


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{not json", "not JSON"),
        ('"a text"', "the row is a str"),
        ('{"label": "positive", "text": "x"}', "`id` is missing"),
        ('{"id": 7, "label": "positive", "text": "x"}', "`id` is 7, a text is needed"),
        ('{"id": "n", "text": "x"}', "`label` is missing"),
        ('{"id": "n", "label": "neutral", "text": "x"}', "gold label `neutral` is not"),
        ('{"id": "n", "label": "positive", "texts": "x"}', "asks for `{text}`"),
        ('{"id": "n", "label": "positive", "text": 3}', "asks for `{text}`"),
        ('{"id": "s1", "label": "positive", "text": "x"}', "the id of line 2"),
        ('{"id": "n", "label": "positive", "text": "\\ud800"}', "not JSON in UTF-8"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(pack, row, what):
    file = pack / "data" / "sentiment.id.jsonl"
    with file.open("a", encoding="utf-8") as handle:
        handle.write("\n" + row + "\n")
    with pytest.raises(DataError, match=what) as caught:
        examples(load_pack(pack).tasks[0], "id", limit=1)
    assert caught.value.where == f"{file}, line 6"


def test_bytes_that_are_not_utf8_are_named(pack):
    (pack / "data" / "sentiment.id.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match="UTF-8") as caught:
        examples(load_pack(pack).tasks[0], "id")
    assert caught.value.where.endswith("line 1")


def test_a_prompt_cannot_show_the_gold_answer(pack):
    replace(pack / "sentiment.toml", "{text}'''", "{text} {label}'''")
    with pytest.raises(DataError, match=r"`{label}`, which the row lacks"):
        examples(load_pack(pack).tasks[0], "id")


def test_empty_files_and_folders_are_named(pack, tmp_path):
    (pack / "data" / "sentiment.id.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no rows"):
        examples(load_pack(pack).tasks[0], "id")
    with pytest.raises(DataError, match="has no task files"):
        load_pack(pack / "data")
    with pytest.raises(DataError, match="is not a folder"):
        load_pack(tmp_path / "nowhere")


def test_two_tasks_of_one_name_are_refused(pack):
    replace(pack / "translation-b.toml", "translation-b", "translation-a")
    with pytest.raises(DataError, match="two task files have the name `translation-a`"):
        load_pack(pack)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.text(), min_size=1))
def test_filling_is_literal_and_happens_once(fields):
    template = "} {1} { " + " ".join(f"<{{{name}}}>" for name in fields)
    expected = "} {1} { " + " ".join(f"<{text}>" for text in fields.values())
    assert _fill(template, fields, "here") == expected


@pytest.mark.skipif(not list(pack_path("demo").glob("*.toml")), reason="no embedded pack")
def test_the_embedded_pack_makes_prompts_whose_answers_are_read_and_echoes_are_not():
    asked = chunks(load_pack("demo"))
    assert asked
    for chunk in asked:
        spec = chunk.language
        assert spec.tag in spec.prompt, chunk.name
        for extracted in (True, False):
            given = []
            for example in chunk.examples:
                answer = f"{spec.tag} {spec.labels.get(example.gold, example.gold)}"
                response = answer if extracted else example.prompt
                given.append({"response": response, "finish_reason": "stop"})
            for row in judge(chunk, given):
                assert row["extracted"] == extracted, (chunk.name, row)
                assert (row["answer"] == row["gold"]) == extracted, (chunk.name, row)
