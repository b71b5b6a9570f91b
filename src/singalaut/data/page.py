"""The report on prepared data as one page of plots that needs nothing else: HTML and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from singalaut.data.report import reasons

WIDTH, LABEL, ROW = 720, 190, 22
KEPT, LEFT_OUT, FAULT = "#2a7f62", "#c9a227", "#b3402a"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .2em .8em .2em 0; text-align: left;
        vertical-align: top; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
svg text { font-size: 12px; fill: #222 } details { margin: .4em 0 } .small { color: #666 }
code { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9em }
"""


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
            (KEPT, "#a9cfc1"),
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
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    return (
        f"<!doctype html>\n<html lang=en>{head}\n" + "\n".join(filter(None, parts)) + "\n</html>\n"
    )


def bars(rows: Sequence[tuple[str, Sequence[int]]], colours: Sequence[str]) -> str:
    """Horizontal bars of parts, each with its sum."""
    largest = max((sum(values) for _, values in rows), default=0) or 1
    room = WIDTH - LABEL - 90
    lines = []
    for number, (label, values) in enumerate(rows):
        top, left = number * ROW, float(LABEL)
        lines.append(
            f'<text x="{LABEL - 8}" y="{top + 15}" text-anchor="end">{escape(label[:28])}</text>'
        )
        for value, colour in zip(values, colours, strict=True):
            width = room * value / largest
            lines.append(
                f'<rect x="{left:.1f}" y="{top + 3}" width="{width:.1f}" height="{ROW - 6}" '
                f'fill="{colour}"><title>{value:,}</title></rect>'
            )
            left += width
        lines.append(f'<text x="{left + 6:.1f}" y="{top + 15}">{sum(values):,}</text>')
    return _svg(len(rows) * ROW, lines)


def histogram(edges: Sequence[Any], counts: Sequence[int], axis: str) -> str:
    """Upright bars between edges."""
    if not counts:
        return ""
    height, largest = 160, max(counts) or 1
    width = (WIDTH - 20) / len(counts)
    step = -(-len(counts) // 12)
    lines = []
    for number, count in enumerate(counts):
        tall = height * count / largest
        left = 10 + number * width
        lines.append(
            f'<rect x="{left:.1f}" y="{10 + height - tall:.1f}" width="{width - 1:.1f}" '
            f'height="{tall:.1f}" fill="{KEPT}"><title>{edges[number]}–{edges[number + 1]}: '
            f"{count:,}</title></rect>"
        )
        if number % step == 0:
            lines.append(f'<text x="{left:.1f}" y="{height + 26}">{edges[number]}</text>')
    lines.append(f'<text x="{WIDTH / 2}" y="{height + 46}" text-anchor="middle">{axis}</text>')
    return _svg(height + 52, lines)


def _svg(height: int, lines: Sequence[str]) -> str:
    box = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'<svg {box} role="img">{"".join(lines)}</svg>'


def _shares(source: dict[str, Any]) -> tuple[int, int, int]:
    faults = sum(r["rows"] for r in source["reasons"] if r["is_fault"])
    return source["kept"], source["rows"] - source["kept"] - faults, faults


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(value: Any, tag: str) -> str:
        if isinstance(value, int):
            return f'<{tag} class="n">{value:,}</{tag}>'
        return f"<{tag}>{escape(str(value))}</{tag}>"

    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    lines += ["<tr>" + "".join(cell(value, "td") for value in row) + "</tr>" for row in rows]
    return "<table>" + "".join(lines) + "</table>"


def _reason_table(report: dict[str, Any]) -> str:
    rows = [(entry["source"], entry["reason"], entry["rows"]) for entry in reasons(report)]
    return _table(("source", "why", "rows"), rows) if rows else "<p>Nothing.</p>"


def _language_table(report: dict[str, Any]) -> str:
    rows = sorted(report["language_check"], key=lambda entry: -entry[2])[:60]
    return _table(("declared", "found", "rows"), rows)


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
    return "<h2>Could not be read</h2>" + _table(("source", "file", "why", "bytes"), rows)
