"""What training steps are given: conversations or packed rows from a store, as tensors.

Both orders are functions of a mixture and the seed, so that any process can ask for its part of
any step, and a resumed run for the step it was at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from singalaut.data.mix import Mixture, shuffled
from singalaut.data.pack import Packing, best_fit
from singalaut.data.store import Store
from singalaut.errors import DataError
from singalaut.text.conversations import is_learned, token_ids


@dataclass(frozen=True)
class Micro:
    """Conversations laid end to end in one row, to be run in one forward pass."""

    tokens: Tensor
    """[1, T], int64"""
    mask: Tensor
    """[1, T], True where the token is learned; never the first token of a conversation"""
    lengths: tuple[int, ...]
    """Tokens of each conversation; positions and attention begin anew in each."""
    documents: tuple[int, ...] = ()
    """The number of each conversation in the store."""
    sources: tuple[int, ...] = ()
    languages: tuple[int, ...] = ()
    """Number of the source and language of each conversation, as in `Store.sources`."""
    pictures: tuple[bytes, ...] = ()
    """Files of images, in the order of their tokens."""


def lay_out(store: Store, documents: Sequence[int]) -> Micro:
    """The documents end to end as one row."""
    words = [store.words(document) for document in documents]
    flat = np.concatenate(words)
    lengths = [len(part) for part in words]
    mask = is_learned(flat)
    mask[np.cumsum(lengths) - lengths] = False  # nothing of it stands before its first token
    records = store.documents[list(documents)]
    return Micro(
        torch.from_numpy(token_ids(flat).astype(np.int64))[None],
        torch.from_numpy(mask)[None],
        tuple(lengths),
        tuple(documents),
        tuple(records["source"].tolist()),
        tuple(records["language"].tolist()),
        tuple(picture for document in documents for picture in store.pictures(document)),
    )


def micro_batches(store: Store, documents: np.ndarray, max_tokens: int) -> list[Micro]:
    """The documents as rows of at most `max_tokens` tokens, or of one longer document."""
    lengths = store.documents["tokens"][documents]
    rows = [[document] for document in documents[lengths > max_tokens].tolist()]
    short = documents[lengths <= max_tokens]
    packing = best_fit(lengths[lengths <= max_tokens], max_tokens)
    rows += [short[packing.row(number)].tolist() for number in range(packing.num_rows)]
    return [lay_out(store, row) for row in rows]


class PackedBatches(Iterator[list[Micro]]):
    """Batches of packed rows without an end, of which each rank gets its share.

    A pass of the mixture is packed as a whole, and its rows are shuffled. The rows of a batch
    depend on the mixture, `row_tokens` and `rows_in_batch` alone; rank r of `world` gets rows r,
    r + world, … of each. `state()` says where the iteration is, `load_state` goes there.
    """

    def __init__(
        self,
        store: Store,
        mixture: Mixture,
        *,
        row_tokens: int,
        rows_in_batch: int,
        rank: int = 0,
        world: int = 1,
    ):
        """Raises: DataError if ranks cannot share a batch, or a document is longer than a row."""
        if rows_in_batch % world:
            raise DataError(
                f"{rows_in_batch} rows in a batch cannot be shared by {world} processes",
                hint=f"use a multiple of {world}",
            )
        longest = max(int(store.documents["tokens"][group].max()) for group in mixture.groups)
        if longest > row_tokens:
            raise DataError(
                f"the longest conversation has {longest} tokens, a row has {row_tokens}",
                hint="use longer rows, or leave out conversations above their length",
            )
        self._store, self._mixture = store, mixture
        self._row_tokens, self._rows_in_batch = row_tokens, rows_in_batch
        self._rank, self._world = rank, world
        self._pass = self._row = 0
        self._packed: tuple[int, np.ndarray, Packing, np.ndarray] | None = None

    def __next__(self) -> list[Micro]:
        chosen: list[np.ndarray] = []
        while len(chosen) < self._rows_in_batch:
            order, packing, rows = self._pack(self._pass)
            part = rows[self._row : self._row + self._rows_in_batch - len(chosen)]
            chosen += [order[packing.row(row)] for row in part.tolist()]
            self._row += len(part)
            if self._row == len(rows):
                self._pass, self._row = self._pass + 1, 0
        own = chosen[self._rank :: self._world]
        return [lay_out(self._store, documents.tolist()) for documents in own]

    def state(self) -> dict[str, int]:
        """Where the next batch begins; the same on all ranks."""
        return {"pass": self._pass, "row": self._row}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on where `state` was taken, also with another number of ranks."""
        self._pass, self._row = state["pass"], state["row"]

    def rows_in_pass(self, number: int = 0) -> int:
        """How many rows a pass has."""
        return len(self._pack(number)[2])

    def _pack(self, number: int) -> tuple[np.ndarray, Packing, np.ndarray]:
        """The documents of a pass, their packing, and the order of its rows."""
        if self._packed is None or self._packed[0] != number:
            order = self._mixture.order(number)
            packing = best_fit(self._store.documents["tokens"][order], self._row_tokens)
            rows = shuffled(np.arange(packing.num_rows), self._mixture.seed, "rows", number)
            self._packed = (number, order, packing, rows)
        return self._packed[1:]
