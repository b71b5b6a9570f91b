"""Choices against brute force, BM25 against its formula written plainly."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.errors import RecipeError
from singalaut.select import choose
from singalaut.select.choose import best, facility_location, k_centre, quota_counts
from singalaut.select.scores import bm25
from singalaut.text.conversations import token_ids


def vectors(count, seed=0):
    found = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def coverage(v, chosen):
    return np.maximum(v @ v[list(chosen)].T, 0).max(1).sum()


def test_facility_location_is_greedy_and_near_the_best():
    for seed in range(5):
        v = vectors(12, seed)
        found = facility_location(v, 4)
        for step in range(4):
            gains = [coverage(v, [*found[:step], j]) for j in range(12)]
            assert coverage(v, found[: step + 1]) == pytest.approx(max(gains), rel=1e-5)
        optimum = max(coverage(v, chosen) for chosen in combinations(range(12), 4))
        assert coverage(v, found) >= (1 - 1 / math.e) * optimum
        assert coverage(v, best(-coverage_each(v), 4)) < coverage(v, found)


def coverage_each(v):
    return np.maximum(v @ v.T, 0).sum(0)


def test_k_centre_takes_the_farthest():
    for seed in range(5):
        v = vectors(15, seed)
        found = k_centre(v, 6).tolist()
        assert found[0] == 0 and len(set(found)) == 6
        for step in range(1, 6):
            distances = [min(np.linalg.norm(v[j] - v[i]) for i in found[:step]) for j in range(15)]
            assert distances[found[step]] == pytest.approx(max(distances), rel=1e-5)
    same = np.ones((4, 5), dtype=np.float32)
    assert sorted(k_centre(same, 4).tolist()) == [0, 1, 2, 3]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 80),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.floats(0, 0.25), max_size=4),
)
def test_quotas_come_to_the_count(groups, count, wanted):
    groups = np.array(groups)
    names = ["a", "b", "c", "d"]
    found = quota_counts(groups, names, wanted, count)
    assert sum(found.values()) == min(count, len(groups))
    for group, number in found.items():
        assert 0 <= number <= (groups == group).sum()


def test_quotas_are_kept_where_they_can_be(caplog):
    groups = np.array([0] * 60 + [1] * 30 + [2] * 10)
    assert quota_counts(groups, ["a", "b", "c"], {}, 10) == {0: 6, 1: 3, 2: 1}
    assert quota_counts(groups, ["a", "b", "c"], {"c": 0.5}, 10) == {0: 3, 1: 2, 2: 5}
    assert quota_counts(groups, ["a", "b", "c"], {"c": 1.0}, 20)[2] == 10  # all there are
    assert [r.getMessage() for r in caplog.records] == [
        "quota of `c`: 10 of 20 rows are there; others take their place"
    ]
    for wanted, what in (({"x": 0.1}, "of `x`"), ({"a": 0.8, "b": 0.8}, "more than 1")):
        with pytest.raises(RecipeError, match=what):
            quota_counts(groups, ["a", "b", "c"], wanted, 10)


def test_too_many_candidates_are_refused(monkeypatch):
    monkeypatch.setattr(choose, "MOST_CANDIDATES", 3)
    with pytest.raises(RecipeError, match="4 candidates"):
        facility_location(vectors(4), 2)


def test_bm25_equals_its_formula(open_file, pool_file, target_file):
    pool, target = open_file(pool_file), open_file(target_file)
    documents, asked = np.arange(0, 40, 2), np.arange(3)
    found = bm25(pool, documents, [(target, asked), (pool, documents[:2])])
    texts = [token_ids(pool.words(int(d))).tolist() for d in documents]
    questions = [
        {t for d in asked for t in token_ids(target.words(int(d))).tolist()},
        {t for text in texts[:2] for t in text},
    ]
    mean = sum(map(len, texts)) / len(texts)
    for place, text in enumerate(texts):
        for number, question in enumerate(questions):
            total = 0.0
            for term in question:
                n = sum(term in other for other in texts)
                rarity = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
                f = text.count(term)
                total += rarity * f * 2.5 / (f + 1.5 * (1 - 0.75 + 0.75 * len(text) / mean))
            assert found[place, number] == pytest.approx(total, rel=1e-9)
