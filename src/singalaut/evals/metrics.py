"""Scores of answers against gold: plain functions of lists, without tasks or files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

CHRF_SIGNATURE = "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no"


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


def chrf_plus_plus(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus-level chrF++ (character 6-grams, word bigrams, beta 2), 0 to 100, by sacrebleu.

    Source: Popović 2017, W17-4770.
    """
    from sacrebleu.metrics import CHRF

    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    return CHRF(word_order=2).corpus_score(list(hypotheses), [list(references)]).score


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean. Raises: ValueError for none."""
    numbers = list(values)
    if not numbers:
        raise ValueError("the mean of no values")
    return sum(numbers) / len(numbers)
