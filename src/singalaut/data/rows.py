"""Rows to samples: the shape of a row, its provenance, its images.

How files become rows is `readers.py`'s business, what the shapes are `shapes.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from singalaut.contracts import Sample
from singalaut.data.row_images import with_images
from singalaut.data.shapes import (
    Content,
    Row,
    Shape,
    preference,
    prompt_and_answer,
    shape_of,
    turns_of,
)
from singalaut.errors import DataError
from singalaut.text.languages import LANGUAGES

LANGUAGE_COLUMNS = ("language", "lang", "langdetect")
LICENCE_COLUMNS = ("licence", "license")
IMAGE_COLUMNS = ("images", "image")
OTHER_COLUMNS = (*LANGUAGE_COLUMNS, *LICENCE_COLUMNS, *IMAGE_COLUMNS, "id", "source", "tools")
REMEMBERED_SHAPES = 1000
OTHER_CODES = {
    **{"eng": "en", "ind": "id", "khm": "km", "lao": "lo", "msa": "ms", "zsm": "ms", "may": "ms"},
    **{"mya": "my", "bur": "my", "tam": "ta", "tha": "th", "fil": "tl", "tgl": "tl", "vie": "vi"},
    **{"zho": "zh", "cmn": "zh", "chi": "zh"},
    **{language.name.lower(): code for code, language in LANGUAGES.items()},
}


@dataclass
class RowReader:
    """Reads the rows of one source; `columns` says which columns hold what, where they are odd.

    `name`, `language` and `licence` are for rows that do not say; `folder` is where the paths of
    images begin.
    """

    name: str
    language: str | None = None
    licence: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    _shapes: dict[tuple[str, ...], tuple[Shape, tuple[str, ...]]] = field(
        default_factory=dict, repr=False
    )

    def read(self, row: Any, number: int) -> Sample:
        """The sample that a row is; `number` names it where it has no `id`.

        Raises: DataError saying why it is none.
        """
        if not isinstance(row, dict):
            raise DataError(f"the row is {type(row).__name__}, not a table")
        shape, others = self._shape(row)
        content = shape.read(row)
        images = next((row[c] for c in self._named("images", IMAGE_COLUMNS) if row.get(c)), None)
        messages = content.messages
        if images or any(isinstance(m.content, list) for m in messages):
            messages = with_images(messages, images, self.folder)
        id_, source = row.get(self.columns.get("id", "id")), self._text(row, "source", ("source",))
        return Sample(
            messages=messages,
            id=f"{self.name}:{number}" if id_ is None else str(id_),
            language=self._language(row),
            source=source or self.name,
            licence=self._text(row, "licence", LICENCE_COLUMNS) or self.licence,
            tools=_tools(row.get(self.columns.get("tools", "tools"))),
            rejected=content.rejected,
            reference=content.reference,
            constraints=content.constraints,
            meta={column: row[column] for column in others},
        )

    def _shape(self, row: Row) -> tuple[Shape, tuple[str, ...]]:
        """The shape of a row, and the columns that nothing else reads."""
        names = tuple(row)
        found = self._shapes.get(names)
        if found is None:
            if len(self._shapes) >= REMEMBERED_SHAPES:
                self._shapes.clear()
            shape = mapped_shape(self.columns) or shape_of(names)
            missing = [column for column in shape.columns if column not in row]
            if missing:
                raise DataError(f"no column `{missing[0]}` (found: `{', '.join(names)[:100]}`)")
            known = {*shape.columns, *shape.optional, *self.columns.values(), *OTHER_COLUMNS}
            found = (shape, tuple(name for name in names if name not in known))
            self._shapes[names] = found
        return found

    def _named(self, what: str, usual: tuple[str, ...]) -> tuple[str, ...]:
        return (self.columns[what],) if what in self.columns else usual

    def _text(self, row: Row, what: str, usual: tuple[str, ...]) -> str | None:
        for column in self._named(what, usual):
            value = row.get(column)
            if value is not None:
                if not isinstance(value, str):
                    shown = json.dumps(value, default=str)[:60]
                    raise DataError(f"`{column}` is `{shown}`, a text is needed")
                return value
        return None

    def _language(self, row: Row) -> str | None:
        code = self._text(row, "language", LANGUAGE_COLUMNS)
        return language_code(code) if code else self.language


def language_code(text: str) -> str:
    """A code such as `th` for what rows call a language: `tha_Thai`, `Thai`, `th-TH`."""
    word = text.strip().lower()
    short = word.replace("_", "-").split("-")[0]
    return OTHER_CODES.get(word) or OTHER_CODES.get(short) or short


def mapped_shape(columns: Mapping[str, str]) -> Shape | None:
    """The shape that a user's naming of columns describes; None where it names no content."""
    if "messages" in columns:
        name = columns["messages"]
        return Shape("mapped", (name,), lambda row: Content(turns_of(row[name], name)))
    prompt, system = columns.get("prompt", "prompt"), columns.get("system")
    reference = columns.get("reference")
    if "chosen" in columns or "rejected" in columns:
        chosen, rejected = columns.get("chosen", "chosen"), columns.get("rejected", "rejected")
        return Shape(
            "mapped", (chosen, rejected), lambda row: preference(row, prompt, chosen, rejected)
        )
    if "prompt" in columns or "answer" in columns:
        answer = columns.get("answer", "answer")

        def read(row: Row) -> Content:
            content = prompt_and_answer(row, prompt, answer, system)
            value = row.get(reference) if reference else None
            return content._replace(reference=None if value is None else str(value))

        return Shape("mapped", (prompt, answer), read)
    return None


def _tools(value: Any) -> list[dict[str, Any]]:
    if not value:
        return []
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        tools = None
    if not isinstance(tools, list):
        raise DataError("the `tools` of a row are no list")
    return tools
