"""The page of a training stage: what a stage logged is on it, and nothing breaks it."""

from __future__ import annotations

import json

import pytest

from singalaut.errors import ArtifactError
from singalaut.watch.report import duration, flattened, write_report
from singalaut.watch.run import read_run


def folder_of(tmp_path, kind, lines, *, samples=(), run=None, state=None):
    folder = tmp_path / f"{kind}-1234abcd.partial"
    (folder / "report").mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, "utf-8")
    if samples:
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples)
        (folder / "samples.jsonl").write_text(rows, "utf-8")
    (folder / "report" / "run.json").write_text(
        json.dumps({"kind": kind, "steps": 10, **(run or {})})
    )
    settings = {"kind": kind, "config": {"learning_rate": 0.125, "data": [{"path": "a<b>.jsonl"}]}}
    (folder / "state.json").write_text(json.dumps(settings | (state or {})))
    return folder


def step(number, **more):
    return {
        "step": number,
        "loss": 3.0 - 0.1 * number,
        "gradient_norm": 1.0,
        "learning_rate": 1e-3,
        "tokens": 100,
        "seconds": 2.0,
        "tokens_per_second": 50,
        "mfu": 0.4,
        "memory_gib": 1.5,
        "loss_by_language": {"th": 2.0, "my": 3.0},
        **more,
    }


def test_fine_tuning_is_shown_whole(tmp_path):
    before = {"step": 0, "validation_loss": 4.0, "validation_loss_by_language": {"th": 4.5}}
    after = {"step": 4, "validation_loss": 3.0, "validation_loss_by_language": {"th": 3.5}}
    lines = [before, *(step(n) for n in range(3)), step(3, left_out=True, loss=float("nan")), after]
    texts = ["ข้าวคืออะไร", "ထမင်းဆိုတာဘာလဲ", "តើបាយជាអ្វី", "ເຂົ້າແມ່ນຫຍັງ", "அரிசி என்றால் என்ன"]
    samples = [
        {
            "step": 0,
            "question": text,
            "text": f"<b>{text}</b>",
            "tokens": 7,
            "finish_reason": "length",
        }
        for text in texts
    ]
    folder = folder_of(tmp_path, "sft", lines, samples=samples)
    noted = ["2026-11-26 WARNING step 3 left out: <nan>", *["2026-11-26 WARNING again"] * 60]
    (folder / "log.txt").write_text("2026-11-26 INFO begins\n" + "\n".join(noted))
    page = write_report(folder).read_text("utf-8")
    assert "Under way" in page and "4 of 10 steps" in page and "about 12 s left" in page
    assert "step 3 left out: &lt;nan&gt;" in page and "… 21 more …" in page and "begins" not in page
    assert "1 of 4 steps changed nothing" in page and "-1" in page and "-22.22" in page
    for title in ("Loss, nats", "Norm of the gradient", "Tokens a second", "MFU", "Peak memory"):
        assert title in page, title
    assert "Loss by language" in page and "Loss on what is held out" in page
    assert all(text in page for text in texts) and "<b>ข้าว" not in page and "cut off" in page
    assert "a&lt;b&gt;.jsonl" in page and "learning_rate" in page and "0.125" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page


def test_an_ended_run_does_not_reload(tmp_path):
    folder = folder_of(tmp_path, "sft", [step(n) for n in range(10)], run={"ended": True})
    page = write_report(folder).read_text("utf-8")
    assert "Finished" in page and "http-equiv" not in page


def test_alignment_shows_margins_by_language(tmp_path):
    def numbers(value):
        names = ("loss", "margin", "accuracy", "chosen_reward", "rejected_reward")
        return dict.fromkeys(names, value) | {"chosen_logprob": -9.0, "rejected_logprob": -8.0}

    by = {code: {"pairs": 3, **numbers(0.25)} for code in ("id", "th")}
    held = {f"validation_{k}": v for k, v in numbers(0.75).items()} | {"validation_by_language": by}
    lines = [{"step": 0, **held}, step(0, **numbers(0.5), by_language=by), {"step": 1, **held}]
    folder = folder_of(tmp_path, "apo", lines)
    lengths = {
        "th": {"pairs": 3, "chosen_tokens": 20.0, "rejected_tokens": 10.0, "chosen_is_longer": 1.0}
    }
    (folder / "report" / "pairs.json").write_text(json.dumps({"lengths": lengths}))
    page = write_report(folder).read_text("utf-8")
    for title in ("Margin", "Accuracy, held out", "Rewards", "Margin by language", "Lengths"):
        assert title in page, title
    assert "chosen tokens" in page and "Before and after" in page


