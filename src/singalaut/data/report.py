"""What became of every row: counts, reasons and examples, as JSON, and in words for the terminal.

The same as a page of plots is `page.py`'s business.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from singalaut.data.pieces import MOST_ALIKE, Summary, blurred
from singalaut.data.seal import DUPLICATE, NEAR_DUPLICATE, Gathered, provenance
from singalaut.errors import DataError

EXAMPLES = 5  # of each reason, for each source
LENGTH_BINS = 24


def make_report(
    gathered: Gathered, twins: np.ndarray, names: Sequence[str], text_of: Callable[[int], str]
) -> dict[str, Any]:
    """The report on a store; `text_of` gives the beginning of a document, for examples."""
    alive = np.ones(len(gathered.documents), dtype=bool)
    alive[twins["dropped"]] = False
    sources = [
        _source(name, [s for s in gathered.summaries if s.source == number])
        for number, name in enumerate(names)
    ]
    _add_twins(sources, gathered, twins, text_of)
    for number, source in enumerate(sources):
        own = alive.copy()
        for summary, documents in gathered.pieces():
            if summary.source != number:
                own[documents] = False
        source["kept"] = int(own.sum())
        source["tokens"] = int(gathered.documents["tokens"][own].sum(dtype=np.int64))
        source["learned"] = int(gathered.documents["learned"][own].sum(dtype=np.int64))
    totals = {
        name: sum(source[name] for source in sources)
        for name in ("rows", "kept", "tokens", "learned", "cut", "joined", "bytes")
    }
    return {
        **totals,
        "sources": sources,
        "languages": _languages(gathered, alive),
        "lengths": _lengths(gathered.documents["tokens"][alive]),
        "similarity": _similarity(twins),
        "language_check": _language_check(gathered.summaries),
        "provenance": provenance(gathered, alive, names),
    }


def reasons(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each reason of each source, the largest first."""
    rows = [
        {"source": source["name"], "reason": reason["what"], "rows": reason["rows"]}
        for source in report["sources"]
        for reason in source["reasons"]
    ]
    return sorted(rows, key=lambda row: (-row["rows"], row["source"], row["reason"]))


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a prepared artifact. Raises: DataError for another folder."""
    for file in (folder / "report" / "report.json", folder / "report.json"):
        if file.exists():
            return json.loads(file.read_bytes())
    raise DataError(
        "there is no report of prepared data here",
        where=folder,
        hint="give the folder of a stage of kind `prepare`",
    )


def _source(name: str, summaries: Sequence[Summary]) -> dict[str, Any]:
    """What the pieces of one source add up to."""
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    alike = Counter(blurred(what) for what in {r["what"] for s in summaries for r in s.reasons})
    before = Counter[str]()
    for summary in summaries:
        for reason in summary.reasons:
            what = blurred(reason["what"])
            key = (reason["what"] if alike[what] <= MOST_ALIKE else what, reason["is_fault"])
            about = found.setdefault(
                key, {"what": key[0], "is_fault": key[1], "rows": 0, "examples": []}
            )
            about["rows"] += reason["rows"]
            for example in reason["examples"][: EXAMPLES - len(about["examples"])]:
                row = example["row"] + before[summary.file]
                about["examples"].append({"file": summary.file, **example, "row": row})
        before[summary.file] += summary.rows
    lost = Counter[tuple[str, str]]()
    for summary in summaries:
        if summary.lost:
            lost[summary.file, summary.lost] += summary.size_bytes
    return {
        "name": name,
        "rows": sum(s.rows for s in summaries),
        "bytes": sum(s.size_bytes for s in summaries),
        "cut": sum(s.cut for s in summaries),
        "joined": sum(s.joined for s in summaries),
        "lost": [{"file": f, "why": why, "bytes": size} for (f, why), size in lost.items()],
        "reasons": list(found.values()),
    }


def _add_twins(
    sources: list[dict[str, Any]],
    gathered: Gathered,
    twins: np.ndarray,
    text_of: Callable[[int], str],
) -> None:
    """Count duplicates among the reasons of their sources, with examples."""
    places = np.searchsorted(gathered.bounds, twins["dropped"], side="right") - 1
    owners = np.array([summary.source for summary in gathered.summaries])[places]
    for what, is_exact in ((DUPLICATE, True), (NEAR_DUPLICATE, False)):
        for number, source in enumerate(sources):
            own = np.flatnonzero((owners == number) & (twins["is_exact"] == is_exact))
            if len(own):
                examples = [_twin_example(gathered, twins[i], text_of) for i in own[:EXAMPLES]]
                source["reasons"].append(
                    {"what": what, "is_fault": False, "rows": len(own), "examples": examples}
                )


def _twin_example(
    gathered: Gathered, twin: np.ndarray, text_of: Callable[[int], str]
) -> dict[str, Any]:
    dropped, kept = int(twin["dropped"]), int(twin["kept"])
    mine, other = gathered.summary_of(np.array([dropped, kept]))
    detail = f"{other.file}, row {int(gathered.file_row[kept])}"
    if not twin["is_exact"]:
        detail = f"{float(twin['similarity']):.2f} shared with {detail}: {text_of(kept)}"
    return {
        "file": mine.file,
        "row": int(gathered.file_row[dropped]),
        "detail": detail,
        "excerpt": text_of(dropped),
    }


def _languages(gathered: Gathered, alive: np.ndarray) -> list[dict[str, Any]]:
    """Rows, tokens and learned tokens of each language."""
    sums: dict[str, np.ndarray] = {}
    for summary, own in gathered.pieces():
        documents = gathered.documents[own][alive[own]]
        for number, (_, language, _) in enumerate(summary.origins):
            part = documents[documents["origin"] == number]
            counts = [len(part), part["tokens"].sum(dtype=np.int64), part["learned"].sum()]
            sums[language] = sums.get(language, np.zeros(3, np.int64)) + np.array(counts, np.int64)
    return [
        {"language": language, "rows": int(rows), "tokens": int(tokens), "learned": int(learned)}
        for language, (rows, tokens, learned) in sorted(sums.items())
    ]


def _lengths(tokens: np.ndarray) -> dict[str, list[int]]:
    """How many documents have how many tokens, in bins that grow by a constant factor."""
    longest = int(tokens.max(initial=2))
    shortest = int(tokens.min(initial=longest))
    edges = np.unique(np.geomspace(shortest, longest + 1, LENGTH_BINS).round().astype(np.int64))
    counts, _ = np.histogram(tokens, edges)
    return {"edges": edges.tolist(), "rows": counts.tolist()}


def _similarity(twins: np.ndarray) -> dict[str, list[Any]]:
    near = twins["similarity"][~twins["is_exact"]]
    edges = np.linspace(0, 1, 41)
    counts, _ = np.histogram(near, edges)
    return {"edges": edges.round(3).tolist(), "rows": counts.tolist()}


def _language_check(summaries: Sequence[Summary]) -> list[list[Any]]:
    counts = Counter[tuple[str, str]]()
    for summary in summaries:
        for declared, found, rows in summary.checks.get("language", []):
            counts[declared, found] += rows
    return [[*pair, rows] for pair, rows in sorted(counts.items())]
