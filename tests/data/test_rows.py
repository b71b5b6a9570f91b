"""Every shape of row becomes the same conversation, and what does not fit says why."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from singalaut.contracts import Message
from singalaut.data.row_images import pictures_of
from singalaut.data.rows import RowReader, language_code
from singalaut.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
ASK, SAY = Message("user", "q"), Message("assistant", "a")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def read(row, **settings):
    return RowReader("rows", **settings).read(row, 7)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, A]},
        {"messages": json.dumps([Q, A])},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversation": [Q, A]},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": None, "output": "a", "system": " "},
        {"prompt": "q", "completion": "a"},
        {"prompt": [Q], "completion": [A]},
        {"prompt": "q", "response": "a"},
        {"question": "q", "answer": "a"},
        {"input": "q", "output": "a", "system_prompt": "", "reasoning": "off"},
        {"input": [Q], "output": "a"},
        {"problem": "q", "generated_solution": "a", "expected_answer": "3"},
        {"question": "q", "final_answer": "3", "r1_solution_1": None, "r1_solution_2": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": [Q, A], "rejected": [Q, {**A, "content": "b"}]},
        {"prompt": [Q], "chosen": [A], "rejected": [{**A, "content": "b"}]},
    ],
    ids=lambda row: "/".join(row)[:40],
)
def test_shapes(row):
    assert read(row).messages == [ASK, SAY]


def test_what_the_shapes_say_beside_the_conversation():
    assert (
        read({"instruction": "q", "input": "more", "output": "a"}).messages[0].content
        == "q\n\nmore"
    )
    history = {"instruction": "q", "output": "a", "history": [["1", "2"], ["3", "4"]]}
    assert [m.content for m in read(history).messages] == ["1", "2", "3", "4", "q", "a"]
    nemotron = {"input": [Q], "output": "a", "system_prompt": "detailed thinking on"}
    assert read(nemotron).messages[0] == Message("system", "detailed thinking on")
    assert read({**nemotron, "input": [SYSTEM, Q]}).messages[0] == Message("system", "s")
    math = read({"problem": "q", "generated_solution": "a", "expected_answer": 3})
    assert math.reference == "3"
    pair = read({"chosen": [Q, A], "rejected": [Q, {**A, "content": "b"}]})
    assert pair.rejected == [Message("assistant", "b")]
    longer = {"chosen": [Q, A, Q, A], "rejected": [Q, A, Q, {**A, "content": "b"}]}
    assert len(read(longer).messages) == 4 and len(read(longer).rejected) == 1
    question = read({"question": "q", "final_answer": "3", "r1_solution_1": ""})
    assert question.messages == [ASK] and question.reference == "3"
    assert read({"messages": [Q], "answer": "3"}).reference == "3"


@pytest.mark.parametrize(
    "arguments",
    [
        {"instruction_id_list": ["a:b", "c:d"], "kwargs": [{"n": 2, "m": None}, None]},
        json.dumps({"instruction_id_list": ["a:b", "c:d"], "kwargs": [{"n": 2}, {}]}),
    ],
)
def test_constraints_one_by_one(arguments):
    row = {"input": "q", "args": arguments, "system_prompt": "s"}
    sample = read(row)
    assert sample.constraints == [{"id": "a:b", "n": 2}, {"id": "c:d"}]
    assert sample.messages == [Message("system", "s"), ASK]


def test_constraints_with_shared_arguments():
    arguments = {"instruction_id_list": ["a:b"], "num_words": 3, "other": None}
    assert read({"input": [Q], "args": arguments}).constraints == [{"id": "a:b", "num_words": 3}]
    with pytest.raises(DataError, match="a table of constraints"):
        read({"input": [Q], "args": "no"})


def test_tool_calls():
    row = {
        "messages": [Q, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "content": "1", "tool_call_id": "x", "name": "f"}, A],
        "tools": json.dumps([{"name": "f"}]),
    }  # fmt: skip
    sample = read(row)
    assert sample.messages[1] == Message("assistant", "", [CALL])
    assert sample.messages[2] == Message("tool", "1", None, "x", "f")
    assert sample.tools == [{"name": "f"}]
    sharegpt = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "a"},
    ]
    turns = read({"conversations": sharegpt}).messages
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert turns[1].tool_calls == [CALL]


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"prompt": "frage", "answer": "antwort"}, {"frage": "q", "antwort": "a"}),
        ({"messages": "dialog"}, {"dialog": [Q, A], "messages": "other"}),
        ({"chosen": "good", "rejected": "bad"}, {"prompt": "q", "good": "a", "bad": "b"}),
        ({"answer": "reply"}, {"prompt": "q", "reply": "a", "completion": "other"}),
    ],
)
def test_columns_can_be_named(columns, row):
    assert read(row, columns=columns).messages == [ASK, SAY]
    with pytest.raises(DataError, match="no column"):
        read({"x": 1}, columns=columns)


def test_provenance():
    row = {"messages": [Q, A], "license": "MIT", "language": "tha_Thai", "topic": "rice", "id": 3}
    sample = read(row, language="id")
    assert (sample.id, sample.language, sample.licence) == ("3", "th", "MIT")
    assert sample.source == "rows" and sample.meta == {"topic": "rice"}
    plain = read({"messages": [Q, A], "langdetect": "zh-cn", "source": "x"}, licence="CC0")
    assert (plain.id, plain.language, plain.source) == ("rows:7", "zh", "x")
    assert plain.licence == "CC0"
    mapped = read(
        {"prompt": "q", "completion": "a", "sprache": "Thai"}, columns={"language": "sprache"}
    )
    assert mapped.language == "th"
    assert read({"messages": [Q, A]}, language="my").language == "my"


def test_names_of_languages():
    names = ["th", "TH", "th-TH", "tha", "tha_Thai", "Thai", " thai "]
    assert {language_code(name) for name in names} == {"th"}
    assert [language_code(n) for n in ("fil", "zsm", "cmn_Hans", "de")] == ["tl", "ms", "zh", "de"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "the row is str"),
        ({}, "no known shape of row .found: `nothing`"),
        ({"text": "x"}, "no known shape of row .found: `text`"),
        ({"messages": None}, "no list of turns in `messages` .found: nothing"),
        ({"messages": "[1"}, "no list of turns in `messages` .found: str"),
        ({"messages": ["hello"]}, "a turn is str"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "the role `boss`"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "the role"),
        ({"messages": [{"role": "user", "content": 3}]}, "the user has no text .found: int"),
        ({"messages": [Q, A], "language": 3}, "`language` is `3`, a text is needed"),
        ({"messages": [Q, A], "tools": "no"}, "`tools` of a row are no list"),
        ({"prompt": "q", "completion": 3}, "no text in `completion` .found: int"),
        ({"prompt": 3, "completion": "a"}, "no list of turns in `prompt`"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "`history` is not"),
        ({"conversations": [{"from": "function_call", "value": "no"}]}, "not JSON with a `name`"),
    ],
)
def test_rows_that_do_not_fit_say_why(row, message):
    with pytest.raises(DataError, match=message):
        read(row)


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ({"messages": [Q, A], "images": [b"1"]}, ["image", "text"]),
        ({"messages": [{**Q, "content": "<image>\nq<image>"}, A], "images": [b"1", b"2"]},
         ["text", "image", "text", "image", "text"]),
        ({"messages": [{**Q, "content": [{"type": "text", "text": "q"}, {"type": "image"}]}, A],
          "image": {"bytes": b"1", "path": None}}, ["text", "image"]),
        ({"messages": [{**Q, "content": [{"type": "image", "image": "a.png"}]}, A]}, ["image"]),
    ],
)  # fmt: skip
def test_images_find_their_places(row, kinds, tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    messages = read(row, folder=tmp_path).messages
    assert [part["type"] for part in messages[0].content] == kinds
    assert pictures_of(messages) == ((b"1", b"2") if kinds.count("image") == 2 else (b"1",))


def test_images_that_do_not_fit(tmp_path):
    code = base64.b64encode(b"1").decode()
    uri = {"messages": [Q, A], "images": [f"data:image/png;base64,{code}"]}
    assert pictures_of(read(uri).messages) == (b"1",)
    two = [{"type": "image"}, {"type": "image"}]
    for row, message in (
        ({"messages": [{**Q, "content": two}, A], "images": [b"1"]}, "fewer images"),
        ({"messages": [{**Q, "content": two[:1]}, A], "images": [b"1", b"2"]}, "more images"),
        ({"messages": [Q, A], "images": ["https://a/b.png"]}, "addresses are not fetched"),
        ({"messages": [Q, A], "images": ["../b.png"]}, "outside the folder of the rows"),
    ):
        with pytest.raises(DataError, match=message):
            read(row, folder=tmp_path)
    missing = read({"messages": [Q, A], "images": ["no.png"]}, folder=tmp_path)
    with pytest.raises(DataError, match=r"the picture `no\.png` cannot be read"):
        pictures_of(missing.messages)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder with real rows is not here")
def test_real_rows_are_all_read():
    for file in sorted(SHARED.glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines()[:50]:
            row = json.loads(line)
            sample = read(row)
            turns = row.get("messages") or [*row["prompt"], *row["chosen"]]
            assert [m.role for m in sample.messages] == [t["role"] for t in turns]
            assert [m.content for m in sample.messages] == [t["content"] for t in turns]
            assert sample.language == row["language"] and sample.licence == row["license"]
