"""What the page of alignment shows beside losses: margins and rewards, by language; lengths."""

from __future__ import annotations

from typing import Any

from singalaut.page.html import table
from singalaut.page.plots import curves
from singalaut.watch.run import Line, Run, column, read_json

REWARDS = {"chosen": "chosen_reward", "rejected": "rejected_reward"}


def pair_parts(run: Run) -> list[str]:
    """Sections of the page of a stage `apo`."""
    return [
        "<h2>Chosen and rejected answers</h2>",
        "<p class=small>A reward is β times how much likelier the answer is than under the "
        "reference; the margin is the chosen one's minus the rejected one's, accuracy the share of "
        "pairs whose margin is above 0.</p>",
        _figures(run.trained, ""),
        _held_out(run),
        *_by_language(run),
        *_lengths(run),
    ]


def _figures(lines: list[Line], prefix: str) -> str:
    dots, where = bool(prefix), ", held out" if prefix else ""

    def series(names: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
        return {label: column(lines, f"{prefix}{name}") for label, name in names.items()}

    logprobs = {"chosen": "chosen_logprob", "rejected": "rejected_logprob"}
    inner = "".join(
        [
            curves(f"Margin{where}", series({"margin": "margin"}), dots=dots),
            curves(f"Accuracy{where}", series({"accuracy": "accuracy"}), dots=dots),
            curves(f"Rewards{where}", series(REWARDS), dots=dots),
            curves(f"Log-probabilities of answers{where}, nats", series(logprobs), dots=dots),
        ]
    )
    return f"<div class=grid>{inner}</div>"


def _held_out(run: Run) -> str:
    measured = [line for line in run.lines if "validation_margin" in line]
    return _figures(measured, "validation_") if measured else ""


def _by_language(run: Run) -> list[str]:
    """Margins and rewards of each language over steps, and as they were measured last."""
    figures = []
    for name in ("margin", "chosen_reward", "rejected_reward"):
        title = name.replace("_", " ").capitalize()
        series: dict[str, list[tuple[float, float]]] = {}
        for line in run.trained:
            for language, found in sorted(line.get("by_language", {}).items()):
                series.setdefault(language, []).append((line["step"], found[name]))
        if len(series) > 1:
            figures.append(curves(f"{title} by language", series))
    parts = ["<h2>By language</h2>", f"<div class=grid>{''.join(figures)}</div>"] if figures else []
    measured = [line for line in run.lines if line.get("validation_by_language")]
    if measured:
        columns = ("pairs", "loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
        rows = [
            [language, *(_number(found.get(name)) for name in columns)]
            for language, found in measured[-1]["validation_by_language"].items()
        ]
        head = ["held out", *(name.replace("_", " ") for name in columns)]
        parts += [f"<p class=small>Before step {measured[-1]['step']}:</p>", table(head, rows)]
    return parts


def _lengths(run: Run) -> list[str]:
    lengths = read_json(run.folder / "report" / "pairs.json").get("lengths")
    if not lengths:
        return []
    rows = []
    for language, found in lengths.items():
        chosen, rejected = found["chosen_tokens"], found["rejected_tokens"]
        ratio = chosen / rejected if rejected else None
        rows.append((language, found["pairs"], chosen, rejected, ratio, found["chosen_is_longer"]))
    head = ("language", "pairs", "chosen tokens", "rejected tokens", "ratio", "chosen is longer")
    return ["<h2>Lengths</h2>", table(head, rows)]


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) else None
