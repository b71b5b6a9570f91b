"""Pages that need nothing else: one file of HTML, without scripts, in light and dark.

What stands on a page is its maker's business; here are the frame, the style and tables. Every text
that comes from outside goes through `escape` here or in the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

# fonts that systems have for scripts which the general ones lack; whichever is there is taken
FONTS = (
    '"Noto Sans", "Noto Sans Thai", "Noto Sans Lao", "Noto Sans Khmer", "Noto Sans Myanmar", '
    '"Noto Sans Tamil", "Noto Sans SC", "Leelawadee UI", "Myanmar Text", "Nirmala UI", '
    '"Khmer UI", "Lao UI", "Thonburi", "Khmer Sangam MN", "Lao Sangam MN", "Myanmar Sangam MN", '
    '"Tamil Sangam MN", "PingFang SC", "Microsoft YaHei"'
)
STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6777; --line: #d0d5dd; --paper: #fff;
  --box: #f4f6f8; --good: #0b6e4f; --warn: #b7791f; --bad: #b3402a; --faint: #a9cfc1;
  --c0: #1d6fb8; --c1: #c2410c; --c2: #0b7a55; --c3: #7c3aed; --c4: #b7791f; --c5: #be185d;
  --c6: #0e7490; --c7: #57734a; --c8: #8a5a44; --c9: #4c63b6; --c10: #707a8a; --c11: #a21caf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b5; --line: #3a4658;
  --paper: #12161d; --box: #1b222c; --good: #34d399; --warn: #e0b04a; --bad: #f0826b;
  --faint: #3d6b5b; --c0: #6cb2f0; --c1: #fb923c; --c2: #4ade80; --c3: #b79cff; --c4: #e0b04a;
  --c5: #f472b6; --c6: #4fd1e0; --c7: #a3c592; --c8: #d6a58c; --c9: #9fb1ff; --c10: #a8b2c0;
  --c11: #e07af0; } }
body { font: 15px/1.55 system-ui, FONTS, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em } h3 { font-size: 1em; margin: 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2em .9em .2em 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line) }
td.n, th.n { text-align: right } tr.best td { color: var(--bad); font-weight: 600 }
tr.front td:first-child { color: var(--good) }
.scroll { overflow-x: auto } .small { color: var(--soft); font-size: .9em }
svg { max-width: 100%; height: auto } svg text { font-size: 12px; fill: var(--soft) }
svg text.label { fill: var(--ink) }
.grid { display: grid; gap: 1.2em; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)) }
figure { margin: 0 } figcaption { font-size: .9em }
.key { display: inline-block; margin-right: 1em; white-space: nowrap }
.key::before { content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .35em;
  border-radius: 2px; background: var(--of) }
details { margin: .4em 0 } summary { cursor: pointer }
code { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9em }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; line-height: 1.75;
  background: var(--box); border-radius: .4em; padding: .5em .8em; margin: .3em 0;
  max-height: 24em; overflow-y: auto }
.bar { background: var(--line); border-radius: .3em; height: .5em; max-width: 30em }
.bar > div { background: var(--good); border-radius: .3em; height: 100% }
""".replace("FONTS", FONTS)


def document(title: str, parts: Sequence[str], *, head: str = "") -> str:
    """The whole page; `head` is more for its head. Parts that are empty are left out."""
    lines = [
        "<!doctype html>",
        "<html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"{head}<title>{escape(title)}</title><style>{STYLE}</style>",
        *filter(None, parts),
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], classes: Mapping[int, str] | None = None
) -> str:
    """A table that scrolls where it is wide; whole numbers, and floats, stand on the right.

    `classes` names the rows, by number, that look different.
    """
    numeric = [
        bool(rows) and all(isinstance(row[column], int | float | None) for row in rows)
        for column in range(len(head))
    ]

    def cell(value: Any, tag: str, right: bool) -> str:
        return f"<{tag}{' class=n' if right else ''}>{escape(_shown(value))}</{tag}>"

    lines = ["<tr>" + "".join(map(cell, head, ["th"] * len(head), numeric)) + "</tr>"]
    for number, row in enumerate(rows):
        name = (classes or {}).get(number, "")
        opening = f"<tr class={name}>" if name else "<tr>"
        lines.append(opening + "".join(map(cell, row, ["td"] * len(row), numeric)) + "</tr>")
    return "<div class=scroll><table>" + "".join(lines) + "</table></div>"


def keys(names: Sequence[str], colours: Sequence[str]) -> str:
    """What the colours of a drawing stand for."""
    items = (
        f"<span class=key style='--of: {colour}'>{escape(name)}</span>"
        for name, colour in zip(names, colours, strict=True)
    )
    return "<p class=small>" + "".join(items) + "</p>"


def text_block(text: str) -> str:
    """A text as it was written, in any script."""
    return f"<div class=text dir=auto>{escape(text)}</div>"


def folded(summary: str, inner: str, *, opened: bool = False) -> str:
    """A part of the page that opens at a click."""
    attribute = " open" if opened else ""
    return f"<details{attribute}><summary>{escape(summary)}</summary>{inner}</details>"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
