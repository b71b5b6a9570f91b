"""A store of some documents of another one, in the order that is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from singalaut.artifact import write_json
from singalaut.data.store import DOCUMENT, DROPPED, PICTURE, Store, picture_file, token_file


def write_subset(store: Store, documents: Sequence[int], out: Path) -> None:
    """Write the documents as a store of their own; rows keep the numbers they have in the pool."""
    out.mkdir(parents=True, exist_ok=True)
    records = np.array(store.documents[list(documents)], dtype=DOCUMENT)
    records["piece"] = 0
    pictures: list[tuple[int, int, int]] = []
    start = picture_start = 0
    with (out / token_file(0)).open("wb") as tokens, (out / picture_file(0)).open("wb") as images:
        for place, document in enumerate(documents):
            words = store.words(document)
            records["start"][place], records["picture"][place] = start, len(pictures)
            tokens.write(np.ascontiguousarray(words).tobytes())
            start += len(words)
            for picture in store.pictures(document):
                pictures.append((0, picture_start, len(picture)))
                images.write(picture)
                picture_start += len(picture)
    if not pictures:
        (out / picture_file(0)).unlink()
    np.save(out / "documents.npy", records)
    np.save(out / "pictures.npy", np.array(pictures, dtype=PICTURE))
    np.save(out / "dropped.npy", np.zeros(0, dtype=DROPPED))
    write_json(out / "store.json", _about(store, records, (out / token_file(0)).stat().st_size))


def _about(store: Store, records: np.ndarray, size: int) -> dict[str, Any]:
    sources = []
    for number, source in enumerate(store.about["sources"]):
        own = records[records["source"] == number]
        tokens = int(own["tokens"].sum(dtype=np.int64))
        sources.append({**source, "documents": len(own), "tokens": tokens})
    return {
        **store.about,
        "documents": len(records),
        "tokens": int(records["tokens"].sum(dtype=np.int64)),
        "learned": int(records["learned"].sum(dtype=np.int64)),
        "longest": int(records["tokens"].max(initial=0)),
        "reasons": [],
        "provenance": _provenance(store, records),
        "token_bytes": {"0": size},
        "sources": sources,
    }


def _provenance(store: Store, records: np.ndarray) -> list[dict[str, Any]]:
    """Rows by source and language; a licence is that of the pool's rows of the language."""
    pairs, counts = np.unique(
        np.stack([records["source"], records["language"]], 1), axis=0, return_counts=True
    )
    entries = []
    for (source, language), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        code = store.languages[language]
        licences = {
            entry["licence"] for entry in store.about["provenance"] if entry["language"] == code
        }
        entries.append(
            {
                "source": store.sources[source].name,
                "language": code,
                "licence": " / ".join(sorted(licences)) or "unknown",
                "rows": count,
            }
        )
    return entries
