"""From scored cells to results: figures of each task and language, means, and their table.

Nothing here knows a model or a pack's rows. Scores are on a scale of 0 to 100, shares of 0 to 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from singalaut.evals.aggregate import Leaf, Node, Summary
from singalaut.evals.chrf import SIGNATURE
from singalaut.evals.conditions import CONDITIONS
from singalaut.evals.measure import interval, point
from singalaut.evals.scored import Scored, number, percent
from singalaut.evals.taskfile import UNTAGGED_KINDS
from singalaut.evals.tasks import Cell, Pack

FORMAT = 2
LONGEST_NAME = 120  # of a folder, well below what file systems allow
SHARES = ("extracted", "truncated", "wrong_language")


def leaf_of(scored: Scored) -> Leaf:
    """What aggregation knows of a scored cell."""
    task, language = scored.cell.task, scored.cell.language
    return Leaf(
        task=task.name,
        language=language.language,
        competency=task.competency,
        group=task.group,
        pooled=task.pooled,
        counted=language.counted,
        measure=scored.measures[scored.metric],
    )


def cell_figures(scored: Scored, node: Node, failed: int) -> dict[str, Any]:
    """All figures of one task in one language.

    `score` is the task's metric (balanced accuracy for choices), the mean over runs;
    `normalised` puts guessing at 0 and perfection at 100, and has the `interval`.
    """
    measure = scored.measures[scored.metric]
    by_run = 100 * measure.by_run()
    answered = max(scored.answered, 1)
    counts = {name: scored.counts[name] for name in CONDITIONS if scored.counts[name]}
    untagged = scored.cell.task.kind in UNTAGGED_KINDS
    lost = 0 if untagged else scored.counts["unextractable"] + scored.counts["untagged"]
    metrics = {name: percent(other) for name, other in scored.measures.items()}
    metrics |= {name: number(score) for name, score in scored.official_sums.items()}
    figures: dict[str, Any] = {
        "n": len(scored.cell.examples),
        "runs": len(by_run),
        "answered": scored.answered,
        "failed": failed,
        "metric": scored.metric,
        "score": metrics[scored.metric],
        "normalised": number(100 * node.score),
        "interval": _interval(node),
        "by_run": [number(value) for value in by_run],
        "metrics": metrics,
        "distribution": scored.distribution,
        "extracted": 1 - lost / answered if scored.answered else 0.0,
        "truncated": scored.counts["truncated"] / answered,
        "wrong_language": scored.counts["wrong_language"] / answered,
        "counts": counts,
        "disagreements": scored.disagreements / answered,
        "rows_left_out": scored.cell.problems.lost,
        "row_problems": dict(scored.cell.problems.counts),
    }
    if np.count_nonzero(~np.isnan(by_run)) > 1:
        figures["deviation_between_runs"] = number(float(np.nanstd(by_run, ddof=1)))
    if scored.robust is not None:
        figures["robust"] = percent(scored.robust)
        figures["robust_normalised"] = number(100 * point(scored.robust)[1])
    return figures | scored.facts


def model_results(
    scored: Sequence[Scored], summary: Summary, failed: Mapping[str, int]
) -> dict[str, Any]:
    """The part of the results that one model has."""
    cells: dict[str, dict[str, Any]] = {}
    for one in scored:
        task, language = one.cell.task.name, one.cell.language.language
        node = summary.leaves[task, language]
        figures = cell_figures(one, node, failed.get(one.cell.name, 0))
        cells.setdefault(task, {})[language] = figures
    languages = {}
    for code, tree in summary.languages.items():
        counted = [
            cells[one.cell.task.name][code]
            for one in scored
            if one.cell.language.language == code and one.cell.language.counted
        ]
        languages[code] = _pool(counted) | _figures(tree)
        languages[code]["missing"] = list(summary.missing.get(code, ()))
        languages[code]["competencies"] = {
            name: _figures(part)
            | {"groups": {group: _figures(inner) for group, inner in part.parts.items()}}
            for name, part in tree.parts.items()
        }
    overall: dict[str, Any] = {"n": 0}
    if summary.average is not None:
        averaged = list(summary.average.parts)
        overall = _pool([languages[code] for code in averaged]) | _figures(summary.average)
        overall["languages"] = averaged
        overall["missing"] = {code: list(names) for code, names in summary.missing.items()}
    return {"tasks": cells, "languages": languages, "overall": overall}


def describe(pack: Pack, cells: Sequence[Cell]) -> dict[str, Any]:
    """What was asked, so that every score can be computed again from the responses."""
    about: dict[str, Any] = {}
    for cell in cells:
        task, spec = cell.task, cell.language
        entry = about.setdefault(
            task.name,
            {
                "version": task.version,
                "competency": task.competency,
                "group": task.group,
                "pooled": task.pooled,
                "kind": task.kind,
                "metric": task.metric,
                "metrics": list(task.metrics),
                "max_tokens": task.max_tokens,
                "licence": task.licence,
                "note": task.note,
                "languages": {},
            },
        )
        entry["languages"][spec.language] = {
            "tag": spec.tag,
            "labels": dict(spec.labels),
            "answer_language": spec.answer_language,
            "chance": cell.chance,
            "counted": spec.counted,
            "licence": spec.licence,
            "n": len(cell.examples),
            "rows_left_out": cell.problems.lost,
            "row_problems": dict(cell.problems.counts),
            "first_problems": [f"{p.where}: {p.what}" for p in cell.problems.first],
        }
    return about


def all_results(
    pack: Pack,
    cells: Sequence[Cell],
    models: Mapping[str, dict[str, Any]],
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """The results of all models, with the table of the overview."""
    results: dict[str, Any] = {
        "format": FORMAT,
        "pack": pack.name,
        "protocol": {**protocol, "chrf": SIGNATURE},
        "tasks": describe(pack, cells),
        "models": dict(models),
    }
    results["rows"] = results_table(results)
    return results


def results_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the overview: each task, each language, all.

    A row has `kind` (task, language, overall), `name`, `metric`, `n`, and by model name `scores`,
    `intervals`, `extracted`, `truncated` and `wrong_language`. The score of a task is its metric,
    averaged over its languages; that of a language is the chance-normalised mean of its tasks.
    """
    models = results["models"]
    rows = []
    for task in results["tasks"]:
        cells = {
            model: list(found["tasks"][task].values())
            for model, found in models.items()
            if task in found["tasks"]
        }
        if len(cells) < len(models):
            continue
        pooled = {m: _pool(c) | {"score": _mean(x["score"] for x in c)} for m, c in cells.items()}
        metrics = dict.fromkeys(cell["metric"] for c in cells.values() for cell in c)
        rows.append(_row("task", task, ", ".join(metrics), pooled, "score"))
    for language in next(iter(models.values()))["languages"]:
        found = {
            m: v["languages"][language] for m, v in models.items() if language in v["languages"]
        }
        if len(found) == len(models):
            rows.append(_row("language", language, "normalised mean", found, "normalised"))
    found = {model: values["overall"] for model, values in models.items()}
    if all("normalised" in values for values in found.values()):
        rows.append(_row("overall", "all", "normalised mean", found, "normalised"))
    return rows


