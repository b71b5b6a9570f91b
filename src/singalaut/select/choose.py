"""From scores to a choice: quotas, and how varied the chosen are.

Shapes: M candidates, D numbers of a vector.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from singalaut.errors import RecipeError

log = logging.getLogger("singalaut")
MOST_CANDIDATES = 20_000  # of a varied choice: their similarities are a matrix


def check_quotas(names: Sequence[str], wanted: Mapping[str, float]) -> None:
    """Raises: RecipeError for a name that no group has, or shares that come to more than 1."""
    if unknown := [name for name in wanted if name not in names]:
        hint = "the pool has: " + ", ".join(names)
        raise RecipeError(f"no row of the pool is of `{unknown[0]}`", where="quotas", hint=hint)
    if sum(wanted.values()) > 1 + 1e-9:
        raise RecipeError("the quotas come to more than 1", where="quotas", hint="lower them")


def quota_counts(
    groups: np.ndarray,
    names: list[str],
    wanted: Mapping[str, float],
    count: int,
    pool: Mapping[str, int] | None = None,
) -> dict[int, int]:
    """How many of `count` each group gets: by the shares wanted, else by its part of the pool.

    `pool` has the sizes of groups there, where `groups` has fewer. What a group cannot fill goes to
    the others, largest remainder first. Raises: RecipeError as `check_quotas`.
    """
    check_quotas(names, wanted)
    present = np.unique(groups).tolist()
    sizes = {group: int((groups == group).sum()) for group in present}
    parts = sizes if pool is None else {group: pool[names[group]] for group in present}
    named = {group: wanted[names[group]] for group in present if names[group] in wanted}
    others = sum(part for group, part in parts.items() if group not in named)
    rest = 1 - sum(named.values())
    shares = {g: named.get(g, rest * parts[g] / max(1, others)) for g in present}
    counts = {group: min(sizes[group], int(shares[group] * count)) for group in present}
    while (left := min(count, len(groups)) - sum(counts.values())) > 0:
        open_ = [group for group in present if counts[group] < sizes[group]]
        open_.sort(key=lambda group: counts[group] - shares[group] * count)
        for group in open_[:left]:
            counts[group] += 1
    for name, share in wanted.items():
        found = counts.get(names.index(name), 0)
        if found < int(share * count):
            log.warning(
                "quota of `%s`: %d of %d rows are there; others take their place",
                name,
                found,
                int(share * count),
            )
    return counts


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the highest scores, the highest first; of equals the earlier."""
    return np.argsort(-scores, kind="stable")[:count]


def best_of_each(parts: Sequence[tuple[np.ndarray, int]], scores: np.ndarray) -> np.ndarray:
    """Of each part's members its number of the best; all of them, the best first."""
    chosen = np.concatenate([members[best(scores[members], number)] for members, number in parts])
    return chosen[best(scores[chosen], len(chosen))]


def k_centre(vectors_MD: np.ndarray, count: int) -> np.ndarray:
    """The first, then each time the one that is farthest from all chosen. arXiv 1708.00489."""
    chosen = [0]
    distances = _squared_distances(vectors_MD, vectors_MD[0])
    while len(chosen) < min(count, len(vectors_MD)):
        distances[chosen[-1]] = -1
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, _squared_distances(vectors_MD, vectors_MD[chosen[-1]]))
        distances[chosen] = -1
    return np.array(chosen)


def facility_location(vectors_MD: np.ndarray, count: int) -> np.ndarray:
    """Greedily the largest Σ_i max_{j chosen} max(0, ⟨v_i, v_j⟩); within 1 − 1/e of the best.

    Raises: RecipeError for more candidates than a matrix of their similarities can be made of.
    """
    if len(vectors_MD) > MOST_CANDIDATES:
        raise RecipeError(
            f"{len(vectors_MD)} candidates for a varied choice, {MOST_CANDIDATES} at most",
            where="diversity",
            hint="lower `diversity_pool` or `share`, or use `k-centre`",
        )
    similarity_MM = np.maximum(vectors_MD @ vectors_MD.T, 0)
    covered_M = np.zeros(len(vectors_MD), dtype=similarity_MM.dtype)
    chosen: list[int] = []
    while len(chosen) < min(count, len(vectors_MD)):
        gains = np.maximum(similarity_MM - covered_M[:, None], 0).sum(0)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        covered_M = np.maximum(covered_M, similarity_MM[:, chosen[-1]])
    return np.array(chosen)


def _squared_distances(vectors_MD: np.ndarray, one_D: np.ndarray) -> np.ndarray:
    return np.square(vectors_MD - one_D).sum(1)
