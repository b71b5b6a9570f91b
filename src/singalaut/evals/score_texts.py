"""Scores of texts: spans, translations and summaries against references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from singalaut.evals.chrf import Chrf
from singalaut.evals.extraction import Extraction, text_extractor
from singalaut.evals.measure import Corpus, Measure, Strata
from singalaut.evals.metrics import bootstrap_median, exact_match, rouge_l, token_f1
from singalaut.evals.reading import Read, read_all, scored_reading, show_scores
from singalaut.evals.robust import Length, echoes, robust_text_extractor
from singalaut.evals.schedule import CellAnswers
from singalaut.evals.scored import Outside, Rules, Scored, item_scores, single
from singalaut.evals.taskfile import Kind, Metric
from singalaut.evals.words import f1_words, rouge_words

LENGTHS: Mapping[Kind, Length] = {"span": "line", "translation": "paragraph", "summary": "all"}
WORST_ERROR = 25.0  # of MetricX


def score_texts(answers: CellAnswers, rules: Rules, outside: Outside) -> Scored:
    cell, spec = answers.cell, answers.cell.language
    echoed = echoes(spec.prompt.open(spec.prompt.question.text), spec.tag)
    read = read_all(
        answers,
        text_extractor(rules.version, spec.tag, spec.language),
        robust_text_extractor(spec.tag, LENGTHS[cell.task.kind], echoed),
        rules.scored,
    )
    references = [example.references for example in cell.examples]
    against = _Against(references, spec.answer_language)
    measures: dict[Metric, Measure] = {}
    official_sums: dict[Metric, float] = {}
    for metric in cell.task.metrics:
        if metric != "metricx":
            measures[metric] = against.measure(metric, read.chosen)
        elif outside.metricx is not None:
            errors = np.array(outside.metricx, np.float64)
            measures[metric] = single((WORST_ERROR - errors) / WORST_ERROR)
    metric = next(iter(measures))
    if "rouge-l" in measures:
        official_sums["rouge-l"] = _published_rouge(measures["rouge-l"])
    robust = None if metric == "metricx" else against.measure(metric, read.robust)
    scored = scored_reading(answers, metric, measures, robust, read, [""] * len(references))
    scored.official_sums = official_sums
    for row, texts in zip(scored.rows, references, strict=True):
        row["references"] = list(texts)
    show_scores(scored.rows, item_scores(measures[metric]))
    return scored


class _Against:
    """Compares readings with references, which are cut up once; equal readings are counted once."""

    def __init__(self, references: Sequence[Sequence[str]], language: str):
        self.references, self.language = references, language
        self._counted: dict[tuple[str, ...], NDArray[np.int64]] = {}

    def measure(self, metric: Metric, read: Read) -> Measure:
        if metric == "chrf++":
            return Corpus(np.stack([self._statistics(found) for found in read]))
        cut = cache((rouge_words if metric == "rouge-l" else f1_words)(self.language))
        words = [[cut(text) for text in texts] for texts in self.references]
        compare = COMPARE[metric]
        values = [
            [
                np.nan if e is None else compare(cut(e.answer or ""), gold)
                for e, gold in zip(found, words, strict=True)
            ]
            for found in read
        ]
        return single(np.array(values))

    def _statistics(self, found: Sequence[Extraction | None]) -> NDArray[np.int64]:
        texts = tuple(e.answer or "" if e else "" for e in found)
        if texts not in self._counted:
            self._counted[texts] = self._chrf.statistics(texts)
        statistics = self._counted[texts].copy()
        statistics[[e is None for e in found]] = 0
        return statistics

    @cached_property
    def _chrf(self) -> Chrf:
        return Chrf(self.references)


def _best_rouge(given: Sequence[str], gold: Sequence[Sequence[str]]) -> float:
    return max(rouge_l(given, one) for one in gold)


COMPARE: Mapping[Metric, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "token-f1": token_f1,
    "exact-match": exact_match,
    "rouge-l": _best_rouge,
}


def _published_rouge(measure: Measure) -> float:
    assert isinstance(measure, Strata)
    runs = [row[~np.isnan(row)] for row in measure.values]
    return 100 * float(np.mean([bootstrap_median(row) for row in runs if len(row)] or [np.nan]))
