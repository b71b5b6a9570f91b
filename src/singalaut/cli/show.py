"""Tables and results as plain text, readable without colour."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from singalaut.artifact import Artifact

ODDITIES = ("unextractable", "wrong_language", "truncated")  # told with every score


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns, headed by the keys of the first row; numbers stand on the right."""
    if not rows:
        return ""
    heads = list(rows[0])
    cells = [heads, *([_text(row[head]) for head in heads] for row in rows)]
    widths = [max(_width(line[column]) for line in cells) for column in range(len(heads))]
    numeric = [all(isinstance(row[head], int | float | None) for row in rows) for head in heads]
    lines = []
    for line in cells:
        padded = (_pad(*entry) for entry in zip(line, widths, numeric, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def results(evaluation: Path) -> str:
    """The results of an evaluation: a column for each model, with the share of answers found."""
    from singalaut.evals.output import cell_text, load_results, oddity_shares

    found = load_results(evaluation)
    rows = []
    for row in found["rows"]:
        line = {"": row["name"], "metric": row["metric"], "n": row["n"]}
        for model in found["models"]:
            line[model] = cell_text(row["scores"][model], row["extracted"][model])
        rows.append(line)
    legend = "score (share of answers that could be extracted)"
    lines = []
    for name, model in found["models"].items():
        shares = oddity_shares(model)
        odds = [*ODDITIES, *(["failed"] if "failed" in shares else [])]
        told = (f"{100 * shares.get(odd, 0.0):.1f} % {odd.replace('_', ' ')}" for odd in odds)
        lines.append(f"{name}: {', '.join(told)}")
        lines += [
            f"{name}: {100 * share:.1f} % {odd.replace('_', ' ')}"
            for odd, share in shares.items()
            if odd.startswith("of judgements")
        ]
    return "\n".join([table(rows), legend, *lines])


def outputs(artifacts: Sequence[Artifact]) -> str:
    """Where the result of every stage lies."""
    from singalaut.recipe.plan import shown

    return table([{"stage": a.manifest["stage"], "output": shown(a.path)} for a in artifacts])


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _width(text: str) -> int:
    """Columns that the text takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    marks = sum(unicodedata.category(letter) in ("Mn", "Me", "Cf") for letter in text)
    return len(text) + wide - marks


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
