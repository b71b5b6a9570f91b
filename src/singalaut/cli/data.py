"""Commands that look at prepared data: data report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from singalaut.cli.recipes import JsonOption


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a stage `prepare`.")],
    as_json: JsonOption = False,
) -> None:
    """Show what became of the rows: kept, left out and why; names the page of plots."""
    from singalaut.cli import show
    from singalaut.data.report import read_report, reasons

    found = read_report(folder)
    if as_json:
        print(show.as_json(found))
        return
    print(show.table([_line(source) for source in found["sources"]]))
    if left_out := reasons(found):
        print(f"\n{show.table(left_out)}")
    print(f"\n{show.table(found['languages'])}")
    print(f"\nplots and examples: {folder / 'report' / 'report.html'}")


def _line(source: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": source["name"],
        "rows": source["rows"],
        "kept": source["kept"],
        "left out": source["rows"] - source["kept"],
        "shortened": source["cut"],
        "joined": source["joined"],
        "tokens": source["tokens"],
        "learned": source["learned"],
    }
