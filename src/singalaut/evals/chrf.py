"""chrF++ by counting n-grams of many sentence pairs at once, with numpy; equal to sacreBLEU.

Statistics of pairs are kept apart, so that the score of a corpus, of a sentence and of every
bootstrap resample are sums and one formula away. Notation: N pairs, 8 orders (character 1-6, word
1-2), for each order the n-grams of the hypothesis, of the reference, and of both.

Source: Popović 2017, W17-4770; the conventions of sacreBLEU 2 (no smoothing, effective order,
white space left out of characters, punctuation split off words).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGNATURE = "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no"
CHAR_ORDER, WORD_ORDER, BETA = 6, 2, 2
ORDERS = CHAR_ORDER + WORD_ORDER
CHUNK = 4096  # pairs counted together; their number takes 12 bits of a 64-bit key
PAIR_SHIFT = np.uint64(52)
HASH_MASK = np.uint64((1 << 52) - 1)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
Counts = tuple[NDArray[np.uint64], NDArray[np.int64]]  # sorted keys, how often each occurs


@dataclass(frozen=True)
class _Grams:
    """The n-grams of up to CHUNK texts: by order their keys with counts, and totals by text."""

    orders: list[Counts]
    totals: NDArray[np.int64]  # [texts, 8]


class Chrf:
    """Counts against fixed references, which are read once; each row may have several."""

    def __init__(self, references: Sequence[Sequence[str]]):
        self._words: dict[str, int] = {}
        self._rows = [row for row, texts in enumerate(references) for _ in texts]
        flat = [text for texts in references for text in texts]
        self._single = len(flat) == len(references)
        self._size = len(references)
        self._chunks = [
            self._grams(flat[start : start + CHUNK]) for start in range(0, len(flat), CHUNK)
        ]

    def statistics(self, hypotheses: Sequence[str]) -> NDArray[np.int64]:
        """[N, 24]: for each order hypothesis, reference and common n-grams, the best reference.

        Raises: ValueError unless there is a hypothesis for each row of references.
        """
        if len(hypotheses) != self._size:
            raise ValueError(f"{len(hypotheses)} hypotheses for {self._size} references")
        texts = [hypotheses[row] for row in self._rows]
        pieces = []
        for number, reference in enumerate(self._chunks):
            part = texts[number * CHUNK : (number + 1) * CHUNK]
            pieces.append(_compare(self._grams(part), reference))
        found = np.concatenate(pieces) if pieces else np.zeros((0, 3 * ORDERS), np.int64)
        return found if self._single else self._best(found)

    def _best(self, found: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of a row's references the first with the highest score."""
        scores = chrf_score(found)
        chosen = np.full(self._size, -1)
        for place, row in enumerate(self._rows):
            if chosen[row] < 0 or scores[place] > scores[chosen[row]]:
                chosen[row] = place
        return found[chosen]

    def _grams(self, texts: Sequence[str]) -> _Grams:
        characters = ["".join(text.split()) for text in texts]
        lengths = np.array([len(text) for text in characters], np.int64)
        data = "".join(characters).encode("utf-32-le", "surrogatepass")
        codes = np.frombuffer(data, np.uint32).astype(np.uint64)
        words = [_words(text) for text in texts]
        counts = np.array([len(found) for found in words], np.int64)
        known = self._words
        numbers = [known.setdefault(word, len(known)) for found in words for word in found]
        ids = np.array(numbers, np.uint64)
        orders = _orders(codes, lengths, CHAR_ORDER) + _orders(ids, counts, WORD_ORDER)
        totals = [np.maximum(lengths - n, 0) for n in range(CHAR_ORDER)]
        totals += [np.maximum(counts - n, 0) for n in range(WORD_ORDER)]
        return _Grams(orders, np.stack(totals, axis=1))


def chrf_score(statistics: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores, 0 to 100, of statistics [..., 24]; those of a corpus are the sum over its pairs.

    Precision and recall are averaged over the orders of which both sides have n-grams, then
    F = (1 + b²) P R / (b² P + R) with b = 2.
    """
    by_order = statistics.reshape(*statistics.shape[:-1], ORDERS, 3).astype(np.float64)
    hypothesis, reference, common = by_order[..., 0], by_order[..., 1], by_order[..., 2]
    used = (hypothesis > 0) & (reference > 0)
    effective = used.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(used, common / hypothesis, 0.0).sum(-1) / effective
        recall = np.where(used, common / reference, 0.0).sum(-1) / effective
        score = (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)
    return np.where((effective > 0) & (precision + recall > 0), 100 * score, 0.0)


def corpus_chrf(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The score of a corpus, 0 to 100. Raises: ValueError for none."""
    if not references:
        raise ValueError("chrF++ of no sentences")
    return float(chrf_score(Chrf(references).statistics(hypotheses).sum(0)))


def _words(text: str) -> list[str]:
    """Words with one ASCII punctuation mark split off their end, else off their beginning."""
    made: list[str] = []
    for word in text.split():
        if len(word) == 1:
            made.append(word)
        elif word[-1] in PUNCTUATION:
            made += (word[:-1], word[-1])
        elif word[0] in PUNCTUATION:
            made += (word[0], word[1:])
        else:
            made.append(word)
    return made


def _orders(units: NDArray[np.uint64], lengths: NDArray[np.int64], highest: int) -> list[Counts]:
    """For each order the sorted keys of all n-grams and their counts.

    A key is the number of the text in 12 bits and a hash of the n-gram in 52.
    """
    pair = np.repeat(np.arange(len(lengths), dtype=np.uint64) << PAIR_SHIFT, lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(units))  # units up to the end
    single = _mix(units + np.uint64(1))
    rolling = single
    made: list[Counts] = []
    for order in range(1, highest + 1):
        if order > 1:
            rolling = rolling[:-1] * MULTIPLIER + single[order - 1 :]
        keys = (_mix(rolling) & HASH_MASK) | pair[: len(rolling)]
        keys = keys[left[: len(rolling)] >= order]
        keys.sort()
        made.append(_count(keys))
    return made


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread the bits (the finaliser of splitmix64)."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _count(keys: NDArray[np.uint64]) -> Counts:
    if len(keys) == 0:
        return keys, np.zeros(0, np.int64)
    first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[first], np.diff(np.append(first, len(keys)))


def _compare(hypothesis: _Grams, reference: _Grams) -> NDArray[np.int64]:
    """[texts, 24] of two chunks of equally many texts."""
    size = len(reference.totals)
    made = np.zeros((size, ORDERS, 3), np.int64)
    for order in range(ORDERS):
        keys, counts = hypothesis.orders[order]
        others, theirs = reference.orders[order]
        if len(keys) == 0 or len(others) == 0:
            continue
        place = np.minimum(np.searchsorted(others, keys), len(others) - 1)
        same = others[place] == keys
        common = np.minimum(counts[same], theirs[place[same]])
        pairs = (keys[same] >> PAIR_SHIFT).astype(np.int64)
        made[:, order, 2] = np.bincount(pairs, weights=common, minlength=size)
    # n-grams of an order that the reference has none of are not counted
    made[:, :, 0] = np.where(reference.totals > 0, hypothesis.totals, 0)
    made[:, :, 1] = reference.totals
    return made.reshape(size, 3 * ORDERS)
