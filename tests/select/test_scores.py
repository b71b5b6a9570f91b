"""What rows are worth where there are several targets, and whose gradient a target has."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.select.choose import best
from singalaut.select.features import Features
from singalaut.select.scores import influence, served, worth


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 60), st.integers(2, 4), st.integers(0, 2**31))
def test_targets_take_turns_whatever_their_scale(rows, targets, seed):
    chance = np.random.default_rng(seed)
    scores = chance.normal(size=(rows, targets)) * 10.0 ** chance.integers(-3, 3, targets)
    count = rows // 2
    chosen = best(worth(scores), count)
    left, turn, wanted = set(range(rows)), 0, list[int]()
    while len(wanted) < count:  # round by round, each target names its next best row of all
        for target in range(targets):
            row = int(np.argsort(-scores[:, target], kind="stable")[turn])
            if row in left:
                left.remove(row)
                wanted.append(row)
        turn += 1
    assert set(chosen) <= set(wanted)
    assert set(served(scores)[chosen]) <= set(range(targets))


def test_the_largest_scores_would_leave_a_target_without_rows():
    scores = np.stack([np.linspace(10, 20, 50), np.linspace(2, 1, 50)], 1)
    chosen = best(worth(scores), 10)
    assert np.bincount(served(scores)[chosen]).tolist() == [5, 5]
    assert np.bincount(scores[best(scores.max(1), 10)].argmax(1), minlength=2).tolist() == [10, 0]


def test_the_gradient_of_a_target_is_that_of_its_tokens():
    chance = np.random.default_rng(0)

    def features(count):
        vectors = chance.normal(size=(count, 16)).astype(np.float32)
        norms = np.linalg.norm(vectors, axis=1)
        return Features(vectors / norms[:, None], norms, np.zeros(count, np.float32))

    pool, target, tokens = features(30), features(5), np.array([1, 2, 40, 3, 4])
    found = influence([pool], [[target]], [1.0], [tokens])[:, 0]
    summed = (target.vectors * target.norms[:, None] * tokens[:, None]).sum(0)
    wanted = pool.vectors @ (summed / np.linalg.norm(summed))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(influence([pool], [[target]], [1.0])[:, 0] - wanted).max() > 0.01