def test_learning_by_reward_shows_answers_and_reasons(tmp_path):
    from singalaut.contracts import Score
    from singalaut.rl.rollouts import Rollout, Rollouts, save_rollouts

    line = {
        "step": 0,
        "reward": 0.5,
        "reward_by_language": {"th": 0.25, "id": 0.75},
        "reward_parts": {"maths": 0.5},
        "pass_at_1": 0.5,
        "pass_at_2": 1.0,
        "entropy": 1.0,
        "mean_length": 8.0,
        "seconds": {"generate": 3.0, "learn": 1.0},
        "gradient_norm": 1.0,
        "loss": 0.1,
        "failures": {"the server is <down>": 3},
    }
    held = {"step": 0, "held_out_reward": 0.25, "held_out_standard_error": 0.05}
    flat = {"step": 1, "reward": 0.0, "unscored_because": {"own: <no>": 2}}
    held |= {"held_out_by_part": {"maths": 0.25}, "held_out_errors_by_part": {"maths": 0.05}}
    after = held | {"step": 2, "held_out_reward": 0.5, "held_out_by_language": {"th": 0.5}}
    folder = folder_of(tmp_path, "rl", [held, line, flat, after])

    def answer(text, value, why):
        score = Score(value, {"maths": value or 0.0}, (why,))
        given = ("p<1>", 0, "th", "made", (1, 2), (3, 4), (-1.0, -2.0), text, "stop", score)
        return Rollout(*given, question="๒ + ๒ = ? <i>")

    answers = (
        answer("๔ <u>", 1.0, "equal"),
        answer("๕", 0.0, "not & equal"),
        answer("x", None, "?"),
    )
    save_rollouts(folder / "rollouts", 0, Rollouts(answers, 1, 0, 1, {}))
    page = write_report(folder).read_text("utf-8")
    assert "best: reward 1.000 (maths 1)" in page and "worst: reward 0.000" in page
    assert "1 of 2 steps had nothing to learn from" in page and "own: &lt;no&gt;" in page
    assert "๒ + ๒ = ? &lt;i&gt;" in page and "๔ &lt;u&gt;" in page and "not &amp; equal" in page
    assert "the server is &lt;down&gt;" in page
    assert "<td>maths</td><td>0.250 ± 0.098</td>" in page  # 1.96 standard errors
    assert "<td>th</td><td>–</td><td>0.500</td>" in page
    assert "not scored: no score" in page and "generate, 75%" in page
    for title in ("Share solved", "Parts of the reward", "Reward by language", "Time by phase"):
        assert title in page, title


def test_a_line_cut_by_a_kill_or_broken_is_left_out(tmp_path):
    folder = folder_of(tmp_path, "sft", [step(0)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1, 2]\n\n{"step": 1, "loss"')
    assert read_run(folder).done == 1
    assert write_report(folder).exists()


def test_old_rollouts_without_questions_are_shown(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = folder_of(tmp_path, "rl", [{"step": 0, "reward": 1.0}])
    (folder / "rollouts").mkdir()
    table = pa.table({"prompt_id": ["p"], "text": ["so"], "reward": [1.0]})
    pq.write_table(table, folder / "rollouts" / "step-000000.parquet")
    assert "best: reward 1.000" in write_report(folder).read_text("utf-8")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no folder of a stage that trains"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (119, "119 s"), (600, "10 min"), (12_000, "3 h 20 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds, told):
    assert duration(seconds) == told


def test_settings_are_flattened():
    nested = {"a": {"b": 1, "c": None}, "d": [1, 2], "e": [{"f": "x"}], "g": []}
    assert flattened(nested) == [("a.b", "1"), ("d", "[1, 2]"), ("e[0].f", "x")]
