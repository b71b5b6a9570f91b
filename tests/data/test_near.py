"""Near-duplicates against all pairs compared, windows against plain loops, repetition likewise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.data import near
from singalaut.data.filters import REPEATED_RUN_TOKENS, repetition
from singalaut.data.near import find_twins, rows_of_band, shingles, signatures, similarity
from singalaut.data.ngrams import inner_windows, mix, window_hashes

DOCUMENTS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=30), min_size=1, max_size=6)


def together(documents):
    lengths = np.array([len(document) for document in documents])
    return np.array([t for d in documents for t in d], dtype=np.uint32), lengths


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(0, 3), max_size=40), size=st.integers(1, 12))
def test_windows_have_one_hash_for_one_content(values, size):
    hashes = window_hashes(np.array(values, dtype=np.uint32), size).tolist()
    windows = [tuple(values[i : i + size]) for i in range(len(values) - size + 1)]
    assert len(hashes) == len(windows)
    assert len(set(zip(hashes, windows, strict=True))) == len(set(windows)) == len(set(hashes))


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), max_size=8), size=st.integers(1, 5))
def test_inner_windows_stay_within_documents(lengths, size):
    ends = list(itertools.accumulate(lengths))
    expected = [
        place
        for end, length in zip(ends, lengths, strict=True)
        for place in range(end - length, end - size + 1)
    ]
    assert inner_windows(np.array(lengths, dtype=np.int64), size).tolist() == expected


def test_mixing_is_a_bijection_without_structure():
    numbers = mix(np.arange(100_000))
    assert len(np.unique(numbers)) == 100_000
    ones = np.bitwise_count(numbers).mean()
    assert abs(ones - 32) < 0.1


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS)
def test_repetition_equals_a_count(documents):
    def share(tokens):
        size = REPEATED_RUN_TOKENS
        runs = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
        return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0

    found = repetition(*together(documents))
    assert found.tolist() == pytest.approx([share(document) for document in documents])


def damaged_copies(seed=0, originals=250, copies=250):
    """Random documents, and copies of some with a few tokens changed."""
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 500, rng.integers(3, 200)) for _ in range(originals)]
    for _ in range(copies):
        copy = documents[rng.integers(originals)].copy()
        for _ in range(int(len(copy) * rng.choice([0, 0.01, 0.03, 0.1]))):
            copy[rng.integers(len(copy))] = rng.integers(500)
        documents.append(copy)
    return [document.astype(np.uint32) for document in documents]


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_twins_are_those_of_all_pairs(threshold):
    documents = damaged_copies()
    sets = [set(shingles(document).tolist()) for document in documents]

    def jaccard(a, b):
        return len(sets[a] & sets[b]) / len(sets[a] | sets[b])

    signature = signatures(*together(documents))
    twins = find_twins(signature, threshold, lambda i: shingles(documents[i]))
    for dropped, kept, found in twins:
        assert kept < dropped and found >= threshold
        assert found == pytest.approx(jaccard(dropped, kept))
    alive = set(range(len(documents))) - {twin.dropped for twin in twins}
    left = [
        pair for pair in itertools.combinations(sorted(alive), 2) if jaccard(*pair) >= threshold
    ]
    assert len(left) <= 0.05 * len(twins), (len(left), len(twins))
    assert len(twins) > 60


def test_a_wrong_threshold_is_noticed():
    """The count of twins depends on the threshold, so the comparison above can fail."""
    documents = damaged_copies()
    signature = signatures(*together(documents))
    counts = [
        len(find_twins(signature, threshold, lambda i: shingles(documents[i])))
        for threshold in (0.6, 0.8, 0.95)
    ]
    assert counts[0] > counts[1] > counts[2]


def test_signatures_agree_as_often_as_sets_do():
    documents = damaged_copies(seed=1, originals=50, copies=150)
    signature = signatures(*together(documents))
    error = []
    for a, b in itertools.combinations(range(0, 200, 3), 2):
        exact = similarity(shingles(documents[a]), shingles(documents[b]))
        error.append((signature[a] == signature[b]).mean() - exact)
    assert abs(np.mean(error)) < 0.005 and np.std(error) < 0.06


@settings(max_examples=50, deadline=None)
@given(documents=DOCUMENTS)
def test_a_signature_does_not_depend_on_the_neighbours(documents):
    whole = signatures(*together(documents))
    alone = np.concatenate([signatures(*together([document])) for document in documents])
    assert np.array_equal(whole, alone)


def test_bands_find_what_is_at_the_threshold():
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        rows = rows_of_band(threshold)
        found = 1 - (1 - threshold**rows) ** (near.PLACES // rows)
        assert found >= near.WANTED_RECALL
    assert signatures(np.empty(0, np.uint32), np.empty(0, np.int64)).shape == (0, near.PLACES)
