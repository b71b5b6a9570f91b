"""Rewards: parts, gates, what is not scored, and functions that misbehave."""

from __future__ import annotations

import json
import time

import pytest
from pydantic import ValidationError

from singalaut.contracts import Message, Sample
from singalaut.errors import DataError, RecipeError
from singalaut.rewards.compose import ComposedReward
from singalaut.rewards.config import RewardConfig
from singalaut.rewards.function import RewardFunction, source_hash
from singalaut.rewards.samples import (
    Source,
    gather,
    make_samples,
    place_of,
    read_samples,
    sample_of,
)

ASKED = "Berapa 6 kali 7?"


def sample(**more) -> Sample:
    given = {"language": "id", "reference": "42"} | more
    return Sample([Message("user", ASKED)], "one", **given)


def score(response, parts, of=None):
    with ComposedReward(RewardConfig.model_validate({"parts": parts}), workers=1) as reward:
        return reward.score_text(response, ASKED, of or sample())


def test_a_weighted_mean_with_reasons():
    parts = [{"kind": "maths", "weight": 3}, {"kind": "form", "form": "box"}]
    assert score("Jawaban: 42", parts).value == 0.75
    assert score("Hasilnya \\boxed{42}", parts).value == 1
    assert score("Hasilnya \\boxed{41}", parts).value == 0.25
    found = score("Jawaban: 41", parts)
    assert found.value == 0 and "maths: " in found.reasons[0]
    assert found.parts == {"maths": 0.0, "form": 0.0}


def test_a_gate_has_to_be_passed():
    parts = [{"kind": "maths"}, {"kind": "language", "gate": True}]
    right = "Enam kali tujuh sama dengan empat puluh dua, jadi begitulah. Jawaban: 42"
    assert score(right, parts).value == 1
    wrong = "The product of six and seven is of course forty-two, as you know. Jawaban: 42"
    assert score(wrong, parts).value == 0


def test_what_cannot_be_scored_is_not_zero():
    nothing = sample(reference=None)
    assert score("Jawaban: 42", [{"kind": "maths"}], nothing).value is None
    mixed = score("Jawaban: 42", [{"kind": "maths"}, {"kind": "form"}], nothing)
    assert mixed.value == 1 and mixed.parts == {"form": 1.0}


def test_constraints_length_and_repetition():
    kept = [{"instruction_id": "punctuation:no_comma", "parameters": {}}]
    kept += [{"instruction_id": "keywords:existence", "parameters": {"keywords": ["pasar"]}}]
    of = sample(constraints=kept)
    assert score("Saya pergi ke pasar.", [{"kind": "constraints"}], of).value == 1
    assert score("Saya, dia, mereka.", [{"kind": "constraints"}], of).value == 0
    half = [{"kind": "constraints"}]
    assert score("Saya pulang.", half, of).value == 0.5
    assert score("Saya pulang.", [half[0] | {"all_or_nothing": True}], of).value == 0
    length = [{"kind": "length", "words": 4}]
    assert score("satu dua tiga empat", length).value == 1
    assert score("satu dua tiga empat lima enam", length).value == 0.5
    assert score("a b c d e f g h i", length).value == 0
    repeated = score("satu dua tiga empat lima " * 20, [{"kind": "repetition"}])
    assert repeated.value is not None and repeated.value < 0.2


def test_settings_that_contradict_each_other():
    for part in ({"kind": "function"}, {"kind": "maths", "function": "a:b"}, {"kind": "poetry"}):
        with pytest.raises(ValidationError):
            RewardConfig.model_validate({"parts": [part]})
    with pytest.raises(ValidationError):
        RewardConfig.model_validate({"parts": []})


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        """
import os, time
def words(response, prompt, sample):
    print("this is not an answer")
    return len(response.split()), sample["language"]
def raises(response, prompt, sample): raise KeyError("no")
def hangs(response, prompt, sample): time.sleep(60)
def forks(response, prompt, sample):
    if os.fork() == 0: time.sleep(60)
    return 1
def twins(response, prompt, sample):
    os.fork()
    return len(response)
def leaves(response, prompt, sample):
    if os.fork() == 0: raise SystemExit
    return len(response)
def dies(response, prompt, sample): os._exit(3)
def nan(response, prompt, sample): return float("nan")
def text(response, prompt, sample): return "0.5"
def nothing(response, prompt, sample): return None
number = 3
"""
    )
    monkeypatch.chdir(tmp_path)


