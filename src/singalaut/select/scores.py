"""What each document of a pool is worth: influence on targets from gradients, or likeness by BM25.

Shapes: M documents of the pool, K targets, D numbers of a projected gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from singalaut.data.mix import shuffled
from singalaut.data.store import Store
from singalaut.select.features import Features
from singalaut.text.conversations import token_ids

ROWS_AT_ONCE = 8192
BM25_SATURATION, BM25_LENGTH = 1.5, 0.75


def influence(
    pool: Sequence[Features],
    targets: Sequence[Sequence[Features]],
    rates: Sequence[float],
    weights: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """[M, K]: Σ_c η_c cos(Γ_c, mean gradient of the target at c), rates η_c scaled to sum 1.

    Cosines, since gradients of mean losses are the longer, the shorter a document is. For the same
    reason `weights`, one for each row of each target, are its learned tokens: the mean gradient is
    then that of the loss of a token, as training has it. Source: arXiv 2402.04333, where all rows
    of a target count the same.
    """
    total = np.zeros((len(pool[0].norms), len(targets)), dtype=np.float32)
    for checkpoint, rate in enumerate(np.array(rates) / np.sum(rates)):
        mean_KD = np.stack(
            [
                _mean(features[checkpoint], None if weights is None else weights[number])
                for number, features in enumerate(targets)
            ]
        )
        mean_KD /= np.linalg.norm(mean_KD, axis=1, keepdims=True) + 1e-30
        for start in range(0, len(total), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            total[rows] += rate * (unit(pool[checkpoint].vectors[rows]) @ mean_KD.T)
    return total


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows in float32 and of length 1."""
    wide = np.asarray(vectors, dtype=np.float32)
    return wide / (np.linalg.norm(wide, axis=1, keepdims=True) + 1e-30)


def bm25(
    pool: Store, documents: np.ndarray, targets: Sequence[tuple[Store, np.ndarray]]
) -> np.ndarray:
    """[M, K]: Okapi BM25 of each document for all tokens of a target as one question.

    Tokens are the terms, so that scripts without spaces need no words. A term of the question
    counts once.
    """
    size = 1 + max(_largest(store, chosen) for store, chosen in [(pool, documents), *targets])
    wanted = np.zeros((len(targets), size), dtype=bool)
    for number, (store, chosen) in enumerate(targets):
        for document in chosen.tolist():
            wanted[number, token_ids(store.words(document))] = True
    lengths = pool.documents["tokens"][documents].astype(np.float64)
    containing = np.zeros(size, dtype=np.int64)
    for document in documents.tolist():
        containing[np.unique(token_ids(pool.words(document)))] += 1
    rarity = np.log1p((len(documents) - containing + 0.5) / (containing + 0.5))
    scores = np.zeros((len(documents), len(targets)))
    for place, document in enumerate(documents.tolist()):
        terms, counts = np.unique(token_ids(pool.words(document)), return_counts=True)
        relative = lengths[place] / lengths.mean()
        damped = counts + BM25_SATURATION * (1 - BM25_LENGTH + BM25_LENGTH * relative)
        weight = rarity[terms] * counts * (BM25_SATURATION + 1) / damped
        scores[place] = wanted[:, terms] @ weight
    return scores


def drawn(count: int, seed: int) -> np.ndarray:
    """[M]: scores in an order that the seed alone decides."""
    order = shuffled(np.arange(count), seed, "random")
    ranks = np.empty(count)
    ranks[order] = np.arange(count, 0, -1)
    return ranks


def worth(scores: np.ndarray) -> np.ndarray:
    """[M]: what to choose by. Of scores for several targets, [M, K], the best place of each row.

    The best row for each target is worth 1, the next ones less by 1 / M each: targets take turns,
    whatever the scale of their scores, so none is left without rows.
    """
    if scores.ndim == 1 or scores.shape[1] == 1:
        return scores.reshape(-1)
    return 1 - _places(scores).min(1) / len(scores)


def served(scores: np.ndarray) -> np.ndarray:
    """[M]: the target that each row is chosen for, from [M, K]."""
    return _places(scores).argmin(1)


def _places(scores: np.ndarray) -> np.ndarray:
    """[M, K]: how many rows are better for the target."""
    order = np.argsort(-scores, axis=0, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(len(scores))[:, None], 0)
    return places


def _mean(features: Features, weights: np.ndarray | None) -> np.ndarray:
    """The mean gradient, as projected."""
    wide = np.asarray(features.vectors, dtype=np.float32) * features.norms[:, None]
    return np.average(wide, axis=0, weights=weights)


def _largest(store: Store, documents: np.ndarray) -> int:
    return max(int(token_ids(store.words(document)).max()) for document in documents.tolist())
