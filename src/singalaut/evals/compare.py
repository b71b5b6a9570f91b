"""Whether two models differ: their answers to the same questions, resampled together.

Works on the folders of finished evaluations, from the saved answers alone. Questions are matched
by task, language, id and prompt; what only one side has is counted and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from singalaut.errors import ArtifactError, RecipeError
from singalaut.evals.aggregate import Leaf, Node, Summary, summarise
from singalaut.evals.chrf import Chrf
from singalaut.evals.measure import Corpus, Measure, holm, interval, p_value, point, strata_of
from singalaut.evals.output import load_results
from singalaut.evals.results import folder_name
from singalaut.evals.scored import number

Rows = dict[tuple[str, str], dict[str, Any]]  # by id and prompt


@dataclass(frozen=True)
class Side:
    """One model of an evaluation."""

    folder: Path
    model: str
    results: Mapping[str, Any]

    @property
    def cells(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        return self.results["models"][self.model]["tasks"]

    def rows(self, task: str, language: str) -> Rows:
        """The saved answers of a cell. Raises: ArtifactError where they are gone."""
        file = self.folder / "responses" / folder_name(self.model) / f"{task}.{language}.jsonl"
        try:
            lines = file.read_text("utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"the answers cannot be read: {error}", where=file, hint="evaluate again"
            ) from error
        return {(row["id"], row["prompt"]): row for row in rows}


def open_side(named: str) -> Side:
    """The side that `FOLDER` or `FOLDER:MODEL` names.

    Raises: ArtifactError where there are no results, RecipeError where the model is not clear.
    """
    folder, model = Path(named), ""
    if not folder.is_dir() and ":" in named:
        before, _, model = named.rpartition(":")
        folder = Path(before)
    results = load_results(folder)
    names = list(results["models"])
    if not model and len(names) > 1:
        raise RecipeError(
            f"the evaluation has {len(names)} models",
            where=folder,
            hint=f"choose one, as in `{folder}:{names[0]}`; there are {', '.join(names)}",
        )
    model = model or names[0]
    if model not in names:
        raise RecipeError(
            f"the evaluation has no model `{model}`",
            where=folder,
            hint=f"it has {', '.join(names)}",
        )
    return Side(folder, model, results)


def compare(first: Side, second: Side, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Differences of the second model to the first, for each cell, language and all.

    Each has `difference` of normalised scores, its 95 % `interval`, and `p`, two-sided; cells also
    `p_holm`, corrected for their number. Raises: RecipeError where nothing is in common.
    """
    pairs: list[tuple[Leaf, Leaf]] = []
    left_out = {"first": 0, "second": 0}
    unlike: list[str] = []
    for task, language in _common(first, second):
        rows = first.rows(task, language), second.rows(task, language)
        shared = [key for key in rows[0] if key in rows[1]]
        left_out["first"] += len(rows[0]) - len(shared)
        left_out["second"] += len(rows[1]) - len(shared)
        metrics = [side.cells[task][language]["metric"] for side in (first, second)]
        if metrics[0] != metrics[1] or not shared:
            unlike.append(f"{task}.{language}")
            continue
        leaves = [
            _leaf(side, task, language, [found[key] for key in shared])
            for side, found in zip((first, second), rows, strict=True)
        ]
        if any(np.isnan(point(leaf.measure)[0]) for leaf in leaves):  # such as without a judge
            unlike.append(f"{task}.{language}")
            continue
        pairs.append((leaves[0], leaves[1]))
    if not pairs:
        raise RecipeError(
            "the two evaluations have no scored question in common",
            where=f"{first.folder}, {second.folder}",
            hint="evaluate both on the same pack and profile",
        )
    sums = [
        summarise([pair[side] for pair in pairs], resamples=resamples, seed=seed) for side in (0, 1)
    ]
    rows_out = list(_rows(sums[0], sums[1], pairs))
    cells = [row for row in rows_out if row["kind"] == "cell"]
    for row, corrected in zip(cells, holm([row["p"] for row in cells]), strict=True):
        row["p_holm"] = corrected
    return {
        "first": first.model,
        "second": second.model,
        "resamples": resamples,
        "rows": rows_out,
        "questions_only_in": left_out,
        "cells_not_comparable": unlike,
    }


def _common(first: Side, second: Side) -> Iterator[tuple[str, str]]:
    for task, languages in first.cells.items():
        for language in languages:
            if language in second.cells.get(task, {}):
                yield task, language


def _leaf(side: Side, task: str, language: str, rows: Sequence[Mapping[str, Any]]) -> Leaf:
    about = side.results["tasks"][task]
    spec = about["languages"][language]
    metric = side.cells[task][language]["metric"]
    rule = side.results["protocol"]["extraction"]
    return Leaf(
        task=task,
        language=language,
        competency=about["competency"],
        group=about["group"],
        pooled=about["pooled"],
        counted=spec["counted"],
        measure=_measure(metric, spec["chance"], rows, rule),
    )


def _measure(metric: str, chance: float, rows: Sequence[Mapping[str, Any]], rule: str) -> Measure:
    runs = max(len(row["runs"]) for row in rows)
    table = [[_run(row, run) for row in rows] for run in range(runs)]
    if metric == "chrf++":
        counter = Chrf([row["references"] for row in rows])
        counted = []
        for line in table:
            statistics = counter.statistics([_answer(run, rule) for run in line])
            statistics[[run is None for run in line]] = 0
            counted.append(statistics)
        return Corpus(np.stack(counted))
    values = np.array(
        [
            [np.nan if run is None or run["score"] is None else run["score"] for run in line]
            for line in table
        ]
    )
    return strata_of(values, [row["stratum"] for row in rows], chance)


def _run(row: Mapping[str, Any], run: int) -> Mapping[str, Any] | None:
    return row["runs"][run] if run < len(row["runs"]) else None


def _answer(run: Mapping[str, Any] | None, rule: str) -> str:
    if run is None:
        return ""
    if rule == "robust" and "robust" in run:
        return run["robust"] or ""
    return run["answer"] or ""


def _rows(
    first: Summary, second: Summary, pairs: Sequence[tuple[Leaf, Leaf]]
) -> Iterator[dict[str, Any]]:
    for leaf, _ in pairs:
        key = (leaf.task, leaf.language)
        name = f"{leaf.task}.{leaf.language}"
        n = len(leaf.measure.strata)
        yield _row("cell", name, first.leaves[key], second.leaves[key]) | {"n": n}
    for language in first.languages:
        if language in second.languages:
            one, two = first.languages[language], second.languages[language]
            yield _row("language", language, one, two)
            for name, part in one.parts.items():
                yield _row("competency", f"{language}.{name}", part, two.parts[name])
    if first.average is not None and second.average is not None:
        yield _row("overall", "all", first.average, second.average)


def _row(kind: str, name: str, first: Node, second: Node) -> dict[str, Any]:
    differences = second.samples - first.samples
    low, high = interval(differences, second.score - first.score)
    return {
        "kind": kind,
        "name": name,
        "first": number(100 * first.score),
        "second": number(100 * second.score),
        "difference": number(100 * (second.score - first.score)),
        "interval": [number(100 * low), number(100 * high)],
        "p": p_value(differences),
    }
