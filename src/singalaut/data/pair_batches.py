"""Pairs as packed rows, and in which order they are learned.

Both are functions of the pairs and the seed, so that a resumed run sees what it would have seen.
Documents of a row come in the order chosen, rejected, chosen, …; T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from singalaut.data.mix import shuffled
from singalaut.data.pack import best_fit
from singalaut.data.preference import Pairs
from singalaut.text.conversations import is_learned, token_ids


@dataclass(frozen=True)
class PairRow:
    """Pairs laid end to end in one row; `places` are their numbers in the step."""

    tokens: Tensor
    """[1, T], int64"""
    lengths: tuple[int, ...]
    """Tokens of each document."""
    answer: Tensor
    """Places in the row of the tokens of all answers, in order."""
    answer_document: Tensor
    """To which document each of them belongs."""
    places: np.ndarray


class PairOrder:
    """The pairs of each step: passes over all of them, each in an order of its own."""

    def __init__(self, pairs: np.ndarray, seed: int):
        self._pairs, self._seed = pairs, seed

    def pairs(self, first: int, last: int) -> np.ndarray:
        """The pairs from place `first` up to `last`, counted from the beginning of the run."""
        size = len(self._pairs)
        passes = range(first // size, -(-last // size))
        orders = [shuffled(self._pairs, self._seed, "pairs", number) for number in passes]
        start = first // size * size
        return np.concatenate(orders)[first - start : last - start]


def hold_out_pairs(pairs: Pairs, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs to learn from, and `each` of every language (at most half) to measure on."""
    everything = np.arange(len(pairs))
    languages = pairs.records["language"]
    chosen = [everything[:0]]
    for language in np.unique(languages):
        members = everything[languages == language]
        chosen.append(shuffled(members, seed, "held out")[: min(each, len(members) // 2)])
    held_out = np.sort(np.concatenate(chosen))
    return np.setdiff1d(everything, held_out), held_out


def pack_pairs(pairs: Pairs, chosen: np.ndarray, row_tokens: int) -> list[PairRow]:
    """The pairs as rows of at most `row_tokens` tokens, or of one longer pair."""
    tokens = pairs.tokens()[chosen]
    packing = best_fit(np.minimum(tokens, row_tokens), row_tokens)
    return [_lay_out(pairs, chosen, packing.row(number)) for number in range(packing.num_rows)]


def _lay_out(pairs: Pairs, chosen: np.ndarray, places: np.ndarray) -> PairRow:
    documents = [words for place in places for words in pairs.words(int(chosen[place]))]
    lengths = [len(words) for words in documents]
    flat = np.concatenate(documents)
    answer = np.flatnonzero(is_learned(flat))
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    return PairRow(
        torch.from_numpy(token_ids(flat).astype(np.int64))[None],
        tuple(lengths),
        torch.from_numpy(answer),
        torch.from_numpy(numbers[answer]),
        places,
    )
