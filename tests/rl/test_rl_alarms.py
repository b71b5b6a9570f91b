"""Alarms of reinforcement learning: what looks like a tricked reward, or teaches nothing."""

from __future__ import annotations

import pytest

from singalaut.rl.alarms import USUAL_STEPS, Watch, why_flat

USUAL = {
    "mean_length": 100.0,
    "flat_groups": 0.2,
    "unscored": 0.0,
    "loss": 0.1,
    "right_language": 0.9,
    "repeated": 0.1,
    "reward_parts": {"form": 0.7, "maths": 0.4},
}


def told(caplog, change, steps=6) -> list[str]:
    caplog.clear()
    watch = Watch([USUAL] * USUAL_STEPS)
    for step in range(USUAL_STEPS, USUAL_STEPS + steps):
        watch.see(USUAL | change, step)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"right_language": 0.3}, "are in the language asked for, before 90%"),
        ({"repeated": 0.6}, "phrases were there before"),
        ({"reward_parts": {"form": 1.0, "maths": 0.05}}, "have the form asked for"),
        ({"mean_length": 260.0}, "answers have 260 tokens, before 100"),
    ],
)
def test_drift_is_told_once(caplog, change, said):
    messages = told(caplog, change)
    assert len(messages) == 1 and said in messages[0]


def test_what_is_usual_is_not_told(caplog):
    for change in ({}, {"right_language": 0.8}, {"reward_parts": {"form": 1.0, "maths": 0.6}}):
        assert told(caplog, change) == []


def test_steps_that_teach_nothing_say_why(caplog):
    flat = {name: value for name, value in USUAL.items() if name != "loss"}
    watch = Watch([])
    watch.see(flat, 0)
    watch.see(flat | {"flat_groups": 1.0, "unscored": 1.0, "unscored_because": {"own: no": 8}}, 1)
    cut, same, unscored = (record.getMessage() for record in caplog.records)
    assert "cut off at `max_tokens`" in cut and "different reward, 2 in a row" in same
    assert unscored.endswith("no answer could be scored: own: no")
    assert watch.flat_steps == 2 and "`max_tokens`" in why_flat(flat)[1]
