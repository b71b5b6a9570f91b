"""The store of answers: what it keeps, across processes and kills, and what it refuses."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.contracts import Message, SamplingParams
from singalaut.errors import ArtifactError
from singalaut.evals.store import Generation, Keys, Store, prompt_digest, score_key

MESSAGES = [Message("user", "Apa kabar?")]


def test_answers_come_back_as_they_were(tmp_path):
    store = Store(tmp_path / "new" / "store.sqlite")
    odd = Generation("NUL \x00, 😀, \u202eשלום, " + "x" * 1_000_000, "length", 3, 9, -1.5)
    plain = Generation("", "stop")
    store.keep([(b"a", odd), (b"b", plain)])
    store.keep([])
    assert store.find([b"a", b"b", b"c"]) == {b"a": odd, b"b": plain}
    store.keep([(b"b", odd)])
    store.close()
    again = Store(tmp_path / "new" / "store.sqlite")
    assert again.find([b"b"]) == {b"b": odd}
    assert again.find([]) == {}


@pytest.mark.parametrize("count", [1, 399, 400, 401, 25_000])
def test_any_number_of_answers_is_written_and_found(tmp_path, count):
    store = Store(tmp_path / "store.sqlite")
    rows = [
        (number.to_bytes(20, "big"), Generation(str(number), "stop")) for number in range(count)
    ]
    assert store.find([key for key, _ in rows]) == {}
    store.keep(rows[: count // 2])
    store.keep(rows[count // 2 :])
    assert store.find([key for key, _ in rows]) == dict(rows)


def test_scores_are_kept_beside_answers(tmp_path):
    store = Store(tmp_path / "store.sqlite")
    store.keep_scores({b"x": 1.25})
    assert store.find_scores([b"x", b"y"]) == {b"x": 1.25}


def test_two_processes_may_write(tmp_path):
    first, second = Store(tmp_path / "s.sqlite"), Store(tmp_path / "s.sqlite")
    first.keep([(b"1", Generation("one", "stop"))])
    second.keep([(b"2", Generation("two", "stop"))])
    assert len(first.find([b"1", b"2"])) == 2


def test_other_files_and_formats_are_refused(tmp_path):
    file = tmp_path / "store.sqlite"
    file.write_bytes(b"not a database at all, but long enough to look like one" * 20)
    with pytest.raises(ArtifactError, match="damaged") as caught:
        Store(file)
    assert "move the file away" in caught.value.hint
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("PRAGMA user_version = 7")
    other.commit()
    with pytest.raises(ArtifactError, match="format 7"):
        Store(tmp_path / "other.sqlite")


def test_keys_tell_apart_all_that_makes_an_answer():
    base = SamplingParams(max_tokens=8, temperature=0.5)
    digest = prompt_digest(MESSAGES)
    key = Keys("model", base).key(digest, 1)
    assert key == Keys("model", SamplingParams(max_tokens=8, temperature=0.5, seed=9)).key(
        digest, 1
    )
    others = [
        Keys("model", base).key(digest, 2),
        Keys("model", base).key(digest, None),
        Keys("other", base).key(digest, 1),
        Keys("model", SamplingParams(max_tokens=9, temperature=0.5)).key(digest, 1),
        Keys("model", SamplingParams(max_tokens=8, temperature=0.5, stop=("x",))).key(digest, 1),
        Keys("model", base).key(prompt_digest([Message("user", "Apa kabar")]), 1),
    ]
    assert len({key, *others}) == 7


PARTS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant"]), st.text()), min_size=1, max_size=3
)


@given(PARTS, PARTS)
def test_digests_differ_where_conversations_do(one, other):
    first, second = ([Message(role, text) for role, text in side] for side in (one, other))
    assert (prompt_digest(first) == prompt_digest(second)) == (one == other)


def test_digests_of_token_ids_and_scores():
    assert prompt_digest([1, 23]) != prompt_digest([12, 3])
    assert score_key("m", "a", "bc") != score_key("m", "ab", "c")
    assert score_key("m", "\ud800") != score_key("m", "")
