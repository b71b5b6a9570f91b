"""The pool that is chosen from and the rows of each target, as token stores."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from singalaut.data.cache import cached_store, open_store, stored_in
from singalaut.data.store import Store
from singalaut.errors import DataError
from singalaut.select.config import SelectConfig

log = logging.getLogger("singalaut")


@dataclass(frozen=True)
class Rows:
    """Documents of a store that can be used."""

    name: str
    store: Store
    documents: np.ndarray


@dataclass(frozen=True)
class Material:
    pool: Rows
    targets: tuple[Rows, ...]


def open_material(
    config: SelectConfig,
    model: Path,
    data: Sequence[Path | None],
    targets: Sequence[Path | None],
    prepared: Path | None,
) -> Material:
    """Tokenise or open the pool and all targets; what cannot be used is counted in the log.

    Raises: DataError where the pool or a target has no row that can be used.
    """
    if prepared is None:
        prepared = stored_in(data)
    if prepared is None:
        store = cached_store(config.data, data, model, config.max_tokens)
    else:
        store = open_store(prepared, model)
    stores: Mapping[str, Store] = {
        target.name: cached_store((target.data,), [place], model, config.max_tokens)
        for target, place in zip(config.targets, targets, strict=True)
    }
    rows = tuple(_rows(name, found, config.max_tokens) for name, found in stores.items())
    return Material(_rows("pool", store, config.max_tokens), rows)


def _rows(name: str, store: Store, max_tokens: int) -> Rows:
    documents = store.documents
    too_long, seen = documents["tokens"] > max_tokens, documents["pictures"] > 0
    left = np.flatnonzero(~too_long & ~seen)
    for what, found in (("longer than `max_tokens`", too_long), ("with pictures", seen)):
        if found.any():
            log.warning("%s: %d conversations left out: %s", name, found.sum(), what)
    if not len(left):
        raise DataError(f"`{name}` has no conversation that can be used")
    return Rows(name, store, left)
