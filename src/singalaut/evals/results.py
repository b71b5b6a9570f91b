"""From judged answers to results: scores of each task and language, means, and their tables.

Nothing here knows a model or a pack's rows. Scores are on a scale of 0 to 100, shares of 0 to 1.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic, write_json
from singalaut.errors import ArtifactError
from singalaut.evals.metrics import (
    CHRF_SIGNATURE,
    accuracy,
    balanced_accuracy,
    chance_normalised,
    chrf_plus_plus,
    mean,
)
from singalaut.evals.tasks import Chunk

FORMAT = 1
Rows = Sequence[Mapping[str, Any]]
CELL_FIELDS = ("n", "score", "balanced", "normalised", "chance", "extracted", "truncated")


def score_chunk(chunk: Chunk, rows: Rows) -> dict[str, Any]:
    """The scores of one task in one language from its judged answers.

    `score` is the task's metric; `normalised` puts guessing at 0 and perfection at 100, with the
    chance of one label among all that the task has, whichever of them occur in the rows.
    """
    answers = [row["answer"] for row in rows]
    gold = [row["gold"] for row in rows]
    cell: dict[str, Any] = {"n": len(rows)}
    if chunk.task.metric == "accuracy":
        labels = chunk.language.labels
        balanced, chance = balanced_accuracy(answers, gold, labels), 1 / len(labels)
        cell["score"] = 100 * accuracy(answers, gold)
        cell["balanced"] = 100 * balanced
        cell["chance"] = 100 * chance
        cell["normalised"] = 100 * chance_normalised(balanced, chance)
    else:
        cell["score"] = cell["normalised"] = chrf_plus_plus(answers, gold)
    cell["extracted"] = mean(float(row["extracted"]) for row in rows)
    cell["truncated"] = mean(float(row["finish_reason"] == "length") for row in rows)
    return cell


def summarise(
    chunks: Sequence[Chunk],
    answers: Mapping[str, Mapping[str, Rows]],
    *,
    pack: str,
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """All results: `answers` maps model, then chunk name, to judged answers."""
    results: dict[str, Any] = {
        "format": FORMAT,
        "pack": pack,
        "protocol": {**protocol, "chrf": CHRF_SIGNATURE},
        "tasks": _describe(chunks),
        "models": {},
    }
    for model, by_chunk in answers.items():
        cells: dict[str, dict[str, Any]] = {}
        for chunk in chunks:
            cell = score_chunk(chunk, by_chunk[chunk.name])
            cells.setdefault(chunk.task.name, {})[chunk.language.language] = cell
        languages = {
            code: _language(code, cells, results["tasks"])
            for code in dict.fromkeys(chunk.language.language for chunk in chunks)
        }
        overall = _pool(list(languages.values()))
        overall |= {k: mean(v[k] for v in languages.values()) for k in ("score", "normalised")}
        results["models"][model] = {"tasks": cells, "languages": languages, "overall": overall}
    results["rows"] = results_table(results)
    return results


def results_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the overview: each task, each language, all.

    A row has `kind` (task, language, overall), `name`, `metric`, `n`, and by model name `scores`,
    `extracted` and `truncated`. The score of a task is its metric, averaged over its languages;
    that of a language is the chance-normalised mean of its tasks.
    """
    models = results["models"]
    rows = []
    for task, about in results["tasks"].items():
        cells = {model: list(found["tasks"][task].values()) for model, found in models.items()}
        pooled = {
            model: _pool(c) | {"score": mean(x["score"] for x in c)} for model, c in cells.items()
        }
        rows.append(_row("task", task, about["metric"], pooled, "score"))
    for language in next(iter(models.values()))["languages"]:
        found = {model: values["languages"][language] for model, values in models.items()}
        rows.append(_row("language", language, "normalised mean", found, "normalised"))
    found = {model: values["overall"] for model, values in models.items()}
    rows.append(_row("overall", "all", "normalised mean", found, "normalised"))
    return rows


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
        + [cell_text(row["scores"][m], row["extracted"][m]) for m in models]
        for row in results["rows"]
    ]
    detail = []
    for task, about in results["tasks"].items():
        for language in about["languages"]:
            cells = [results["models"][m]["tasks"][task][language] for m in models]
            texts = [cell_text(cell["score"], cell["extracted"]) for cell in cells]
            detail.append([task, language, about["metric"], str(cells[0]["n"]), *texts])
    lines = [
        f"# Evaluation on the pack `{results['pack']}`",
        "Score, and in brackets the share of answers that stood after the answer tag as asked. "
        "Accuracy and chrF++ run from 0 to 100; the rows of languages are means in which "
        "guessing counts 0.",
        markdown_table(["", "metric", "n", *models], overview),
        "## Each task and language",
        markdown_table(["task", "language", "metric", "n", *models], detail),
        "## Tasks",
    ]
    for task, about in results["tasks"].items():
        note = f" {about['note']}" if about["note"] else ""
        lines.append(f"- {task}, version {about['version']}, {about['licence']}.{note}")
    return "\n\n".join(lines) + "\n"


def cell_text(score: float, extracted: float) -> str:
    return f"{score:.1f} ({100 * extracted:.0f} %)"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _describe(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """What was asked, so that every score can be computed again from the responses."""
    about: dict[str, Any] = {}
    for chunk in chunks:
        task = chunk.task
        entry = about.setdefault(
            task.name,
            {
                "version": task.version,
                "competency": task.competency,
                "group": task.group,
                "metric": task.metric,
                "max_tokens": task.max_tokens,
                "licence": task.licence,
                "note": task.note,
                "languages": {},
            },
        )
        language = chunk.language
        entry["languages"][language.language] = {
            "tag": language.tag,
            "labels": dict(language.labels),
            "n": len(chunk.examples),
        }
    return about


def _language(
    code: str, cells: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Any]
) -> dict[str, Any]:
    """Means of one language: tasks of a group, then groups of a competency, then competencies."""
    here = {task: found[code] for task, found in cells.items() if code in found}
    summary = _pool(list(here.values()))
    for figure in ("score", "normalised"):
        tree: dict[str, dict[str, list[float]]] = {}
        for task, cell in here.items():
            group = tasks[task]["group"] or task
            competency = tree.setdefault(tasks[task]["competency"], {})
            competency.setdefault(group, []).append(cell[figure])
        summary[figure] = mean(mean(mean(g) for g in groups.values()) for groups in tree.values())
    return summary


def _pool(cells: Rows) -> dict[str, Any]:
    """Counts and shares over several cells, each answer weighing the same."""
    total = sum(cell["n"] for cell in cells)
    pooled: dict[str, Any] = {"n": total}
    for share in ("extracted", "truncated"):
        pooled[share] = sum(cell["n"] * cell[share] for cell in cells) / total
    return pooled


def _row(
    kind: str, name: str, metric: str, found: Mapping[str, Mapping[str, Any]], figure: str
) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "metric": metric,
        "n": next(iter(found.values()))["n"],
        "scores": {model: values[figure] for model, values in found.items()},
        "extracted": {model: values["extracted"] for model, values in found.items()},
        "truncated": {model: values["truncated"] for model, values in found.items()},
    }


def _csv(results: Mapping[str, Any]) -> str:
    """One line for each model, task and language."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "task", "version", "language", "metric", *CELL_FIELDS])
    for model, found in results["models"].items():
        for task, languages in found["tasks"].items():
            about = results["tasks"][task]
            for language, cell in languages.items():
                figures = [cell.get(name, "") for name in CELL_FIELDS]
                table.writerow([model, task, about["version"], language, about["metric"], *figures])
    return text.getvalue()
