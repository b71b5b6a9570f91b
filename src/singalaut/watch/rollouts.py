"""What the page of reinforcement learning shows: rewards, what the policy does, answers and why.

Answers are read from the stage's Parquet files, one a step, of which the first, the middle and the
last are shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from singalaut.page.html import folded, table, text_block
from singalaut.page.plots import bars, curves
from singalaut.watch.run import Line, Run, column, columns

FILES = "step-*.parquet"
COLUMNS = (
    *("prompt_id", "place", "language", "source", "question", "text", "finish_reason"),
    *("reward", "parts", "reasons", "advantage"),
)
MOST_REASONS = 20  # of a table
GROUPS = 4  # prompts of a step whose best and worst answers are shown
POLICY = {
    "entropy": "Entropy, nats a token",
    "kl": "Distance to the reference (KL), nats",
    "mismatch": "Engine and trainer apart, nats",
    "mean_length": "Tokens in an answer",
    "truncated": "Share of answers cut off",
    "right_language": "Share of answers in the language asked for",
    "repeated": "Share of phrases that were there before",
    "flat_groups": "Share of prompts that teach nothing",
    "unscored": "Share of answers without a score",
}


def rollout_parts(run: Run) -> list[str]:
    """Sections of the page of a stage `rl`."""
    trained = run.trained
    held_out = [line for line in run.lines if "held_out_reward" in line]
    passes = sorted({name for line in trained for name in line if name.startswith("pass_at_")})
    rewards = [
        curves("Reward", {"reward": column(trained, "reward")}),
        curves("Reward of greedy answers, held out", _with_error(held_out), dots=True),
        curves("Share solved", {name.replace("_", " "): column(trained, name) for name in passes}),
        *_groups(trained, "reward_by_", ""),
        *_groups(held_out, "held_out_by_", ", held out"),
        curves("Parts of the reward", columns(trained, "reward_parts")),
    ]
    clipped = {
        "fallen": column(trained, "clipped_low"),
        "risen": column(trained, "clipped_high"),
    }
    policy = [curves("Loss", {"loss": column(trained, "loss")})]
    policy += [curves(title, {title: column(trained, name)}) for name, title in POLICY.items()]
    policy.append(curves("Share of tokens clipped", clipped))
    return [
        "<h2>Rewards</h2>",
        _grid(rewards),
        *_before_and_after(held_out),
        "<h2>Policy</h2>",
        _grid(policy),
        *_reasons(trained, "failures", "Prompts without answers", "prompts"),
        *_reasons(trained, "unscored_because", "Answers without a score", "answers"),
        *_phases(trained),
        *_answers(run.folder / "rollouts"),
    ]


def _grid(figures: Sequence[str]) -> str:
    return f"<div class=grid>{''.join(figures)}</div>"


def _groups(lines: Sequence[Line], prefix: str, where: str) -> list[str]:
    made = []
    for group in ("language", "source", "part"):
        series = columns(lines, f"{prefix}{group}")
        if len(series) > 1:
            made.append(curves(f"Reward by {group}{where}", series, dots=bool(where)))
    return made


def _with_error(held_out: Sequence[Line]) -> dict[str, list[tuple[float, float]]]:
    mean = column(held_out, "held_out_reward")
    errors = dict(column(held_out, "held_out_standard_error"))
    series = {"reward": mean}
    if any(errors.values()):
        series["− 1.96 s.e."] = [(x, y - 1.96 * errors.get(x, 0.0)) for x, y in mean]
        series["+ 1.96 s.e."] = [(x, y + 1.96 * errors.get(x, 0.0)) for x, y in mean]
    return series


def _before_and_after(held_out: Sequence[Line]) -> list[str]:
    """What greedy answers were worth before the first step and before the last, by group."""
    if not held_out:
        return []
    first, last = held_out[0], held_out[-1]

    def shown(line: Line, group: str, label: str) -> str:
        value = line.get(f"held_out_by_{group}", {}).get(label)
        error = line.get(f"held_out_errors_by_{group}", {}).get(label)
        return _with_interval(value, error)

    alike = [
        (each["held_out_reward"], each.get("held_out_standard_error")) for each in (first, last)
    ]
    rows = [("all", *(_with_interval(*each) for each in alike))]
    for group in ("part", "language", "source"):
        labels = last.get(f"held_out_by_{group}", {})
        rows += [(label, shown(first, group, label), shown(last, group, label)) for label in labels]
    steps = f"before step {first['step']}", f"before step {last['step']}"
    return [table(("held-out reward, 95 % interval", *steps), rows)]


def _with_interval(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f} ± {1.96 * error:.3f}" if error else f"{value:.3f}"


def _reasons(trained: Sequence[Line], name: str, title: str, what: str) -> list[str]:
    """What failed, by reason, where anything did."""
    sums: dict[str, int] = {}
    for line in trained:
        for reason, count in (line.get(name) or {}).items():
            sums[reason] = sums.get(reason, 0) + count
    if not sums:
        return []
    common = sorted(sums.items(), key=lambda item: -item[1])[:MOST_REASONS]
    return [f"<h2>{title}</h2>", table(("why", what), common)]


def _phases(trained: Sequence[Line]) -> list[str]:
    """Where the time of a step goes."""
    sums: dict[str, float] = {}
    for line in trained:
        if isinstance(line.get("seconds"), dict):
            for name, value in line["seconds"].items():
                sums[name] = sums.get(name, 0.0) + value
    total = sum(sums.values())
    if not total:
        return []
    rows = [(f"{name}, {value / total:.0%}", (value,)) for name, value in sums.items()]
    series = columns(trained, "seconds")
    return [
        "<h2>Time by phase</h2>",
        "<p class=small>Seconds, in all and by step.</p>",
        bars(rows, ("var(--c0)",)),
        curves("Seconds of a step", series),
    ]


def _answers(folder: Path) -> list[str]:
    """The best and the worst answer to some prompts of the first, a middle and the last step."""
    files = sorted(folder.glob(FILES))
    if not files:
        return []
    chosen = sorted({0, len(files) // 2, len(files) - 1})
    parts = ["<h2>Answers and their rewards</h2>"]
    for place in reversed(chosen):
        step = int(files[place].stem.removeprefix("step-"))
        groups = _read(files[place])
        shown = "".join(_group(rows) for rows in groups[:GROUPS])
        head = f"step {step}: {len(groups)} prompts, {min(GROUPS, len(groups))} shown"
        parts.append(folded(head, shown, opened=place == len(files) - 1))
    return parts


def _read(file: Path) -> list[list[dict[str, Any]]]:
    """The answers of a step by prompt, those that differ most in reward first."""
    import pyarrow.parquet as pq

    names = [name for name in COLUMNS if name in pq.read_schema(file).names]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in pq.read_table(file, columns=names).to_pylist():
        groups.setdefault((row.get("place"), row.get("prompt_id")), []).append(row)

    def spread(rows: list[dict[str, Any]]) -> float:
        found = [row["reward"] for row in rows if row.get("reward") is not None]
        return max(found) - min(found) if found else 0.0

    return sorted(groups.values(), key=spread, reverse=True)


def _group(rows: Sequence[dict[str, Any]]) -> str:
    first = rows[0]
    scored = [row for row in rows if row.get("reward") is not None]
    order = sorted(scored, key=lambda row: row["reward"])
    labels = {"best": order[-1:], "worst": order[:1] if len(order) > 1 else []}
    unscored = [row for row in rows if row.get("reward") is None]
    labels["not scored"] = unscored[:1]
    where = escape(f"{first.get('language')}, {first.get('source')}, {first.get('prompt_id')}")
    lines = [f"<h3>{where}</h3>"]
    if first.get("question"):
        lines.append(text_block(first["question"]))
    for label, found in labels.items():
        for row in found:
            reward = "no score" if row.get("reward") is None else f"reward {row['reward']:.3f}"
            parts = json.loads(row.get("parts") or "{}")
            told = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
            ended = ", cut off" if row.get("finish_reason") == "length" else ""
            reasons = "".join(f"<li>{escape(reason)}</li>" for reason in row.get("reasons") or ())
            head = escape(f"{label}: {reward}{f' ({told})' if told else ''}{ended}")
            lines.append(f"<p><b>{head}</b></p>{text_block(row.get('text') or '')}")
            lines.append(f"<ul class=small>{reasons}</ul>" if reasons else "")
    return "".join(lines)
