"""Near-duplicates: documents whose runs of five tokens are mostly the same.

Similarity is the Jaccard index J of the sets of runs, |A ∩ B| / |A ∪ B|. MinHash signatures find
candidates: two documents agree at each of 128 places with probability J, and those that agree in
all places of one band are compared. What is dropped is decided by J itself, read from the tokens,
so nothing is dropped by the chance of a hash.

Source: MinHash, Broder 1997; banding as in Leskovec, Rajaraman, Ullman, Mining of Massive Datasets.
We compare within a bucket of candidates against its earliest documents, not all with all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from singalaut.data.ngrams import inner_windows, mix, window_counts, window_hashes

SHINGLE_TOKENS = 5
PLACES = 128
WANTED_RECALL = 0.95  # of pairs exactly at the threshold; more similar ones are found more often
ROUNDS = 16  # documents of a bucket that the others are compared with, at most
DOUBT = 0.12  # more than three standard deviations of the estimate, √(J(1−J)/128)
PAIRS_AT_ONCE = 1 << 16


class Twin(NamedTuple):
    """A document that is dropped, the one that is kept in its place, and their J."""

    dropped: int
    kept: int
    similarity: float


def shingles(tokens: np.ndarray) -> np.ndarray:
    """The set of a document's runs of tokens, as sorted hashes; all of it where it is short."""
    return np.unique(window_hashes(tokens, min(SHINGLE_TOKENS, max(1, len(tokens)))))


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """The Jaccard index of two sorted sets."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - shared
    return shared / union if union else 1.0


def signatures(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The MinHash signature of each document, [N, PLACES], 16 bits of each minimum.

    Documents shorter than a shingle are one shingle; none is empty. The lower half of a minimum is
    kept: the upper half is nearly zero in all long documents.
    """
    signature = np.empty((len(lengths), PLACES), dtype=np.uint16)
    if len(lengths) == 0:
        return signature
    counts = window_counts(lengths, SHINGLE_TOKENS)
    hashes = window_hashes(tokens, SHINGLE_TOKENS)[inner_windows(lengths, SHINGLE_TOKENS)]
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    short = np.flatnonzero(counts == 0)
    ones = [shingles(tokens[starts[i] : starts[i] + lengths[i]]) for i in short.tolist()]
    hashes = np.insert(hashes, np.cumsum(counts)[short], np.concatenate([*ones, hashes[:0]]))
    counts[short] = 1
    begins = np.cumsum(counts) - counts
    folded = (hashes >> np.uint64(32)).astype(np.uint32)
    factors, offsets = _permutations()
    for place in range(PLACES):
        minima = np.minimum.reduceat(folded * factors[place] + offsets[place], begins)
        signature[:, place] = minima.astype(np.uint16)
    return signature


def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """h → a·h + b mod 2³² with odd a: one permutation for each place, always the same ones."""
    numbers = mix(np.arange(2 * PLACES)).astype(np.uint32)
    return numbers[:PLACES] | np.uint32(1), numbers[PLACES:]


def rows_of_band(threshold: float) -> int:
    """The most places a band can have so that enough pairs at the threshold share one band."""
    for rows in range(PLACES, 1, -1):
        if 1 - (1 - threshold**rows) ** (PLACES // rows) >= WANTED_RECALL:
            return rows
    return 1


def find_twins(
    signature: np.ndarray,
    threshold: float,
    shingles_of: Callable[[int], np.ndarray],
    alive: np.ndarray | None = None,
) -> list[Twin]:
    """The documents to drop so that few similar pairs stay; the earliest of alike ones is kept.

    `signature` may be memory-mapped; `shingles_of` gives the set of a document; documents that are
    not `alive` are left out. Every J in the result is at least `threshold`.
    """
    rows = rows_of_band(threshold)
    alive = np.ones(len(signature), dtype=bool) if alive is None else alive.copy()
    remembered = lru_cache(maxsize=4096)(shingles_of)
    twins: list[Twin] = []
    for band in range(PLACES // rows):
        members, buckets = _buckets(signature[:, band * rows : (band + 1) * rows], alive)
        for _ in range(ROUNDS):
            is_first = np.ones(len(members), dtype=bool)
            is_first[1:] = buckets[1:] != buckets[:-1]
            if is_first.all():
                break
            earliest = members[is_first][np.cumsum(is_first) - 1]
            rest = ~is_first
            for kept, other in _candidates(signature, earliest[rest], members[rest], threshold):
                exact = similarity(remembered(kept), remembered(other))
                if exact >= threshold:
                    twins.append(Twin(other, kept, exact))
                    alive[other] = False
            rest &= alive[members]
            members, buckets = members[rest], buckets[rest]
    return twins


def _buckets(words: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents that share all words of a band with another, and the number of their bucket."""
    ids = np.flatnonzero(alive)
    keys = np.zeros(len(ids), dtype=np.uint64)
    for column in range(words.shape[1]):
        keys = mix(keys ^ words[ids, column].astype(np.uint64))
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    is_new = np.ones(len(keys), dtype=bool)
    is_new[1:] = keys[1:] != keys[:-1]
    buckets = np.cumsum(is_new)
    is_shared = np.bincount(buckets)[buckets] > 1 if len(buckets) else is_new
    return ids[order][is_shared], buckets[is_shared]


def _candidates(
    signature: np.ndarray, first: np.ndarray, second: np.ndarray, threshold: float
) -> Iterator[tuple[int, int]]:
    """The pairs whose signatures do not rule out that they are similar."""
    for start in range(0, len(first), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        agreement = (signature[first[some]] == signature[second[some]]).mean(axis=1)
        likely = agreement >= threshold - DOUBT
        yield from zip(first[some][likely].tolist(), second[some][likely].tolist(), strict=True)
