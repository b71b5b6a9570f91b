"""Why rows were chosen: the score of each, the target it helps, its nearest example; and plots."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from singalaut.artifact import write_atomic, write_json
from singalaut.data.store import Store
from singalaut.page.html import document, table
from singalaut.page.plots import KEPT, bars, histogram
from singalaut.select.config import SelectConfig
from singalaut.select.features import Features
from singalaut.select.material import Material
from singalaut.select.scores import served

BINS = 24
SHOWN = 20  # rows of the page


def write_report(
    folder: Path,
    config: SelectConfig,
    material: Material,
    scores: np.ndarray,
    chosen: np.ndarray,
    features: Sequence[Features] | None,
) -> dict[str, Any]:
    """Write `report/selection.jsonl`, `.json` and `.html`; returns facts for the manifest."""
    report_folder = folder / "report"
    report_folder.mkdir(exist_ok=True)
    rows = _rows(material, scores, chosen, features)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(report_folder / "selection.jsonl", lines.encode())
    pool = material.pool
    value = scores.max(1) if scores.ndim == 2 else scores
    report: dict[str, Any] = {
        "method": config.method,
        "pool": len(pool.documents),
        "chosen": len(chosen),
        "languages": _shares(pool.store, pool.documents, chosen, "language"),
        "sources": _shares(pool.store, pool.documents, chosen, "source"),
        "targets": _targets(material, scores, chosen),
        "scores": score_table(value, chosen),
    }
    write_json(report_folder / "selection.json", report)
    write_atomic(report_folder / "selection.html", page(report, rows).encode())
    about = json.loads((folder / "data" / "store.json").read_bytes())
    names = ("method", "pool", "chosen", "languages", "sources", "targets")
    return {**{name: report[name] for name in names}, "provenance": about["provenance"]}


def scored_row(
    scores: np.ndarray, serves: np.ndarray | None, names: Sequence[str], place: int
) -> dict[str, Any]:
    """The score at a place of [M] scores; of [M, K], that for the target it serves, and each."""
    if serves is None:
        return {"score": float(scores[place])}
    each = dict(zip(names, scores[place].tolist(), strict=True))
    target = names[serves[place]]
    return {"score": each[target], "target": target, "scores": each}


def write_choice(
    folder: Path,
    about: Mapping[str, Any],
    everything: Sequence[Mapping[str, Any]],
    scores: np.ndarray,
    chosen: np.ndarray,
    names: Sequence[str],
    pool: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the same files from rows of everything that has a score; returns the report.

    `about` goes into the report, too; `names` are the targets'. `pool` has the language and source
    of what there was, where that is more than has a score.
    """
    there = everything if pool is None else pool
    folder.mkdir(exist_ok=True)
    rows = [everything[place] for place in chosen.tolist()]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(folder / "selection.jsonl", lines.encode("utf-8", "surrogatepass"))
    targets = {
        name: {
            "chosen": sum(row["target"] == name for row in rows),
            "mean_in_pool": float(scores[:, number].mean()),
            "mean_in_choice": float(scores[chosen, number].mean()),
        }
        for number, name in enumerate(names if scores.ndim == 2 else ())
    }
    report = {
        "pool": len(there),
        **about,
        "chosen": len(chosen),
        "languages": _counted(there, rows, "language"),
        "sources": _counted(there, rows, "source"),
        "targets": targets,
        "scores": score_table(scores.max(1) if scores.ndim == 2 else scores, chosen),
    }
    write_json(folder / "selection.json", report)
    write_atomic(folder / "selection.html", page(report, rows).encode("utf-8", "replace"))
    return report


def _counted(
    there: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], column: str
) -> dict[str, dict[str, int]]:
    pool, chosen = (Counter(row[column] for row in each) for each in (there, rows))
    return {label: {"pool": pool[label], "chosen": chosen[label]} for label in sorted(pool)}


def score_table(value: np.ndarray, chosen: np.ndarray) -> dict[str, list[float]]:
    """How many of the pool and of the choice have which score."""
    edges = np.histogram_bin_edges(value, BINS)
    return {
        "edges": [float(edge) for edge in edges],
        "pool": np.histogram(value, edges)[0].tolist(),
        "chosen": np.histogram(value[chosen], edges)[0].tolist(),
    }


def _rows(
    material: Material,
    scores: np.ndarray,
    chosen: np.ndarray,
    features: Sequence[Features] | None,
) -> list[dict[str, Any]]:
    pool, store = material.pool, material.pool.store
    targets = served(scores) if scores.ndim == 2 else None
    names = [target.name for target in material.targets]
    rows = []
    for place in chosen.tolist():
        record = store.documents[pool.documents[place]]
        row: dict[str, Any] = {
            "source": store.sources[record["source"]].name,
            "row": int(record["row"]),
            "language": store.languages[record["language"]],
            "tokens": int(record["tokens"]),
        }
        row |= scored_row(scores, targets, names, place)
        if features is not None:
            row["gradient_norm"] = float(np.mean([f.norms[place] for f in features]))
            row["loss"] = float(np.mean([f.losses[place] for f in features]))
        rows.append(row)
    return rows


def _shares(
    store: Store, documents: np.ndarray, chosen: np.ndarray, column: str
) -> dict[str, dict[str, int]]:
    """Rows of the pool and of the choice by language or source."""
    names = store.languages if column == "language" else [s.name for s in store.sources]
    values = store.documents[column][documents]
    return {
        names[number]: {
            "pool": int((values == number).sum()),
            "chosen": int((values[chosen] == number).sum()),
        }
        for number in np.unique(values).tolist()
    }


def _targets(material: Material, scores: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """For each target, how many rows were chosen for it, and the mean scores."""
    if scores.ndim != 2:
        return {}
    nearest = served(scores)[chosen]
    return {
        rows.name: {
            "rows": len(rows.documents),
            "chosen": int((nearest == number).sum()),
            "mean_in_pool": float(scores[:, number].mean()),
            "mean_in_choice": float(scores[chosen, number].mean()),
        }
        for number, rows in enumerate(material.targets)
    }


def page(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as HTML."""
    title = f"{report['chosen']:,} of {report['pool']:,} rows, chosen by {report['method']}"
    parts = [f"<h1>{escape(title)}</h1>"]
    for name in ("languages", "sources", "targets"):
        groups = report[name]
        if groups:
            parts += [
                f"<h2>{name.capitalize()}</h2>",
                bars([(label, (entry["chosen"],)) for label, entry in groups.items()], (KEPT,)),
            ]
    scores = report["scores"]
    labels = [f"{edge:.3g}" for edge in scores["edges"]]
    parts += ["<h2>Scores of the pool</h2>", histogram(labels, scores["pool"], "score")]
    parts += ["<h2>Scores of the choice</h2>", histogram(labels, scores["chosen"], "score")]
    shown = [
        (row["source"], row["row"], row["language"], row["score"], row.get("target", ""))
        for row in rows[:SHOWN]
    ]
    head = ("source", "row", "language", "score", "target")
    parts += ["<h2>The first rows</h2>", table(head, shown)]
    return document(title, parts)
