"""Sums scores of single answers up to the score of a task, also over resamples of its questions.

Two kinds of sums are known: means over strata that weigh the same (classes of a balanced
accuracy, linguistic phenomena, categories of conversations), and scores of a corpus (chrF++).
Both keep every run and question apart, so that an interval resamples questions with all their
runs, within their stratum. Shapes: R runs, N questions, B resamples. Scores run from 0 to 1.

Source of resampling clusters of answers to one question: Miller 2024, arXiv 2411.00640.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from singalaut.contracts import derive
from singalaut.evals.chrf import chrf_score

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Strata:
    """Means of `values` [R, N], NaN where there is no answer, over `strata` [N] of equal weight.

    `chance` is what guessing scores: it is put at 0, the best at 1, and less than chance at 0.
    """

    values: Floats
    strata: NDArray[np.int64]
    names: tuple[str, ...]
    chance: float = 0.0

    def by_run(self, weights: NDArray[np.float32] | None = None) -> Floats:
        """Score of each run, [R], or of each resample and run, [B, R]; NaN without an answer."""
        return _nan_mean(self.parts(weights))

    def parts(self, weights: NDArray[np.float32] | None = None) -> Floats:
        """Mean of each stratum, [R, S] or [B, R, S]; NaN for one without answers."""
        there = ~np.isnan(self.values)
        whole = bool(there.all())
        kind = np.dtype(np.float64 if weights is None else np.float32)  # resamples in half the time
        filled = np.where(there, self.values, 0.0).astype(kind)
        columns = []
        for stratum in range(len(self.names)):
            inside = self.strata == stratum
            weight: NDArray[Any] = np.ones((1, inside.sum()))
            if weights is not None:
                weight = weights[:, inside]
            count = inside.sum() if whole else weight @ there[:, inside].T.astype(kind)
            with np.errstate(invalid="ignore"):
                columns.append((weight @ filled[:, inside].T) / count)
        stacked = np.stack(columns, axis=-1)
        return stacked[0] if weights is None else stacked

    def normalised(self, scores: Floats) -> Floats:
        return np.maximum(0.0, (scores - self.chance) / (1 - self.chance))


@dataclass(frozen=True)
class Corpus:
    """chrF++ of `statistics` [R, N, 24] summed over questions; one without an answer has zeros."""

    statistics: NDArray[np.int64]

    @property
    def strata(self) -> NDArray[np.int64]:
        return np.zeros(self.statistics.shape[1], np.int64)

    def by_run(self, weights: NDArray[np.float32] | None = None) -> Floats:
        """Score of each run, [R], or of each resample and run, [B, R]; NaN without an answer."""
        sums: NDArray[Any] = self.statistics.sum(1)
        if weights is not None:
            counts = self.statistics.astype(np.float32)
            sums = np.einsum("bn,rnk->brk", weights, counts, optimize=True)
        return np.where(sums.any(-1), chrf_score(sums) / 100, np.nan)

    def normalised(self, scores: Floats) -> Floats:
        return scores


Measure = Strata | Corpus


def pool(measures: Sequence[Strata]) -> Strata:
    """The questions of several tasks as one, strata of the same name put together."""
    names = tuple(dict.fromkeys(name for m in measures for name in m.names))
    strata = [np.array([names.index(name) for name in m.names])[m.strata] for m in measures]
    runs = min(m.values.shape[0] for m in measures)
    values = np.concatenate([m.values[:runs] for m in measures], axis=1)
    return Strata(values, np.concatenate(strata), names, measures[0].chance)


def strata_of(values: Floats, names: Sequence[str], chance: float = 0.0) -> Strata:
    """Strata by the name that each question has."""
    order = tuple(dict.fromkeys(names))
    index = {name: place for place, name in enumerate(order)}
    return Strata(values, np.array([index[name] for name in names], np.int64), order, chance)


def resample_weights(
    strata: NDArray[np.int64], count: int, seed: int, *names: str
) -> NDArray[np.float32]:
    """How often each question is drawn in each resample, [B, N]: as many of a stratum as it has.

    The same seed, names and strata give the same draws, so that models are compared on the same.
    """
    generator = np.random.default_rng(derive(seed, "bootstrap", *names))
    weights = np.zeros((count, len(strata)), np.float32)
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        size = len(inside)
        drawn = generator.integers(0, size, size=(count, size), dtype=np.int32)
        drawn += np.arange(count, dtype=np.int32)[:, None] * size
        times = np.bincount(drawn.ravel(), minlength=count * size)
        weights[:, inside] = times.reshape(count, size)
    return weights


def point(measure: Measure) -> tuple[float, float]:
    """The score and its normalised form, each the mean over runs; NaN without an answer."""
    by_run = measure.by_run()
    return float(_nan_mean(by_run)), float(_nan_mean(measure.normalised(by_run)))


def resampled(measure: Measure, weights: NDArray[np.float32]) -> Floats:
    """Normalised scores of the resamples, [B]."""
    return _nan_mean(measure.normalised(measure.by_run(weights)))


def interval(samples: Floats, score: float, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of resampled scores, reaching to the score itself.

    Near chance it would not always: what falls below counts nothing, so resamples lie higher.
    """
    rest = 100 * (1 - level) / 2
    low, high = np.nanpercentile(samples, [rest, 100 - rest])
    return min(float(low), score), max(float(high), score)


def p_value(differences: Floats) -> float:
    """Two-sided p of no difference: twice the share of resamples on the rarer side of zero.

    Half of those that show none count for each side; never less than one resample.
    """
    ties = np.mean(differences == 0) / 2
    below = np.mean(differences < 0) + ties
    above = np.mean(differences > 0) + ties
    return float(min(1.0, max(2 * min(below, above), 1 / len(differences))))


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected so that one of them is wrong at most at the level.

    Source: Holm 1979, step-down Bonferroni.
    """
    order = sorted(range(len(values)), key=lambda place: values[place])
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected


def _nan_mean(values: Floats) -> Floats:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(-1)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0.0).sum(-1) / np.where(count == 0, np.nan, count)