def folder_name(model: str) -> str:
    """A visible, safe and distinct folder name for any name of a model."""
    name = quote(model, safe=" +=,@()")
    name = "%2E" + name[1:] if name.startswith(".") else name
    if len(name) <= LONGEST_NAME:
        return name
    return name[: LONGEST_NAME - 17] + "-" + hashlib.sha256(model.encode()).hexdigest()[:16]


def _figures(node: Node) -> dict[str, Any]:
    return {"normalised": number(100 * node.score), "interval": _interval(node)}


def _interval(node: Node) -> list[float | None]:
    if np.isnan(node.samples).all():
        return [None, None]
    return [number(100 * bound) for bound in interval(node.samples, node.score)]


def _pool(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts and shares over several cells, each question weighing the same."""
    total = sum(cell["n"] for cell in cells)
    pooled: dict[str, Any] = {"n": total}
    for share in SHARES:
        pooled[share] = sum(cell["n"] * cell[share] for cell in cells) / max(total, 1)
    return pooled


def _row(
    kind: str, name: str, metric: str, found: Mapping[str, Mapping[str, Any]], figure: str
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "metric": metric,
        "n": next(iter(found.values()))["n"],
        "scores": {model: values[figure] for model, values in found.items()},
    }
    row["intervals"] = {model: values.get("interval") for model, values in found.items()}
    return row | {
        share: {model: values[share] for model, values in found.items()} for share in SHARES
    }


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
