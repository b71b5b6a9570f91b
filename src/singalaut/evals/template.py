"""Prompts with fields: parsed once, filled many times.

Two notations are read: that of Python's `str.format`, which official task files use, and that of
our own task files, where only `{name}` is a field and any other brace stands for itself. What a
field is filled with is never read for fields again.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Template:
    """A text with fields; `fields` are their names in order of first use."""

    __slots__ = ("_parts", "_slots", "fields", "text")

    def __init__(self, text: str, pieces: list[tuple[str, str | None]]):
        """`pieces` are literal texts, each with the field that follows it or None."""
        self.text = text
        self._parts: list[str] = []
        self._slots: list[tuple[int, str]] = []
        for literal, name in pieces:
            self._parts.append(literal)
            if name is not None:
                self._slots.append((len(self._parts), name))
                self._parts.append("")
        self.fields = tuple(dict.fromkeys(name for _, name in self._slots))

    @classmethod
    def literal(cls, text: str) -> Template:
        """A text without fields, whatever braces it has."""
        return cls(text, [(text, None)])

    @classmethod
    def plain(cls, text: str) -> Template:
        """Read our own notation: `{name}` is a field, other braces are text."""
        cut = FIELD.split(text)
        return cls(text, list(zip(cut[0::2], [*cut[1::2], None], strict=True)))

    @classmethod
    def formatted(cls, text: str) -> Template:
        """Read the notation of `str.format`, with named fields alone.

        Raises: ValueError for a brace that stands alone, a position or a conversion.
        """
        pieces: list[tuple[str, str | None]] = []
        for literal, name, form, conversion in string.Formatter().parse(text):
            if name is not None and (form or conversion or not name.isidentifier()):
                raise ValueError(f"`{{{name}}}` is more than the name of a field")
            pieces.append((literal, name))
        return cls(text, pieces)

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with every field replaced. Raises: KeyError for a field without a value."""
        if not self._slots:
            return "".join(self._parts)
        parts = self._parts.copy()
        for place, name in self._slots:
            parts[place] = values[name]
        return "".join(parts)

    def partly(self, values: Mapping[str, str]) -> Template:
        """The template with those fields filled that have a value."""
        pieces: list[tuple[str, str | None]] = []
        names = dict(self._slots)
        literal = ""
        for place, part in enumerate(self._parts):
            name = names.get(place)
            if name is None:
                literal += part
            elif name in values:
                literal += values[name]
            else:
                pieces.append((literal, name))
                literal = ""
        return Template(self.text, [*pieces, (literal, None)])


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The values as `str.format` would write them."""
    return {name: value if type(value) is str else str(value) for name, value in values.items()}
