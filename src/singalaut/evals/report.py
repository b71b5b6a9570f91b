"""The HTML report: one file with everything in it, to look through results and answers.

The page is a fixed document with a script; results and a choice of answers are put into it as
JSON. What is shown can be named by the address of the page, so that a view can be shared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from singalaut.errors import ArtifactError
from singalaut.evals.output import oddity_shares
from singalaut.evals.results import folder_name

PAGE = Path(__file__).parent / "report.html"
PLACE = "/*DATA*/null"
SEARCHED = 20  # rows looked at for each that is shown, for notable ones
LONGEST_TEXT = 4000  # characters of a prompt or answer that are shown


def write_report(folder: Path, results: Mapping[str, Any], output: Path, answers: int) -> None:
    """Write the page for an evaluation's folder, with up to so many questions of each cell.

    Raises: ArtifactError where the answers of the evaluation are gone.
    """
    from singalaut.artifact import write_atomic

    page = PAGE.read_text("utf-8")
    assert PLACE in page
    data = json.dumps(report_data(folder, results, answers), ensure_ascii=False)
    # without `<` no text can end the script element or begin a comment in it
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    write_atomic(output, page.replace(PLACE, data).encode())


def report_data(folder: Path, results: Mapping[str, Any], answers: int) -> dict[str, Any]:
    """What the page shows: the results, distributions of scores, and answers side by side."""
    models = list(results["models"])
    cells = []
    for task, about in results["tasks"].items():
        for language in about["languages"]:
            if not all(language in results["models"][m]["tasks"].get(task, ()) for m in models):
                continue
            figures = {m: results["models"][m]["tasks"][task][language] for m in models}
            read = SEARCHED * answers
            rows = {m: list(islice(_rows(folder, m, task, language), read)) for m in models}
            cell = {"task": task, "language": language, "figures": figures}
            cells.append(cell | {"questions": _side_by_side(rows, answers)})
    summaries = {
        name: {key: found[key] for key in ("languages", "overall", "sampling") if key in found}
        | {"odd": oddity_shares(found)}
        for name, found in results["models"].items()
    }
    return {
        "pack": results["pack"],
        "protocol": results["protocol"],
        "tasks": {
            name: {k: about[k] for k in ("competency", "kind", "version", "licence", "note")}
            for name, about in results["tasks"].items()
        },
        "models": summaries,
        "cells": cells,
    }


def _rows(folder: Path, model: str, task: str, language: str) -> Iterator[dict[str, Any]]:
    file = folder / "responses" / folder_name(model) / f"{task}.{language}.jsonl"
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"the answers cannot be read: {error}", where=file, hint="run the evaluation again"
        ) from error


def _side_by_side(rows: Mapping[str, list[dict[str, Any]]], limit: int) -> list[dict[str, Any]]:
    """Questions with the first run of every model: half in order, half where something is odd."""
    first = next(iter(rows.values()))
    by_id = {model: {row["id"]: row for row in found} for model, found in rows.items()}

    def notable(row: Mapping[str, Any]) -> bool:
        runs = [found[row["id"]]["runs"][0] for found in by_id.values() if row["id"] in found]
        scores = {run["score"] for run in runs if run}
        return len(scores) > 1 or any(run and (run.get("odd") or "robust" in run) for run in runs)

    chosen = first[: (limit + 1) // 2]
    rest = first[len(chosen) :]
    chosen += sorted(rest, key=lambda row: not notable(row))[: limit - len(chosen)]
    questions = []
    for row in chosen:
        shown = {m: by_id[m][row["id"]]["runs"] for m in rows if row["id"] in by_id[m]}
        question = {"id": row["id"], "prompt": _cut(row["prompt"])}
        question["gold"] = row.get("gold") or "\n".join(row.get("references", []))
        question["answers"] = {m: _answer(runs) for m, runs in shown.items()}
        questions.append(question)
    return questions


def _answer(runs: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    run = runs[0] if runs else None
    if run is None:
        return None
    kept = ("answer", "robust", "score", "odd", "finish_reason", "reasons", "logprobs")
    shown = {name: run[name] for name in kept if run.get(name) not in (None, [], "")}
    for name in ("answer", "robust"):
        if isinstance(shown.get(name), str):
            shown[name] = _cut(shown[name])
    text = "\n\n".join(run["turns"]) if "turns" in run else run.get("response", "")
    return shown | {"response": _cut(text)}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text):,} in all)"