def test_functions_of_users_cannot_do_harm(functions):
    good = RewardFunction("mine:words", 5.0)
    assert good.call("satu dua", ASKED, sample()) == (2.0, "id")
    good.close()
    for name, said in (
        ("raises", "KeyError"),
        ("dies", "ended"),
        ("nan", "no finite number"),
        ("text", "gave '0.5', which is no finite number"),
        ("nothing", "gave None, which is no finite number"),
        ("hangs", "no answer within"),
    ):
        function = RewardFunction(f"mine:{name}", 0.5)
        begin = time.monotonic()
        for _ in range(2):  # it goes on after a failure
            value, reason = function.call("x", ASKED, sample())
            assert value is None and said in reason, (name, reason)
        assert time.monotonic() - begin < 20
        function.close()
    forks = RewardFunction("mine:forks", 5.0)
    assert forks.call("x", ASKED, sample())[0] == 1
    forks.close()
    for name in ("twins", "leaves"):  # two processes must not both read and answer
        function = RewardFunction(f"mine:{name}", 5.0)
        found = [function.call("x" * n, ASKED, sample())[0] for n in range(30)]
        assert found == list(range(30))
        function.close()
    for place, said in (("mine:absent", "no attribute"), ("mine:number", "is int, no function")):
        with pytest.raises(RecipeError, match=said):
            RewardFunction(place, 1.0).call("x", ASKED, sample())


def test_a_function_is_known_by_its_file(functions, tmp_path):
    part = {"kind": "function", "function": "mine:words"}
    config = RewardConfig.model_validate({"parts": [part]})
    before = source_hash("mine:words")
    assert before == source_hash("mine:hangs") == ComposedReward(config).sources()[0]
    package = tmp_path / "inner"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("def f(response, prompt, sample): return 1")
    assert len({before, source_hash("inner.deep:f"), source_hash("nowhere.at.all:f")}) == 3
    (tmp_path / "mine.py").write_text("def words(response, prompt, sample): return 2")
    assert source_hash("mine:words") != before


def test_rows_in_the_shapes_of_known_sets():
    nemotron = {
        "input": [{"role": "user", "content": "Write."}],
        "args": {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    }
    flat = {
        "input": "Write.",
        "args": {"instruction_id_list": ["keywords:existence"], "keywords": ["sea"]},
    }
    deep = {"question": "1 + 1?", "final_answer": "2", "difficulty": 1.0}
    ours = {"messages": [{"role": "user", "content": "?"}], "answer": "3", "language": "th"}
    found = [sample_of(row, "x", "s", None) for row in (nemotron, flat, deep, ours)]
    assert found[0].constraints[0]["instruction_id"] == "punctuation:no_comma"
    assert found[1].constraints[0]["parameters"] == {"keywords": ["sea"]}
    assert found[2].reference == "2" and found[3].language == "th"
    with pytest.raises(DataError, match="neither a reference"):
        sample_of({"prompt": "Hello"}, "x", "s", None)
    with pytest.raises(DataError, match="no prompt"):
        sample_of({"answer": "3"}, "x", "s", None)


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    rows = [
        {"prompt": "2 + 2?", "answer": "4"},
        {"answer": "4"},
        {
            "prompt": "Both?",
            "constraints": [
                {"instruction_id": "change_case:english_capital", "parameters": {}},
                {"instruction_id": "change_case:english_lowercase", "parameters": {}},
            ],
        },
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n{broken\n")
    found = read_samples(file)
    assert len(found.samples) == 1 and sum(found.left_out.values()) == 3
    assert any("cannot be followed" in reason for reason in found.left_out)
    assert ["rows.jsonl, row 4"] in found.examples.values()
    file.write_text("{broken\n")
    with pytest.raises(DataError, match="no row can be checked"):
        read_samples(file)
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "x" * 50, "answer": "1"}))
    with pytest.raises(DataError, match="no prompt is left"):
        gather([Source(tmp_path / "long.jsonl")], 0, lambda messages: [0] * 50, 10)


def test_made_prompts_and_their_order():
    made = make_samples(["th", "id"], 6, seed=3)
    assert [s.language for s in made] == ["th", "id"] * 3 and all(s.constraints for s in made)
    assert made == make_samples(["th", "id"], 6, seed=3)
    first = [place_of(place, 5, 1) for place in range(10)]
    assert sorted(first[:5]) == sorted(first[5:]) == list(range(5)) and first[:5] != first[5:]
