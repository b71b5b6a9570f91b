"""Sums tasks up: task, group, competency, language, average, each level a mean of the one below.

Works on leaves, one for each task and language, with their resampled scores, so that intervals
and differences are summed up the same way as scores. Scores are normalised, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from singalaut.evals.measure import (
    Floats,
    Measure,
    Strata,
    point,
    pool,
    resample_weights,
    resampled,
)


@dataclass(frozen=True)
class Leaf:
    """One task in one language; `pooled` leaves of a group are scored as one set of questions."""

    task: str
    language: str
    competency: str
    group: str
    pooled: bool
    counted: bool
    measure: Measure


@dataclass(frozen=True)
class Node:
    """A score and its resamples [B], with the nodes that it is the mean of."""

    score: float
    samples: Floats
    parts: Mapping[str, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """`leaves` by task and language, `languages` as trees, `average` over those averaged.

    `missing` has, by language, what the suite expects and was not scored.
    """

    leaves: Mapping[tuple[str, str], Node]
    languages: Mapping[str, Node]
    average: Node | None
    missing: Mapping[str, tuple[str, ...]]


def summarise(
    leaves: Sequence[Leaf],
    *,
    resamples: int,
    seed: int,
    averaged: Sequence[str] = (),
    expected: Mapping[str, Sequence[str]] | None = None,
) -> Summary:
    """Sum up one model's leaves.

    A leaf without any answer has no score and is left out, as is what the suite does not count.
    `averaged` are the languages of the average; empty means all.
    """
    nodes = {(leaf.task, leaf.language): _node(leaf, resamples, seed) for leaf in leaves}
    trees: dict[str, Node] = {}
    for language in dict.fromkeys(leaf.language for leaf in leaves):
        here = [
            leaf
            for leaf in leaves
            if leaf.language == language
            and leaf.counted
            and not np.isnan(nodes[leaf.task, language].score)
        ]
        if here:
            trees[language] = _language(here, nodes, resamples, seed)
    chosen = {code: tree for code, tree in trees.items() if not averaged or code in averaged}
    missing = {}
    for code, names in (expected or {}).items():
        scored = {task for (task, lang), n in nodes.items() if lang == code and n.score >= 0}
        if absent := tuple(name for name in names if name not in scored):
            missing[code] = absent
    return Summary(nodes, trees, _mean(chosen) if chosen else None, missing)


def _language(
    leaves: Sequence[Leaf], nodes: Mapping[tuple[str, str], Node], resamples: int, seed: int
) -> Node:
    competencies = {}
    for competency in dict.fromkeys(leaf.competency for leaf in leaves):
        inside = [leaf for leaf in leaves if leaf.competency == competency]
        groups = {}
        for name in dict.fromkeys(leaf.group or leaf.task for leaf in inside):
            members = [leaf for leaf in inside if (leaf.group or leaf.task) == name]
            parts = {leaf.task: nodes[leaf.task, leaf.language] for leaf in members}
            groups[name] = _pooled(members, parts, resamples, seed) or _mean(parts)
        competencies[competency] = _mean(groups)
    return _mean(competencies)


def _pooled(
    members: Sequence[Leaf], parts: Mapping[str, Node], resamples: int, seed: int
) -> Node | None:
    """The questions of several tasks scored as one set; None where they are not pooled."""
    measures = [leaf.measure for leaf in members if isinstance(leaf.measure, Strata)]
    if len(measures) < len(members) or not all(leaf.pooled for leaf in members):
        return None
    together = pool(measures)
    first = members[0]
    weights = resample_weights(together.strata, resamples, seed, first.group, first.language)
    return Node(point(together)[1], resampled(together, weights), parts)


def _node(leaf: Leaf, resamples: int, seed: int) -> Node:
    weights = resample_weights(leaf.measure.strata, resamples, seed, leaf.task, leaf.language)
    return Node(point(leaf.measure)[1], resampled(leaf.measure, weights))


def _mean(parts: Mapping[str, Node]) -> Node:
    scores = [node.score for node in parts.values()]
    samples = np.mean([node.samples for node in parts.values()], axis=0)
    return Node(float(np.mean(scores)), samples, parts)
