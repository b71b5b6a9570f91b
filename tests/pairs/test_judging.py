"""A judge of pairs: verdicts in both orders, bad answers, kills, and what is written."""

from __future__ import annotations

from collections import Counter

import pytest
from test_run_pairs import ANSWER, Script, make, report, rows, sample

from singalaut.errors import DataError, RequestError
from singalaut.pairs.calls import Answer
from singalaut.pairs.config import PairsConfig
from singalaut.pairs.judging import ORDERS, judge_prompt, read_verdict, refusal, summary
from singalaut.text.languages import LANGUAGES

JUDGE = {"judge": {"model": "j"}}


def better(content):
    """Prefers the answer without a comma, as the fixed one is."""
    first = content.split("\n\nA:\n")[1].split("\n\nB:\n")[0]
    return "[[B]]" if "," in first else "[[A]]"


def make_judged(tmp_path, judge, prompts=None, **settings):
    script = judge if isinstance(judge, Script) else Script(judge)
    prompts = prompts or [sample(1), sample(2)]
    given = JUDGE | settings
    return make(tmp_path, Script(ANSWER.format), prompts, judged_by=script, **given)


def test_a_pair_stands_where_the_chosen_answer_is_preferred_twice(tmp_path):
    folder = make_judged(tmp_path, better)
    assert [row["judge"] for row in rows(folder)] == 2 * [dict.fromkeys(ORDERS, "chosen")]
    _, found = report(folder)
    assert found["judge"] == "judge" and found["judgements"]["chosen"] == 2
    assert found["judgements"]["same_in_both_orders"] == 1.0


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        (lambda text: "[[A]]", "the judge's verdict changes with the order of the answers"),
        (lambda text: "[[C]]", "the judge finds no answer better"),
        (lambda text: {"[[A]]": "[[B]]", "[[B]]": "[[A]]"}[better(text)], "prefers the rejected"),
        (lambda text: "Both are nice.", "the judge's answer cannot be read"),
    ],
)
def test_other_verdicts_refuse_the_pair(tmp_path, judge, reason):
    first_only = lambda text: better(text) if "number 1 " in text else judge(text)  # noqa: E731
    folder = make_judged(tmp_path, first_only)
    assert [row["id"] for row in rows(folder)] == ["p1"]
    refused, _ = report(folder)
    assert len(refused) == 1 and reason in next(iter(refused))
    (row,) = rows(folder, "report/refused.jsonl")
    assert set(row["judge"]) == set(ORDERS) and row["chosen"] and row["rejected"]
    with pytest.raises(DataError, match="no prompt became a pair"):
        make_judged(tmp_path, judge, [sample(3)])  # what was asked before is not asked again


def test_bad_answers_of_the_judge_are_counted_by_kind(tmp_path):
    said = {
        1: ("[[A]] or [[B]]", "stop"),
        2: (" ", "stop"),
        3: ("Answer A has", "length"),
        4: ("Hm.", "stop"),
    }

    def judge(text):
        number = next((n for n in said if f"number {n} " in text), 0)
        return said.get(number, better(text))

    folder = make_judged(tmp_path, judge, [sample(n) for n in range(5)])
    _, found = report(folder)
    kinds = ("contradictory", "empty", "cut short", "without a verdict")
    assert found["judgements"]["bad_answers"] == dict.fromkeys(kinds, 2)
    assert found["pairs"] == 1 and found["judgements"]["judged"] == 5


def test_calls_that_fail_stop_the_stage_unless_allowed(tmp_path):
    def judge(text):
        return ("", "error") if "number 2 " in text else better(text)

    with pytest.raises(RequestError, match="2 of 4 calls failed"):
        make_judged(tmp_path, judge)
    folder = make_judged(tmp_path, judge, allowed_failures=0.5)
    assert report(folder)[1]["judgements"]["bad_answers"] == {"failed": 2}
    assert [row["id"] for row in rows(folder)] == ["p1"]


@pytest.mark.parametrize("dies_after", [0, 1, 5])
def test_a_killed_judge_is_asked_nothing_twice(dies_after, tmp_path):
    prompts = [sample(number) for number in range(6)]
    first, second = Script(better, dies_after), Script(better)
    with pytest.raises(KeyboardInterrupt):
        make_judged(tmp_path, first, prompts)
    folder = make_judged(tmp_path, second, prompts)
    asked = first.asked + second.asked
    assert set(asked.values()) == {1} and len(asked) == 12 and len(rows(folder)) == 6


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_its_question(language):
    (message,) = judge_prompt([sample(1).messages[0]], "good", "bad", language, ORDERS[1])
    text = message.content
    assert text.index("A:\nbad") < text.index("B:\ngood")
    assert all(label in text for label in ("[[A]]", "[[B]]", "[[C]]"))
    english = judge_prompt([sample(1).messages[0]], "good", "bad", "en", ORDERS[1])[0].content
    assert (text == english) == (language == "en")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("[[A]]", "chosen"), ("I think [[B]].", "rejected"), ("A", "chosen"), ("(B)", "rejected")],
)
def test_verdicts_are_read_in_both_orders(text, verdict):
    other = {"chosen": "rejected", "rejected": "chosen"}[verdict]
    assert read_verdict(Answer(text, "stop"), ORDERS[0]) == (verdict, "")
    assert read_verdict(Answer(text, "stop"), ORDERS[1]) == (other, "")
    assert read_verdict(Answer("A or B", "stop"), ORDERS[0])[0] is None


def test_shares_of_a_judge():
    verdicts = [("chosen", "chosen"), ("chosen", "rejected"), ("equal", "equal"), (None, "chosen")]
    judged = [
        {order: (v, "" if v else "empty") for order, v in zip(ORDERS, pair, strict=True)}
        for pair in verdicts
    ]
    found = summary(judged)
    assert found["same_in_both_orders"] == pytest.approx(2 / 3)
    assert found["first_place_preferred"] == pytest.approx(1 / 3)
    assert (found["chosen"], found["rejected"], found["undecided"]) == (1, 0, 2)
    reasons = Counter(refusal(given) for given in judged)
    assert reasons[None] == 1 and len(reasons) == 4


def test_keys_without_a_judge_are_those_of_before():
    plain = PairsConfig(prompts=({"generate": 1},))
    judged = PairsConfig(prompts=({"generate": 1},), judge={"model": "j"})
    assert "judge" not in plain.key_settings() and "judge" in judged.key_settings()
    assert judged.inputs() == {"model": "base", "judge": "j"}
