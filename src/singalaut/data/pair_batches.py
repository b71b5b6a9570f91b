"""Pairs as packed rows, and in which order they are learned.

Both are functions of the pairs and the seed, so that a resumed run sees what it would have seen.
What both conversations of a pair begin with lies in the row once: a trunk, from which the chosen
and the rejected one branch off. Documents come in the order chosen, rejected, chosen, …; T tokens
of a row, A tokens of all answers.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    trees: tuple[tuple[int, ...], ...]
    """Tokens of each trunk and its branches, as the row has them; without a branch where the
    conversations of a pair have nothing in common."""
    targets: Tensor
    """[A] tokens of all answers, in order."""
    before: Tensor
    """[A] places in the row that these are told from."""
    answer_document: Tensor
    """[A]: to which document each of them belongs."""
    places: np.ndarray

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each document that no document before it has."""
        first = ((tree[0] + sum(tree[1:2]), *tree[2:]) for tree in self.trees)
        return tuple(length for tree in first for length in tree)


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
    """The pairs to learn from, and about `each` of every language to measure on.

    Whole prompts are held out, with all of their pairs, and at most half of them.
    """
    everything = np.arange(len(pairs))
    languages = pairs.records["language"]
    held_out: list[int] = []
    for language in np.unique(languages) if each else ():
        prompts: dict[bytes, list[int]] = {}
        for pair in everything[languages == language].tolist():
            prompts.setdefault(pairs.prompt(pair), []).append(pair)
        groups = list(prompts.values())
        chosen: list[int] = []
        for group in shuffled(np.arange(len(groups)), seed, "held out")[: len(groups) // 2]:
            if len(chosen) >= each:
                break
            chosen += groups[group]
        held_out += chosen
    return np.setdiff1d(everything, held_out), np.array(sorted(held_out), dtype=np.int64)


def pack_pairs(pairs: Pairs, chosen: np.ndarray, row_tokens: int) -> list[PairRow]:
    """The pairs as rows of at most `row_tokens` tokens, or of one longer pair."""
    both = [pairs.words(int(pair)) for pair in chosen]
    shared = [common_beginning(*words) for words in both]
    tokens = np.array(
        [len(c) + len(r) - common for (c, r), common in zip(both, shared, strict=True)],
        dtype=np.int64,
    )
    packing = best_fit(np.minimum(tokens, row_tokens), row_tokens)
    rows = (packing.row(number) for number in range(packing.num_rows))
    return [_lay_out([(*both[at], shared[at]) for at in row], row) for row in rows]


def common_beginning(chosen: np.ndarray, rejected: np.ndarray) -> int:
    """How many words both begin with, so that each has at least one of its own left."""
    size = min(len(chosen), len(rejected)) - 1
    different = np.flatnonzero(chosen[:size] != rejected[:size])
    return int(different[0]) if len(different) else size


def _lay_out(pairs: Sequence[tuple[np.ndarray, np.ndarray, int]], places: np.ndarray) -> PairRow:
    """One row of pairs, each with the number of words that both of its conversations begin with."""
    pieces: list[np.ndarray] = []
    trees: list[tuple[int, ...]] = []
    targets, before, documents = [], [], []
    size = 0
    for number, (*both, common) in enumerate(pairs):
        if common:
            pieces.append(both[0][:common])
            trees.append((common, *(len(words) - common for words in both)))
        else:
            trees += [(len(words),) for words in both]
        trunk, size = size, size + common
        for which, words in enumerate(both):
            at = np.flatnonzero(is_learned(words))
            targets.append(token_ids(words[at]))
            before.append(np.where(at <= common, trunk + at, size + at - common) - 1)
            documents.append(np.full(len(at), 2 * number + which))
            pieces.append(words[common:])
            size += len(words) - common
    return PairRow(
        torch.from_numpy(token_ids(np.concatenate(pieces)).astype(np.int64))[None],
        tuple(trees),
        torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        torch.from_numpy(np.concatenate(before)),
        torch.from_numpy(np.concatenate(documents)),
        places,
    )
