"""Where each key of a TOML text stands, so that a complaint can name the line.

Reads text that `tomllib` has accepted, so it only has to find keys, not to judge the syntax.
"""

from __future__ import annotations

import re
import tomllib

KeyPath = tuple[str | int, ...]
BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
KEY_PART = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_-]+')
STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL
)
PLAIN = re.compile(r"[^,\]}#\n]+")  # numbers, dates, true and false


def key_lines(text: str) -> dict[KeyPath, int]:
    """Line, counted from 1, of every key and list entry of a valid TOML text."""
    return _Scanner(text).document()


class _Scanner:
    def __init__(self, text: str):
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.tables: dict[KeyPath, int] = {}  # how many `[[path]]` there have been

    def document(self) -> dict[KeyPath, int]:
        prefix: KeyPath = ()
        while self._next():
            if self.text.startswith("[[", self.at):
                prefix = self._table_of_list()
            elif self._next() == "[":
                self.at += 1
                prefix = self._known(self._dotted_key())
                self._record(prefix)
                self._skip("]")
            else:
                self._pair(prefix)
        return self.lines

    def _table_of_list(self) -> KeyPath:
        self.at += 2
        names = self._dotted_key()
        path = (*self._known(names[:-1]), names[-1])
        count = self.tables.get(path, 0)
        self.tables[path] = count + 1
        self._record((*path, count))
        self._skip("]")
        self._skip("]")
        return (*path, count)

    def _known(self, names: list[str]) -> KeyPath:
        """A header's names as a path: a name of a list of tables means its last table."""
        path: KeyPath = ()
        for name in names:
            path = (*path, name)
            if path in self.tables:
                path = (*path, self.tables[path] - 1)
        return path

    def _pair(self, prefix: KeyPath) -> None:
        path = (*prefix, *self._dotted_key())
        self._record(path)
        self._skip("=")
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        opening = self._next()
        if opening not in ("[", "{"):
            self.at = self._match(STRING if opening in ("'", '"') else PLAIN).end()
            return
        closing = "]" if opening == "[" else "}"
        self.at += 1
        count = 0
        while self._next() != closing:
            if opening == "{":
                self._pair(path)
            else:
                self._record((*path, count))
                self._value((*path, count))
            count += 1
            if self._next() == ",":
                self.at += 1
        self.at += 1

    def _dotted_key(self) -> list[str]:
        names = []
        while True:
            self._next()
            part = self._match(KEY_PART)
            self.at = part.end()
            quoted = part.group()[0] in ("'", '"')
            names.append(tomllib.loads(f"key = {part.group()}")["key"] if quoted else part.group())
            if self._next() != ".":
                return names
            self.at += 1

    def _record(self, path: KeyPath) -> None:
        line = self.text.count("\n", 0, self.at) + 1
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def _next(self) -> str:
        """The next character that is neither space nor comment; empty at the end."""
        self.at = self._match(BLANK).end()
        return self.text[self.at : self.at + 1]

    def _skip(self, character: str) -> None:
        assert self._next() == character
        self.at += 1

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        assert found is not None
        return found
