"""The page of a training stage: how it went, drawn from what it logged; one file of HTML.

What is special to alignment and to reinforcement learning is in `pairs.py` and `rollouts.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic
from singalaut.page.html import document, folded, table, text_block
from singalaut.page.plots import curves
from singalaut.watch.pairs import pair_parts
from singalaut.watch.rollouts import rollout_parts
from singalaut.watch.run import Line, Run, column, columns, read_run, step_seconds

PAGE = Path("report") / "report.html"
MOST_ROWS = 200  # of a table of steps that were left out
MOST_WARNINGS = 40
CURVES = {  # of every stage, by the name in its metrics
    "loss": "Loss, nats a learned token",
    "gradient_norm": "Norm of the gradient, before it is cut",
    "replay_loss": "Loss of what is learned again, nats a learned token",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens a second",
    "mfu": "Share of the device's peak (MFU)",
    "memory_gib": "Peak memory, GiB",
}


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a stage's folder, into it if nowhere else.

    Raises: ArtifactError where the folder is not that of a training stage.
    """
    target = output or folder / PAGE
    page = report_page(read_run(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, page.encode("utf-8", "replace"))
    return target


def report_page(run: Run) -> str:
    """The whole page as HTML."""
    trained = run.trained
    figures = [curves(title, {title: column(trained, name)}) for name, title in CURVES.items()]
    if run.kind == "apo":
        figures[0] = curves("Loss", {"loss": column(trained, "loss")})
        special = pair_parts(run)
    elif run.kind == "rl":
        figures[0] = ""
        special = rollout_parts(run)
    else:
        held_out = {"held out": column(run.lines, "validation_loss")}
        figures.insert(1, curves("Loss on what is held out", held_out, dots=True))
        special = [_grid(_by_group(run, "loss"))]
    parts = [
        f"<h1>{escape(run.kind)}: {escape(run.name)}</h1>",
        *_state(run),
        *_before_and_after(run),
        "<h2>Course</h2>",
        _grid(figures) or "<p>No step has been logged yet.</p>",
        *special,
        *_left_out(trained),
        *_warnings(run.folder / "log.txt"),
        *_samples(run.samples),
        *_settings(run),
    ]
    refresh = "" if run.is_finished else "<meta http-equiv=refresh content=60>"
    return document(f"{run.kind}: {run.name}", parts, head=refresh)


def _grid(figures: Sequence[str]) -> str:
    inner = "".join(figures)
    return f"<div class=grid>{inner}</div>" if inner else ""


def _by_group(run: Run, name: str) -> list[str]:
    """Curves of a number by language and by source, in training and on what is held out."""
    made = []
    for prefix, where in (("", ""), ("validation_", ", held out")):
        for group in ("language", "source"):
            series = columns(run.lines, f"{prefix}{name}_by_{group}")
            if len(series) > 1:
                title = f"{name.capitalize()} by {group}{where}"
                made.append(curves(title, series, dots=bool(prefix)))
    return made


def _state(run: Run) -> list[str]:
    done, steps, seconds = run.done, run.steps, run.seconds
    of = "" if steps is None else f" of {steps:,}"
    told = [f"{done:,}{of} steps"]
    if seconds:
        told.append(f"{duration(seconds)} of training")
    recent = [step_seconds(line) for line in run.trained[-50:]]
    if steps and done < steps and sum(recent):
        told.append(f"about {duration((steps - done) * sum(recent) / len(recent))} left")
    tokens = sum(line.get("tokens", 0) for line in run.trained)
    if tokens:
        told.append(f"{tokens:,} tokens")
    state = "Finished" if run.is_finished else "Under way, or stopped"
    times = [str(run.about[key]) for key in ("started", "finished") if run.about.get(key)]
    parts = [f"<p><b>{state}</b>: {', '.join(told)}. {escape(' – '.join(times))}</p>"]
    if steps:
        share = min(1.0, done / steps)
        parts.append(f"<div class=bar><div style='width: {100 * share:.1f}%'></div></div>")
    return parts


def _before_and_after(run: Run) -> list[str]:
    """The first and the last measurement on what is held out, in all and by language and source."""
    measured = [line for line in run.lines if "validation_loss" in line]
    if not measured:
        return []
    first, last = measured[0], measured[-1]
    rows: list[list[Any]] = [["all", *_pair(first, last, "validation_loss")]]
    for group in ("validation_loss_by_language", "validation_loss_by_source"):
        start, end = first.get(group, {}), last.get(group, {})
        rows += [[label, *_pair(start, end, label)] for label in end]
    if not last.get("validation_loss_by_language") and "validation_by_language" in last:
        start, end = first["validation_by_language"], last["validation_by_language"]
        rows += [[label, *_pair(start.get(label, {}), end[label], "loss")] for label in end]
    steps = f"before step {first['step']}", f"before step {last['step']}"
    head = ["loss on what is held out", *steps, "change", "change, %"]
    if first is last:
        rows, head = [row[:2] for row in rows], head[:2]
    return ["<h2>Before and after</h2>", table(head, rows)]


def _pair(first: Mapping[str, Any], last: Mapping[str, Any], name: str) -> list[float | None]:
    before, after = first.get(name), last.get(name)
    if before is None or after is None:
        return [before, after, None, None]
    change = after - before
    return [before, after, change, 100 * change / abs(before) if before else None]


def _left_out(trained: Sequence[Line]) -> list[str]:
    bad = [line for line in trained if line.get("left_out")]
    parts = ["<h2>Steps left out</h2>"]
    if idle := sum("loss" not in line for line in trained):
        parts.append(f"<p>{idle:,} of {len(trained):,} steps had nothing to learn from.</p>")
    if not bad:
        return parts if idle else [*parts, "<p>None: every step changed the weights.</p>"]
    rows = [(line["step"], line.get("loss"), line.get("gradient_norm")) for line in bad[:MOST_ROWS]]
    told = f"<p>{len(bad):,} of {len(trained):,} steps changed nothing: their loss or gradient "
    told += "was not finite, or the gradient was a spike.</p>"
    return [*parts, told, table(("step", "loss", "gradient norm"), rows)]


def _warnings(file: Path) -> list[str]:
    """What the stage warned of while it ran, by its log; what was said again and again is cut."""
    try:
        lines = file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = [line for line in lines if " WARNING " in line]
    if not found:
        return []
    shown = found if len(found) <= MOST_WARNINGS else found[: MOST_WARNINGS // 2]
    items = "".join(f"<li>{escape(line)}</li>" for line in shown)
    if len(shown) < len(found):
        last = found[-MOST_WARNINGS // 2 :]
        items += f"<li>… {len(found) - MOST_WARNINGS:,} more …</li>"
        items += "".join(f"<li>{escape(line)}</li>" for line in last)
    return ["<h2>Warnings</h2>", f"<ul class=small>{items}</ul>"]


def _samples(samples: Sequence[Line]) -> list[str]:
    """What the model answered at each time, question by question; the newest stands open."""
    if not samples:
        return []
    by_question: dict[str, list[Line]] = {}
    for sample in samples:
        by_question.setdefault(str(sample.get("question", "")), []).append(sample)
    note = "<p class=small>Greedy, with the weights of then.</p>"
    parts = ["<h2>Answers while training</h2>", note]
    for question, answers in by_question.items():
        answers = sorted(answers, key=lambda sample: sample["step"])
        parts.append(f"<h3 dir=auto>{escape(question)}</h3>")
        for answer in reversed(answers):
            head = f"before step {answer['step']}, {answer.get('tokens', 0)} tokens"
            if answer.get("finish_reason") == "length":
                head += ", cut off"
            text = str(answer.get("error") or answer.get("text", ""))
            parts.append(folded(head, text_block(text), opened=answer is answers[-1]))
    return parts


def _settings(run: Run) -> list[str]:
    about = run.about
    parts = ["<h2>Settings and machine</h2>"]
    if config := flattened(about.get("config", {})):
        parts.append(folded("Settings", table(("setting", "value"), config)))
    names = ("hardware", "device", "processes", "seed", "packages")
    machine = {name: about[name] for name in names if name in about}
    parts.append(folded("Machine and versions", table(("what", "value"), flattened(machine))))
    if inputs := about.get("inputs"):
        named = [(name, given["path"], str(given["key"])[:12]) for name, given in inputs.items()]
        parts.append(folded("Inputs", table(("input", "where", "key"), named)))
    if troubled := [t for t in about.get("trackers", ()) if t.get("failed")]:
        rows = [(t["name"], t["sent"], t["failed"], t["error"]) for t in troubled]
        parts.append(table(("tracker", "lines taken", "lines refused", "first reason"), rows))
    return parts


def flattened(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Dotted names and values of nested settings; what is not set is left out."""
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in flattened(v, f"{name}.{k}".strip("."))]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [pair for i, item in enumerate(value) for pair in flattened(item, f"{name}[{i}]")]
    if value is None or value == [] or value == "":
        return []
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 48 s, 12 min, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.0f} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"
