"""From files to a store: nothing is dropped in silence, and no stop or split changes the result."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from row_files import conversation, write_rows

from singalaut.artifact import hash_file
from singalaut.data import prepare as stage
from singalaut.data import seal, sources, workers
from singalaut.data.cache import cached_store, open_store, stored_in
from singalaut.data.config import DataSource
from singalaut.data.store import Store
from singalaut.data.tokenise import Sight
from singalaut.errors import DataError, MachineError
from singalaut.text.chat import ChatFormat
from singalaut.text.conversations import is_learned, token_ids
from singalaut.text.tokenizer import Tokenizer

Found = namedtuple("Found", "language confidence")
CLEAN = {"duplicates": True, "near_duplicates": 0.7}


def identify(text):
    """Says `th` of Thai letters and `en` of others."""
    return Found("th" if any("\u0e00" <= c <= "\u0e7f" for c in text) else "en", 0.9)


def good_rows(count, start=0):
    return [
        conversation(f"question {i} " * (i % 9 + 1), f"answer {i} the end")
        for i in range(start, count)
    ]


def files_of(folder: Path) -> dict[str, str]:
    """Hash of every file of a store and report, by name."""
    return {
        str(file.relative_to(folder)): hash_file(file)
        for part in ("data", "report")
        for file in sorted((folder / part).rglob("*"))
    }


def reasons(work) -> dict[str, int]:
    report = json.loads((work.path / "report" / "report.json").read_bytes())
    counts: dict[str, int] = {}
    for source in report["sources"]:
        for reason in source["reasons"]:
            counts[reason["what"]] = counts.get(reason["what"], 0) + reason["rows"]
    assert report["rows"] == report["kept"] + sum(counts.values())
    return counts


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


BAD_ROWS = {
    "there is no assistant turn": {"messages": [turn("user", "q")]},
    "an assistant turn has no text": conversation("q", ""),
    "a user turn has no text": conversation(" ", "a"),
    "the conversation starts with the assistant": {"messages": [turn("assistant", "a")]},
    "a message has the role `boss`": {"messages": [turn("boss", "a")]},
    "a text is not valid Unicode": conversation("q", "half a pair: \ud800"),
    "not valid JSON: `Expecting property name enclosed in double quotes` at character `2`": "{no",
    "the columns fit no known shape of row (found: `text`)": {"text": "a"},
    "tool calls are not part of this chat format": {
        "messages": [turn("user", "q"), turn("assistant", "", tool_calls=[{}])]
    },
    "longer than 500 tokens": conversation("x" * 5_000_000, "a"),
}


def test_every_bad_row_is_counted_and_shown(tmp_path, prepare):
    rows = [*good_rows(30), *BAD_ROWS.values(), *good_rows(60, 30)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    work = prepare([file], max_tokens=500, max_bad_share=0.2)
    assert reasons(work) == dict.fromkeys(BAD_ROWS, 1)
    report = json.loads((work.path / "report" / "report.json").read_bytes())
    (source,) = report["sources"]
    rows_shown = {r["what"]: r["examples"][0]["row"] for r in source["reasons"]}
    assert rows_shown == {what: 31 + i for i, what in enumerate(BAD_ROWS)}
    store = Store.open(work.path / "data")
    assert len(store) == 60
    dropped = np.load(store.folder / "dropped.npy")
    named = [store.about["reasons"][number] for number in dropped["reason"]]
    assert dict(zip(named, dropped["row"].tolist(), strict=True)) == rows_shown
    assert store.documents["row"].tolist() == [*range(1, 31), *range(41, 71)]
    page = (work.path / "report" / "report.html").read_text()
    assert "<script" not in page and "http" not in page and "a message has the role" in page


def test_a_file_that_is_none_is_lost_and_told(tmp_path, prepare):
    pytest.importorskip("pyarrow")
    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows(folder / "a.jsonl", good_rows(200))
    (folder / "b.parquet").write_bytes(b"PAR1 no")
    (folder / "c.arrow").write_bytes(b"no arrow")
    work = prepare([folder])
    report = json.loads((work.path / "report" / "report.json").read_bytes())
    (source,) = report["sources"]
    assert source["kept"] == 200
    assert [lost["file"] for lost in source["lost"]] == ["b.parquet", "c.arrow"]
    with pytest.raises(DataError, match=r"100.0% of .*not a Parquet file"):
        prepare([folder / "b.parquet"], name="alone")


def test_turns_out_of_order_are_joined_and_counted(tmp_path, prepare):
    twice = {"messages": [turn("user", "a"), turn("user", "b"), turn("assistant", "c")]}
    once = conversation("a\n\nb", "c")
    file = write_rows(tmp_path / "rows.jsonl", [*good_rows(3), twice, once])
    work = prepare([file], clean={"duplicates": False})
    report = json.loads((work.path / "report" / "report.json").read_bytes())
    assert (report["joined"], report["sources"][0]["joined"], report["kept"]) == (1, 1, 5)
    store = Store.open(work.path / "data")
    assert store.words(3).tolist() == store.words(4).tolist()


def test_too_many_bad_rows_stop_the_stage(tmp_path, prepare):
    bad = BAD_ROWS["there is no assistant turn"]
    file = write_rows(tmp_path / "rows.jsonl", [*good_rows(98), bad, bad])
    with pytest.raises(DataError) as caught:
        prepare([file])
    message = str(caught.value)
    assert "2.0% of `rows` cannot be used: there is no assistant turn (2)" in message
    assert "rows.jsonl, row 99" in message and "max_bad_share" in message and "`columns`" in message
    assert reasons(prepare([file], max_bad_share=0.02)) == {"there is no assistant turn": 2}
    with pytest.raises(DataError, match="no row is left: longer than 5 tokens"):
        prepare([file], name="other", max_tokens=5, max_bad_share=0.02)


def test_faults_that_name_values_do_not_flood_the_report(tmp_path, prepare):
    odd = [{"messages": [{"role": f"boss {i}", "content": "a"}]} for i in range(200)]
    file = write_rows(tmp_path / "rows.jsonl", [*good_rows(20), *odd])
    counts = reasons(prepare([file], max_bad_share=1))
    assert counts == {"a message has the role …": 200}


def test_a_wrong_schema_deep_in_a_file(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 2000)
    monkeypatch.setattr(stage, "cut", lambda n, file: sources.cut(n, file, 2000))
    rows = [*good_rows(900), {"messages": 3}, *good_rows(1000, 901)]
    work = prepare([write_rows(tmp_path / "rows.jsonl", rows)])
    report = json.loads((work.path / "report" / "report.json").read_bytes())
    (reason,) = report["sources"][0]["reasons"]
    assert "`messages`" in reason["what"] and reason["examples"][0]["row"] == 901
    assert len(list((work.path / "data").glob("tokens-*.bin"))) > 20


def test_the_cut_into_pieces_and_the_workers_change_nothing(tmp_path, prepare, monkeypatch):
    """The same documents in the same order from one piece, many pieces, and two processes."""
    rows = [*good_rows(300), *good_rows(50), BAD_ROWS["a message has the role `boss`"]]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    settings = {"clean": CLEAN, "max_bad_share": 0.1}
    whole = prepare([file], name="whole", **settings)
    monkeypatch.setattr(stage, "cut", lambda n, file: sources.cut(n, file, 3000))
    cut = prepare([file], name="cut", **settings)
    monkeypatch.setattr(workers, "ONE_PROCESS_BYTES", 0)
    parallel = prepare([file], name="parallel", workers=2, **settings)
    assert files_of(cut.path) == files_of(parallel.path)
    assert reasons(cut) == reasons(whole)
    stores = [Store.open(work.path / "data") for work in (whole, cut)]
    assert stores[0].about["token_bytes"] != stores[1].about["token_bytes"]
    for name in ("tokens", "learned", "source", "language", "row"):
        assert np.array_equal(stores[0].documents[name], stores[1].documents[name]), name
    for document in range(0, len(stores[0]), 7):
        assert np.array_equal(stores[0].words(document), stores[1].words(document))


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("at", ["tokenise_piece", "decide", "rename", "close", "write_json"])
def test_a_killed_run_goes_on_to_the_same_files(at, tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(stage, "cut", lambda n, file: sources.cut(n, file, 3000))
    file = write_rows(tmp_path / "rows.jsonl", [*good_rows(200), *good_rows(20)])
    wanted = prepare([file], name="whole", clean=CLEAN)
    module, name = {
        "tokenise_piece": (workers, "tokenise_piece"),
        "decide": (stage, "decide"),
        "rename": (seal, "_move_tokens"),
        "close": (seal, "_save"),
        "write_json": (seal, "write_json"),
    }[at]
    real, calls = getattr(module, name), []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == (3 if at in ("tokenise_piece", "rename") else 1):
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, dies)
    with pytest.raises(Killed):
        prepare([file], name="killed", clean=CLEAN)
    assert not (tmp_path / "killed" / "data" / "store.json").exists()
    monkeypatch.setattr(module, name, real)
    before = len(calls)
    resumed = prepare([file], name="killed", clean=CLEAN)
    assert files_of(resumed.path) == files_of(wanted.path)
    assert before >= 1


def test_finished_pieces_are_not_done_again(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(stage, "cut", lambda n, file: sources.cut(n, file, 3000))
    file = write_rows(tmp_path / "rows.jsonl", good_rows(200))
    done = []
    real = workers.tokenise_piece

    def counting(job, number, *rest):
        if len(done) == 4:
            raise Killed
        done.append(number)
        return real(job, number, *rest)

    monkeypatch.setattr(workers, "tokenise_piece", counting)
    with pytest.raises(Killed):
        prepare([file])
    monkeypatch.setattr(workers, "tokenise_piece", lambda *a: done.append(a[1]) or real(*a))
    prepare([file])
    assert sorted(done) == list(range(len(done)))


def test_another_machine_can_help(tmp_path, prepare, tiny_model, monkeypatch):
    """A helper does pieces while the run waits; the result is the same, the work is not doubled."""
    monkeypatch.setattr(stage, "cut", lambda n, file: sources.cut(n, file, 3000))
    file = write_rows(tmp_path / "rows.jsonl", good_rows(200))
    wanted = prepare([file], name="whole")
    done = []
    real = workers.tokenise_piece
    config = stage.PrepareConfig.model_validate(
        {"data": [{"path": str(file)}], "workers": 1, "clean": {"duplicates": False}}
    )

    def helped(job, number, piece, folder):
        done.append(number)
        if len(done) == 2:  # here the other machine comes and does all that is not claimed
            stage.join_prepare(
                config,
                model=tiny_model,
                data=[file],
                folder=tmp_path / "helped",
                identify=None,
                sight=None,
            )
        return real(job, number, piece, folder)

    monkeypatch.setattr(workers, "tokenise_piece", helped)
    work = prepare([file], name="helped")
    assert files_of(work.path) == files_of(wanted.path)
    twice = len(done) - len(set(done))
    assert twice == 1  # the piece that was claimed when the other machine had nothing else to do


def test_a_helper_that_finds_no_run_or_another(tmp_path, tiny_model, monkeypatch):
    file = write_rows(tmp_path / "rows.jsonl", good_rows(5))
    config = stage.PrepareConfig.model_validate({"data": [{"path": str(file)}]})
    monkeypatch.setattr(stage, "WAIT_SECONDS", 0.0)
    given = {"model": tiny_model, "data": [file], "identify": None, "sight": None}
    with pytest.raises(DataError, match="no run has begun"):
        stage.join_prepare(config, folder=tmp_path, **given)
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "pieces.json").write_text("[]")
    with pytest.raises(DataError, match="not those of the run"):
        stage.join_prepare(config, folder=tmp_path, **given)


def test_a_source_that_disappears(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(stage, "cut", lambda n, file: sources.cut(n, file, 3000))
    files = [write_rows(tmp_path / f"{name}.jsonl", good_rows(150)) for name in "ab"]
    wanted = prepare(files, name="whole")
    real, away = workers.tokenise_piece, tmp_path / "away"

    def disappears(job, number, piece, folder):
        if piece.file == files[1] and files[1].exists() and number == 13:
            files[1].rename(away)
        return real(job, number, piece, folder)

    monkeypatch.setattr(workers, "tokenise_piece", disappears)
    with pytest.raises(DataError, match=r"of `b` cannot be used: no such file") as caught:
        prepare(files)
    assert "bring the file back" in str(caught.value)
    assert away.exists()
    shutil.copy2(away, files[1])
    monkeypatch.setattr(workers, "tokenise_piece", real)
    assert files_of(prepare(files).path) == files_of(wanted.path)

    files[1].unlink()
    shutil.copy2(away, files[1])
    monkeypatch.setattr(workers, "tokenise_piece", disappears)
    away.unlink()
    work = prepare(files, name="tolerant", max_bad_share=1)
    report = json.loads((work.path / "report" / "report.json").read_bytes())
    (lost,) = report["sources"][1]["lost"]
    assert lost["file"] == "b.jsonl" and lost["bytes"] > 0
    assert 0 < report["sources"][1]["kept"] < 150 == report["sources"][0]["kept"]


def test_a_full_disk_loses_nothing(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(stage, "cut", lambda n, file: sources.cut(n, file, 3000))
    file = write_rows(tmp_path / "rows.jsonl", good_rows(200))
    wanted = prepare([file], name="whole")
    from singalaut.data import pieces

    real, calls = np.save, []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) > 7:
            raise OSError(28, "No space left on device", "documents.npy")
        return real(*args, **kwargs)

    monkeypatch.setattr(pieces.np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        prepare([file])
    monkeypatch.setattr(pieces.np, "save", real)
    kept = list((tmp_path / "work" / ".work" / "pieces").glob("0*"))
    assert len(kept) == 3
    assert files_of(prepare([file]).path) == files_of(wanted.path)


def test_a_worker_that_dies_is_named(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(stage, "cut", lambda n, file: sources.cut(n, file, 3000))
    monkeypatch.setattr(workers, "ONE_PROCESS_BYTES", 0)
    monkeypatch.setattr(workers, "_start", os._exit)  # is called first in each process
    file = write_rows(tmp_path / "rows.jsonl", good_rows(100))
    with pytest.raises(MachineError, match="a worker process has died"):
        prepare([file], workers=2)


def test_filters_leave_out_what_they_should(tmp_path, prepare):
    rows = [
        *good_rows(20),
        good_rows(1)[0],
        conversation("question 3 " * 4, "answer 3 the end."),
        conversation("q", "no"),
        conversation("q", "again and again and again " * 9),
        conversation("a", "this is not the language that was declared", language="th"),
        conversation("a", "ภาษาไทยที่นี่เป็นคำตอบที่ยาวพอจะบอกได้ว่าเป็นภาษาใด", language="th"),
        conversation("b", "ภาษาไทยที่นี่เป็นคำตอบอีกแบบที่ยาวพอจะบอกได้ว่าเป็นภาษา"),
        conversation("c", "too short to tell", language="th"),
        conversation("c", "the committee postponed its decision on the harbour until spring"),
    ]
    pack = tmp_path / "pack"
    pack.mkdir()
    question = "The committee postponed its decision on the harbour until spring."
    write_rows(pack / "a.jsonl", [{"question": question}])
    clean = {
        "duplicates": True, "near_duplicates": 0.8, "language": 0.8, "min_answer_tokens": 4,
        "max_repetition": 0.4, "evaluations": ["pack"],
    }  # fmt: skip
    file = write_rows(tmp_path / "rows.jsonl", rows)
    work = prepare([file], clean=clean, packs=[pack], identify=identify)
    assert reasons(work) == {
        seal.DUPLICATE: 1,
        seal.NEAR_DUPLICATE: 1,
        "fewer than 4 tokens to learn": 1,
        "the answer repeats itself": 1,
        "the answer is in another language": 1,
        "it holds the text of an evaluation": 1,
    }
    store = Store.open(work.path / "data")
    named = [store.languages[number] for number in store.documents["language"]]
    assert named[-3:] == ["th"] * 3  # the middle one declares none
    assert set(named) == {"en", "th", "unknown"}  # found in the others, where they are long enough
    with pytest.raises(DataError, match="tell languages apart"):
        prepare([file], name="other", clean={"language": 0.5})


def test_long_conversations_can_be_cut(tmp_path, prepare):
    rows = [conversation("q", "x" * 100), conversation("q" * 100, "a")]
    work = prepare([write_rows(tmp_path / "rows.jsonl", rows)], max_tokens=40, too_long="cut")
    store = Store.open(work.path / "data")
    assert len(store) == 1 and store.documents["tokens"][0] == 40
    assert reasons(work) == {"fewer than 1 tokens to learn": 1}
    report = json.loads((work.path / "report" / "report.json").read_bytes())
    assert report["cut"] == 2


def test_pictures_are_kept_with_their_conversations(tmp_path, prepare, seeing_model):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(f"picture {name}".encode())
    image = {"type": "image", "path": "a.png"}
    rows = [
        {"messages": conversation("what?", "this")["messages"], "images": ["a.png", "b.png"]},
        conversation("no picture", "none"),
        {"messages": conversation("what?", "that")["messages"], "images": ["bad.png"]},
        conversation([image, {"type": "text", "text": "and this?"}], "the same"),
    ]  # fmt: skip
    (tmp_path / "bad.png").write_bytes(b"bad")

    def check(picture):
        if picture == b"bad":
            raise DataError("the image cannot be decoded")

    file = write_rows(tmp_path / "rows.jsonl", [*rows, rows[0]])
    settings = {"model": seeing_model, "clean": {"duplicates": True}, "max_bad_share": 0.5}
    work = prepare([file], sight=Sight(4, check), **settings)
    store = Store.open(work.path / "data")
    assert [store.pictures(i) for i in range(3)] == [
        [b"picture a", b"picture b"],
        [],
        [b"picture a"],
    ]
    assert reasons(work) == {"the image cannot be decoded": 1, seal.DUPLICATE: 1}
    tokenizer = Tokenizer.load(seeing_model)
    image_id = tokenizer.image_ids[2]
    assert [int((token_ids(store.words(i)) == image_id).sum()) for i in range(3)] == [8, 0, 4]
    blind = prepare([file], name="blind", max_bad_share=1, model=seeing_model)
    assert len(Store.open(blind.path / "data")) == 1


def test_a_store_knows_its_model_and_its_files(tmp_path, prepare, tiny_model, seeing_model):
    work = prepare([write_rows(tmp_path / "rows.jsonl", good_rows(5))])
    folder = work.path / "data"
    assert len(open_store(folder, tiny_model)) == 5
    with pytest.raises(DataError, match="another tokenizer or chat template"):
        open_store(folder, seeing_model)
    assert stored_in([work.path]) == folder and stored_in([tmp_path / "rows.jsonl"]) is None
    with pytest.raises(DataError, match="cannot be mixed"):
        stored_in([work.path, tmp_path])
    (folder / "tokens-000000.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="missing or cut short"):
        Store.open(folder)
    about = json.loads((folder / "store.json").read_bytes())
    (folder / "store.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(DataError, match="has format 99"):
        Store.open(folder)
    with pytest.raises(DataError, match="no token store"):
        Store.open(tmp_path)


def test_a_stage_finds_the_store_it_made_before(tmp_path, tiny_model, monkeypatch):
    file = write_rows(tmp_path / "rows.jsonl", good_rows(5))
    made = []
    from singalaut.data import cache

    real = cache.make_store
    monkeypatch.setattr(cache, "make_store", lambda *a, **k: made.append(1) or real(*a, **k))
    first = cached_store((DataSource(path="rows"),), [file], tiny_model, 100)
    again = cached_store((DataSource(path="rows", weight=2.0),), [file], tiny_model, 100)
    assert first.folder == again.folder and len(made) == 1
    cached_store((DataSource(path="rows"),), [file], tiny_model, 90)
    cached_store((DataSource(path="rows", language="th"),), [file], tiny_model, 100)
    write_rows(file, good_rows(6))
    cached_store((DataSource(path="rows"),), [file], tiny_model, 100)
    assert len(made) == 4


def test_where_rows_come_from_is_counted_after_cleaning(tmp_path, prepare):
    rows = [
        *[{**row, "source": "x", "license": "MIT", "language": "th"} for row in good_rows(3)],
        *[{**row, "source": "y", "language": "lo"} for row in good_rows(3)],
    ]
    work = prepare([write_rows(tmp_path / "rows.jsonl", rows)], clean={"duplicates": True})
    assert work.facts["data"] == [{"source": "x", "language": "th", "licence": "MIT", "rows": 3}]
    assert work.facts["rows"]["kept"] == 3
    many = [{**row, "source": f"https://a/{i}"} for i, row in enumerate(good_rows(300))]
    work = prepare([write_rows(tmp_path / "many.jsonl", many)], name="many")
    assert work.facts["data"] == [
        {"source": "many", "language": "unknown", "licence": "not stated", "rows": 300}
    ]


def test_documents_equal_the_reference_one_by_one(tmp_path, prepare, tiny_model):
    from singalaut.contracts import Message

    file = write_rows(tmp_path / "rows.jsonl", rows := good_rows(25))
    store = Store.open(prepare([file]).path / "data")
    chat = ChatFormat.load(tiny_model, Tokenizer.load(tiny_model))
    for document, row in enumerate(rows):
        messages = [Message(turn["role"], turn["content"]) for turn in row["messages"]]
        ids, mask = chat.encode_with_mask(messages)
        words = store.words(document)
        assert token_ids(words).tolist() == ids and is_learned(words).tolist() == mask
