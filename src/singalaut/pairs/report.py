"""What became of every prompt: the pairs, what was refused and why, counts by language."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from singalaut.artifact import write_atomic, write_json
from singalaut.pairs.case import Case, remaining
from singalaut.pairs.filters import difference
from singalaut.pairs.judging import summary, told

EXAMPLES = 3  # of each reason


def write_pairs(folder: Path, cases: Sequence[Case], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write `data/pairs.jsonl`, `report/refused.jsonl` and `report/pairs.json`; returns the last.

    `about` says where the pairs come from, and stands in the report.
    """
    pairs = remaining(cases)
    refused = [case for case in cases if case.refused is not None]
    for name in ("data", "report"):
        (folder / name).mkdir(exist_ok=True)
    _write_rows(folder / "data" / "pairs.jsonl", [_pair_row(case) for case in pairs])
    _write_rows(
        folder / "report" / "refused.jsonl",
        [{"reason": c.refused, **_pair_row(c), "candidates": c.candidates} for c in refused],
    )
    report: dict[str, Any] = {
        "prompts": len(cases),
        "pairs": len(pairs),
        **about,
        "refused": _reasons(refused),
        "languages": _languages(cases),
    }
    if judged := [case.verdicts for case in cases if case.verdicts]:
        report["judgements"] = summary(judged)
    write_json(folder / "report" / "pairs.json", report)
    return report


def _pair_row(case: Case) -> dict[str, Any]:
    return {
        "id": case.sample.id,
        "prompt": [{"role": m.role, "content": m.content} for m in case.sample.messages],
        "chosen": case.chosen,
        "rejected": case.rejected,
        **({"rejected_is_cut": True} if case.is_cut else {}),
        "language": case.language,
        "source": case.sample.source,
        "constraints": [dict(constraint) for constraint in case.sample.constraints],
        **({"judge": told(case.verdicts)} if case.verdicts else {}),
    }


def _write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(file, lines.encode("utf-8", "replace"))


def _reasons(refused: Sequence[Case]) -> list[dict[str, Any]]:
    """One row a reason, the most frequent first."""
    counts = Counter(case.refused for case in refused)
    return [
        {
            "reason": reason,
            "prompts": count,
            "examples": [case.sample.id for case in refused if case.refused == reason][:EXAMPLES],
        }
        for reason, count in counts.most_common()
    ]


def _languages(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Prompts, pairs and mean numbers of the pairs, by language."""
    found: dict[str, dict[str, float]] = {}
    for code in sorted({case.language for case in cases}):
        own = [case for case in cases if case.language == code]
        pairs = remaining(own)
        found[code] = {"prompts": len(own), "pairs": len(pairs)}
        if pairs:
            found[code] |= {
                "chosen_characters": float(np.mean([len(c.chosen) for c in pairs])),
                "rejected_characters": float(np.mean([len(c.rejected) for c in pairs])),
                "changed": float(np.mean([difference(c.rejected, c.chosen) for c in pairs])),
            }
    return found
