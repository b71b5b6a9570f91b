"""Scores of answers against gold: plain functions of lists, without tasks or files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

ROUGE_RESAMPLES, ROUGE_SEED = 1000, 4156  # of the published scores


def accuracy(predictions: Sequence[str | None], gold: Sequence[str]) -> float:
    """Share of predictions that equal gold, 0 to 1; None is wrong."""
    return mean(float(p == g) for p, g in zip(predictions, gold, strict=True))


def balanced_accuracy(
    predictions: Sequence[str | None], gold: Sequence[str], labels: Iterable[str]
) -> float:
    """Mean over the labels of the share found of their rows, 0 to 1.

    A label without gold rows (in a small subset) has no recall and is left out. None is wrong
    and no class of its own.
    """
    pairs = list(zip(predictions, gold, strict=True))
    recalls = []
    for label in labels:
        found = [p == label for p, g in pairs if g == label]
        if found:
            recalls.append(sum(found) / len(found))
    return mean(recalls)


def chance_normalised(score: float, chance: float) -> float:
    """max(0, (score - chance) / (1 - chance)): 0 is guessing, 1 is perfect."""
    return max(0.0, (score - chance) / (1 - chance))


def token_f1(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Harmonic mean of word precision and recall, 0 to 1, against the best reference."""
    counts = Counter(prediction)
    best = 0.0
    for reference in references:
        common = sum((counts & Counter(reference)).values())
        if common:
            precision, recall = common / len(prediction), common / len(reference)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def exact_match(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """1 if the words are those of a reference in their order, else 0."""
    return float(any(list(prediction) == list(reference) for reference in references))


def rouge_l(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F of the longest common subsequence of words, 0 to 1.

    Source: Lin 2004, W04-1013.
    """
    if not prediction or not reference:
        return 0.0
    common = _common_subsequence(reference, prediction)
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def bootstrap_median(scores: Sequence[float]) -> float:
    """The middle of the means of 1000 resamples: how the published ROUGE-L sums up a corpus."""
    values = np.asarray(scores, np.float64)
    generator = np.random.RandomState(ROUGE_SEED)
    means = [
        np.mean(values[generator.choice(len(values), size=len(values))])
        for _ in range(ROUGE_RESAMPLES)
    ]
    return float(np.percentile(means, 50))


def recalls(
    correct: NDArray[np.float64], gold: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """Share of each class found, [classes]; NaN for a class without rows."""
    rows = np.bincount(gold, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(gold, weights=correct, minlength=classes) / rows


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean. Raises: ValueError for none."""
    numbers = list(values)
    if not numbers:
        raise ValueError("the mean of no values")
    return sum(numbers) / len(numbers)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a machine word of rows at a time.

    Source: Hyyrö 2004, bit-vector LCS.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | (1 << place)
    every = (1 << len(first)) - 1
    rows = every
    for word in second:
        hits = rows & places.get(word, 0)
        if hits:
            rows = ((rows + hits) | (rows - hits)) & every
    return len(first) - rows.bit_count()
