"""What a merge did, in numbers: how far each part moved, which parameters it had, what was matched.

Written as `report.json` and, for people, `report.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic, write_json
from singalaut.merge.plan import Piece

LAYER = re.compile(r"layers\.(\d+)\.")


class Report:
    """Collects, by output tensor, ‖merged − reference‖ and ‖reference‖.

    The reference is the base, or the first model where there is none.
    """

    def __init__(self, method: str, reference: str):
        self.method, self.reference = method, reference
        self._sums: dict[str, list[float]] = {}

    def add(self, place: str, change: float, size: float) -> None:
        """Add a block's sums of squares."""
        sums = self._sums.setdefault(place, [0.0, 0.0])
        sums[0] += change
        sums[1] += size

    def rows(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """One row for each tensor whose change was measured, in the order of `pieces`."""
        return [
            {
                "tensor": piece.place,
                "method": piece.method,
                "change": round(_ratio(*self._sums[piece.place]), 8),
                "models": [dict(model) for model in piece.chosen.models],
                **piece.chosen.shared,
            }
            for piece in pieces
            if piece.place in self._sums
        ]

    def write(
        self, folder: Path, pieces: Sequence[Piece], names: Sequence[str], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write both files; returns what belongs into the manifest."""
        rows = self.rows(pieces)
        groups: dict[str, list[float]] = {}
        for place, (change, size) in self._sums.items():
            sums = groups.setdefault(_group(place), [0.0, 0.0])
            sums[0] += change
            sums[1] += size
        total = [sum(column) for column in zip(*self._sums.values(), strict=True)] or [0.0, 0.0]
        summary = {
            "method": self.method,
            "models": list(names),
            "reference": self.reference,
            "change": round(_ratio(*total), 8),
            **facts,
        }
        parts = {group: round(_ratio(*sums), 8) for group, sums in groups.items()}
        write_json(folder / "report.json", {**summary, "parts": parts, "tensors": rows})
        write_atomic(folder / "report.md", _markdown(summary, parts).encode())
        return summary


def _ratio(change: float, size: float) -> float:
    return (change / size) ** 0.5 if size else 0.0


def _group(place: str) -> str:
    match = LAYER.search(place)
    tower = "vision layer" if "vision_tower" in place else "layer"
    return f"{tower} {match[1]}" if match else place


def _markdown(summary: Mapping[str, Any], parts: Mapping[str, float]) -> str:
    def order(group: str) -> tuple[int, int, str]:
        number = re.search(r"(\d+)$", group)
        return (1, int(number[1]), group) if number else (0, 0, group)

    widest = max(parts.values(), default=0.0) or 1.0
    lines = [
        f"# Merge by `{summary['method']}`",
        "",
        f"Models: {', '.join(f'`{name}`' for name in summary['models'])}. Change is the length of "
        f"merged − `{summary['reference']}` over the length of `{summary['reference']}`; "
        f"{summary['change']:.5f} over all weights.",
        "",
        "| part | change | |",
        "|---|---|---|",
    ]
    for group in sorted(parts, key=order):
        bar = "█" * round(20 * parts[group] / widest)
        lines.append(f"| {group} | {parts[group]:.5f} | {bar} |")
    vocabulary = summary.get("vocabulary")
    if vocabulary:
        lines += [
            "",
            "## Vocabulary",
            "",
            f"{vocabulary['tokens']} tokens, {vocabulary['rows']} rows.",
        ]
        for title, key in (
            ("without a row for", "tokens_without_a_row"),
            ("lost", "dropped_tokens"),
        ):
            for entry in vocabulary[key]:
                if entry["count"]:
                    shown = ", ".join(f"`{token}`" for token in entry["examples"])
                    lines.append(f"- `{entry['model']}`, {title} {entry['count']} tokens: {shown}")
    return "\n".join(lines) + "\n"
