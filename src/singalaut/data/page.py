"""The report on prepared data as one page of plots that needs nothing else: HTML and SVG."""

from __future__ import annotations

from html import escape
from typing import Any

from singalaut.data.report import reasons
from singalaut.page.html import document, table
from singalaut.page.plots import FAINT, FAULT, KEPT, LEFT_OUT, bars, histogram


def page(report: dict[str, Any], title: str) -> str:
    """The whole page as HTML."""
    sources = sorted(report["sources"], key=lambda s: -s["rows"])
    languages = sorted(report["languages"], key=lambda entry: -entry["tokens"])
    left_out = report["rows"] - report["kept"]
    lengths, similar = report["lengths"], report["similarity"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{report['rows']:,} rows in, {report['kept']:,} kept, {left_out:,} left out; "
        f"{report['tokens']:,} tokens, {report['learned']:,} of them learned; "
        f"{report['cut']:,} rows were shortened, "
        f"in {report['joined']:,} turns of one role were joined.</p>",
        "<h2>Sources</h2>",
        f'<p class="small">Rows: <b style="color:{KEPT}">kept</b>, '
        f'<b style="color:{LEFT_OUT}">left out</b>, <b style="color:{FAULT}">unusable</b>.</p>',
        bars([(s["name"], _shares(s)) for s in sources], (KEPT, LEFT_OUT, FAULT)),
        "<h2>Languages</h2>",
        '<p class="small">Tokens; the dark part is learned.</p>',
        bars(
            [
                (entry["language"], (entry["learned"], entry["tokens"] - entry["learned"]))
                for entry in languages
            ],
            (KEPT, FAINT),
        ),
        "<h2>Lengths</h2>",
        histogram(lengths["edges"], lengths["rows"], "tokens in a conversation"),
    ]
    if sum(similar["rows"]):
        edges = [f"{edge:g}" for edge in similar["edges"]]
        parts += [
            "<h2>Near-duplicates</h2>",
            histogram(edges, similar["rows"], "share of runs of tokens in common"),
        ]
    if report["language_check"]:
        parts += ["<h2>Languages declared and found</h2>", _language_table(report)]
    parts += ["<h2>Left out</h2>", _reason_table(report), *_examples(report), _lost(report)]
    return document(title, parts)


def _shares(source: dict[str, Any]) -> tuple[int, int, int]:
    faults = sum(r["rows"] for r in source["reasons"] if r["is_fault"])
    return source["kept"], source["rows"] - source["kept"] - faults, faults


def _reason_table(report: dict[str, Any]) -> str:
    rows = [(entry["source"], entry["reason"], entry["rows"]) for entry in reasons(report)]
    return table(("source", "why", "rows"), rows) if rows else "<p>Nothing.</p>"


def _language_table(report: dict[str, Any]) -> str:
    rows = sorted(report["language_check"], key=lambda entry: -entry[2])[:60]
    return table(("declared", "found", "rows"), rows)


def _examples(report: dict[str, Any]) -> list[str]:
    blocks = []
    for source in report["sources"]:
        for reason in source["reasons"]:
            items = "".join(
                f"<li>{escape(e['file'])}, row {e['row']:,}: {escape(e['detail'])}"
                f"<br><code>{escape(e['excerpt'])}</code></li>"
                for e in reason["examples"]
            )
            head = f"{escape(source['name'])}: {escape(reason['what'])} ({reason['rows']:,})"
            blocks.append(f"<details><summary>{head}</summary><ul>{items}</ul></details>")
    return blocks


def _lost(report: dict[str, Any]) -> str:
    rows = [
        (source["name"], lost["file"], lost["why"], lost["bytes"])
        for source in report["sources"]
        for lost in source["lost"]
    ]
    if not rows:
        return ""
    return "<h2>Could not be read</h2>" + table(("source", "file", "why", "bytes"), rows)
