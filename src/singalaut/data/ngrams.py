"""Hashes of all runs of n neighbours in many sequences at once: of tokens, or of characters.

N documents laid end to end, S elements in all.
"""

from __future__ import annotations

import numpy as np

MULTIPLIER = 0x9E3779B97F4A7C15  # odd, without structure in its bits
Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]


def mix(values: np.ndarray) -> Hashes:
    """A bijection of 64-bit words in which every bit of a result depends on every bit given.

    Source: the finaliser of SplitMix64.
    """
    mixed = values.astype(np.uint64, copy=True)
    mixed += np.uint64(MULTIPLIER)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def window_hashes(values: np.ndarray, size: int) -> Hashes:
    """A hash of `values[i : i + size]` for each i at which such a window begins.

    Σ_k h(values[i+k]) · M^(size−1−k) mod 2⁶⁴, put together from windows half as long.
    """
    if len(values) < size:
        return np.empty(0, dtype=np.uint64)
    hashes = {1: mix(values)}
    built, result = 1, None
    done = 0  # elements that `result` covers so far
    while True:
        if size & built:
            block = hashes[built]
            result = block if result is None else _joined(result, block, done, built)
            done += built
        if built * 2 > size:
            break
        hashes[built * 2] = _joined(hashes[built], hashes[built], built, built)
        built *= 2
    assert result is not None
    return mix(result)


def _joined(first: Hashes, second: Hashes, first_size: int, second_size: int) -> Hashes:
    """Hashes of windows that are a window of `first` and the one of `second` right behind it."""
    count = len(second) - first_size
    power = np.uint64(pow(MULTIPLIER, second_size, 1 << 64))
    return first[:count] * power + second[first_size : first_size + count]


def window_counts(lengths: np.ndarray, size: int) -> np.ndarray:
    """How many windows of `size` lie within each document; a shorter document has none."""
    return np.maximum(lengths.astype(np.int64) - size + 1, 0)


def inner_windows(lengths: np.ndarray, size: int) -> np.ndarray:
    """Where the windows begin that lie within one document, in order."""
    counts = window_counts(lengths, size)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
