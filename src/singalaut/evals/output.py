"""Results as files: JSON, CSV, Markdown; and reading them again."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic, write_json
from singalaut.errors import ArtifactError
from singalaut.evals.conditions import CONDITIONS
from singalaut.evals.results import FORMAT

CELL_FIELDS = ("n", "runs", "answered", "failed", "score", "normalised")
SHARE_FIELDS = ("extracted", "truncated", "wrong_language", "disagreements", "robust", "chance")


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json`, `results.csv` and `results.md` into `folder`."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "results.json", results)
    write_atomic(folder / "results.csv", _csv(results).encode())
    write_atomic(folder / "results.md", results_markdown(results).encode())


def load_results(folder: Path) -> dict[str, Any]:
    """The results of an evaluation's folder. Raises: ArtifactError if there are none."""
    file = folder / "results" / "results.json"
    try:
        results = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            "the results cannot be read",
            where=file,
            hint="this must be the folder of a finished evaluation",
        ) from error
    found = results.get("format") if isinstance(results, dict) else None
    if found != FORMAT:
        raise ArtifactError(
            f"results of format {found}, this version reads {FORMAT}",
            where=file,
            hint="run the evaluation again",
        )
    return results


def results_markdown(results: Mapping[str, Any]) -> str:
    """The overview, every task and language, and what the tasks are, as Markdown."""
    models = list(results["models"])
    overview = [
        [row["name"], row["metric"], str(row["n"])]
        + [cell_text(row["scores"][m], row["extracted"][m], row["intervals"][m]) for m in models]
        for row in results["rows"]
    ]
    detail = []
    for task, about in results["tasks"].items():
        for language in about["languages"]:
            cells = [results["models"][m]["tasks"].get(task, {}).get(language) for m in models]
            texts = [cell_text(c["score"], c["extracted"]) if c else "" for c in cells]
            first = next(cell for cell in cells if cell)
            detail.append([task, language, first["metric"], str(first["n"]), *texts])
    lines = [
        f"# Evaluation on the pack `{results['pack']}`",
        "Score, and in brackets the share of answers that stood after the answer tag as asked. "
        "Accuracy is balanced; all metrics run from 0 to 100. The rows of languages are means in "
        "which guessing counts 0, with 95 % intervals.",
        markdown_table(["", "metric", "n", *models], overview),
        "## Each task and language",
        markdown_table(["task", "language", "metric", "n", *models], detail),
        "## What the answers are like",
        markdown_table(["share of answers", *models], _oddities(results)),
        *_missing(results),
        "## Tasks",
    ]
    tasks = []
    for task, about in results["tasks"].items():
        note = f" {about['note']}" if about["note"] else ""
        tasks.append(f"- {task}, version {about['version']}, {about['licence']}.{note}")
    return "\n\n".join([*lines, "\n".join(tasks)]) + "\n"


def cell_text(
    score: float | None, extracted: float, interval: Sequence[float | None] | None = None
) -> str:
    if score is None:
        return "—"
    bounds = ""
    if interval and interval[0] is not None and interval[1] is not None:
        bounds = f" [{interval[0]:.1f}, {interval[1]:.1f}]"
    return f"{score:.1f}{bounds} ({100 * extracted:.0f} %)"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def oddity_shares(model: Mapping[str, Any]) -> dict[str, float]:
    """How often each oddity occurs among all answers of a model; only what does occur."""
    cells = [cell for languages in model["tasks"].values() for cell in languages.values()]
    answered = sum(cell["answered"] for cell in cells)
    shares = {}
    for name in CONDITIONS:
        if count := sum(cell["counts"].get(name, 0) for cell in cells):
            shares[name] = count / max(answered, 1)
    if failed := sum(cell["failed"] for cell in cells):
        shares["failed"] = failed / (answered + failed)
    judgements = sum(cell.get("judgements", 0) for cell in cells)
    judged = Counter[str]()
    for cell in cells:
        judged.update(cell.get("judge_counts", {}))
    for name, count in judged.items():
        shares[f"of judgements: {name.removeprefix('judge_')}"] = count / max(judgements, 1)
    disagreements = sum(cell["disagreements"] * cell["answered"] for cell in cells)
    return shares | {"read differently with care": disagreements / max(answered, 1)}


def _oddities(results: Mapping[str, Any]) -> list[list[str]]:
    shares = {name: oddity_shares(model) for name, model in results["models"].items()}
    always = ("unextractable", "wrong_language", "truncated")
    found = dict.fromkeys((*always, *(name for model in shares.values() for name in model)))
    return [
        [
            name.replace("_", " "),
            *(f"{100 * model.get(name, 0.0):.2f} %" for model in shares.values()),
        ]
        for name in found
    ]


def _missing(results: Mapping[str, Any]) -> list[str]:
    """What the suite expects and no row was there for."""
    model = next(iter(results["models"].values()))
    missing = model["overall"].get("missing") or {}
    lines = [f"- {code}: {', '.join(names)}" for code, names in missing.items()]
    if not lines:
        return []
    what = "The means leave out these tasks of the suite, whose rows or scores were not there:"
    return ["## Incomplete", what, "\n".join(lines)]


def _csv(results: Mapping[str, Any]) -> str:
    """One line for each model, task and language."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    head = ["model", "task", "version", "language", "metric", *CELL_FIELDS, "low", "high"]
    table.writerow([*head, *SHARE_FIELDS, *CONDITIONS])
    for model, found in results["models"].items():
        for task, languages in found["tasks"].items():
            version = results["tasks"][task]["version"]
            for language, cell in languages.items():
                line = [model, task, version, language, cell["metric"]]
                line += [cell.get(name, "") for name in CELL_FIELDS] + list(cell["interval"])
                line += [cell.get(name, "") for name in SHARE_FIELDS]
                table.writerow(line + [cell["counts"].get(name, 0) for name in CONDITIONS])
    return text.getvalue()
