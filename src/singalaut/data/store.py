"""The token store: conversations as tokens on disk, mapped into memory, ready to be packed.

```
data/
  store.json            what it holds and what made it: sources, languages, tokenizer, template
  documents.npy         one record a document (DOCUMENT), in the order of the sources
  tokens-000012.bin     tokens of one piece, documents end to end; 32 bits each, little-endian,
                        the top bit set where the token is learned
  pictures-000012.bin   image files of one piece, end to end, as they were in the rows
  pictures.npy          where each picture lies (PICTURE), in the order of the documents
  dropped.npy           each row that was left out, and the number of its reason (DROPPED)
```

A store is never changed. How it is made is `seal.py`'s business; in which order it is read,
`mix.py`'s and `pack.py`'s.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from singalaut.errors import DataError

FORMAT = 1
OPEN_FILES = 512  # memory maps that are kept open
DOCUMENT = np.dtype(
    [
        ("piece", "<u4"),
        ("start", "<u8"),  # in tokens, from the beginning of the piece's file
        ("tokens", "<u4"),
        ("learned", "<u4"),
        ("source", "<u2"),
        ("language", "<u2"),
        ("row", "<u8"),  # of the source, from 1
        ("picture", "<u8"),  # the first of its pictures
        ("pictures", "<u4"),
    ]
)
PICTURE = np.dtype([("piece", "<u4"), ("start", "<u8"), ("bytes", "<u8")])
DROPPED = np.dtype([("source", "<u2"), ("reason", "<u2"), ("row", "<u8")])


class StoredSource(NamedTuple):
    """A source as the store knows it; `weight` and `limit` are what mixtures begin with."""

    name: str
    weight: float
    limit: int | None
    documents: int
    tokens: int


@dataclass(frozen=True)
class Store:
    """A store opened for reading; cheap to open, and nothing is read before it is asked for."""

    folder: Path
    about: dict[str, Any]
    documents: np.ndarray
    _maps: OrderedDict[str, np.ndarray]

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Raises: DataError for a folder that is no store, or whose files are not whole."""
        try:
            about = json.loads((folder / "store.json").read_bytes())
            documents = np.load(folder / "documents.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            hint = "make one with `singalaut prepare`"
            raise DataError(f"this is no token store: {error}", where=folder, hint=hint) from error
        if about.get("format") != FORMAT or documents.dtype != DOCUMENT:
            raise DataError(
                f"the store has format {about.get('format')}, this version reads {FORMAT}",
                where=folder,
                hint="prepare it again",
            )
        for piece, size in about["token_bytes"].items():
            file = folder / token_file(int(piece))
            if not file.exists() or file.stat().st_size != size:
                raise DataError("a file of the store is missing or cut short", where=file)
        return cls(folder, about, documents, OrderedDict())

    @property
    def sources(self) -> list[StoredSource]:
        """The sources, by the numbers that documents have."""
        return [StoredSource(**source) for source in self.about["sources"]]

    @property
    def languages(self) -> list[str]:
        """The languages, by the numbers that documents have."""
        return list(self.about["languages"])

    def __len__(self) -> int:
        return len(self.documents)

    def words(self, document: int) -> np.ndarray:
        """The tokens of a document with the bit that says which are learned, [T], uint32."""
        record = self.documents[document]
        start = int(record["start"])
        return self._map(token_file(int(record["piece"])), "<u4")[
            start : start + int(record["tokens"])
        ]

    def pictures(self, document: int) -> list[bytes]:
        """The image files of a document, in the order of its images."""
        record = self.documents[document]
        first, count = int(record["picture"]), int(record["pictures"])
        if not count:
            return []
        table = np.load(self.folder / "pictures.npy", mmap_mode="r", allow_pickle=False)
        found = []
        for piece, start, size in table[first : first + count].tolist():
            found.append(self._map(picture_file(piece), "u1")[start : start + size].tobytes())
        return found

    def _map(self, name: str, dtype: str) -> np.ndarray:
        if name in self._maps:
            self._maps.move_to_end(name)
            return self._maps[name]
        while len(self._maps) >= OPEN_FILES:
            self._maps.popitem(last=False)
        self._maps[name] = np.memmap(self.folder / name, dtype=dtype, mode="r")
        return self._maps[name]


def token_file(piece: int) -> str:
    return f"tokens-{piece:06d}.bin"


def picture_file(piece: int) -> str:
    return f"pictures-{piece:06d}.bin"
