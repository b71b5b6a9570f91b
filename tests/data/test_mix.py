"""Quotas of sources and languages over many passes, and an order that is a function of the seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.data.mix import Mixture, hold_out, mixture, shuffled
from singalaut.errors import DataError


def drawn(store, order):
    """How many documents of each source and language are in an order."""
    names = [source.name for source in store.sources]
    records = store.documents[order]
    return Counter(
        (names[s], store.languages[n])
        for s, n in zip(records["source"].tolist(), records["language"].tolist(), strict=True)
    )


def mixed(store, seed=0, weights=(1.0, 1.0), limits=(None, None), **settings):
    return mixture(store, seed, weights=weights, limits=limits, **settings)


@pytest.fixture
def store(make_store):
    return make_store({"a": {"th": 40, "lo": 10}, "b": {"th": 20}})


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    quotas=st.lists(st.floats(0.01, 30), min_size=4, max_size=4),
    seed=st.integers(0, 2**62),
)
def test_all_documents_of_a_group_are_used_equally_often(sizes, quotas, seed):
    ends = np.cumsum(sizes)
    groups = tuple(np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True))
    mix = Mixture(groups, tuple(quotas[: len(sizes)]), seed)
    used = Counter()
    for number in range(5):
        order = mix.order(number)
        used.update(order.tolist())
        assert len(order) == mix.begin(number + 1) - mix.begin(number)
        for group, quota in zip(groups, mix.quotas, strict=True):
            times = [used[document] for document in group.tolist()]
            assert max(times) - min(times) <= 1
            assert sum(times) == int((number + 1) * quota)
        assert np.array_equal(order, Mixture(groups, mix.quotas, seed).order(number))


@settings(max_examples=50, deadline=None)
@given(
    quotas=st.lists(st.floats(0.1, 9), min_size=3, max_size=3), first=st.integers(0, 60),
    count=st.integers(0, 40),
)  # fmt: skip
def test_any_part_of_the_sequence_can_be_asked_for(quotas, first, count):
    groups = (np.arange(4), np.arange(4, 5), np.arange(5, 12))
    mix = Mixture(groups, tuple(quotas), 1)
    passes = np.concatenate(
        [mix.order(number) for number in range(1200 // max(1, int(sum(quotas))))]
    )
    assert np.array_equal(mix.documents(first, first + count), passes[first : first + count])


def test_orders_differ_between_passes_and_seeds(store):
    one, other = mixed(store), mixed(store, seed=1)
    assert sorted(one.order(0)) == sorted(one.order(1)) == list(range(70))
    assert not np.array_equal(one.order(0), one.order(1))
    assert not np.array_equal(one.order(0), other.order(0))
    apart = shuffled(np.arange(70), 5, "x")
    fewer = shuffled(np.delete(np.arange(70), 3), 5, "x")
    assert np.array_equal(apart[apart != 3], fewer)


def test_weights_limits_and_factors(store):
    plain = {("a", "th"): 40, ("a", "lo"): 10, ("b", "th"): 20}
    assert drawn(store, mixed(store).order(0)) == plain
    assert drawn(store, mixed(store, weights=(0.5, 2.0)).order(0)) == {
        ("a", "th"): 20, ("a", "lo"): 5, ("b", "th"): 40,
    }  # fmt: skip
    assert drawn(store, mixed(store, limits=(25, None)).order(0)) == {
        ("a", "th"): 20, ("a", "lo"): 5, ("b", "th"): 20,
    }  # fmt: skip
    factors = mixed(store, sources={"b": 0}, languages={"lo": 3.0})
    assert drawn(store, factors.order(0)) == {("a", "th"): 40, ("a", "lo"): 30}
    capped = mixed(store, languages={"lo": 3.0}, max_repeats=1.5)
    assert drawn(store, capped.order(0))["a", "lo"] == 15


@pytest.mark.parametrize(("temperature", "share"), [(1, 10 / 70), (2, None), (100, 0.5)])
def test_temperature_brings_languages_together(temperature, share, store):
    expected = share or 10**0.5 / (10**0.5 + 60**0.5)
    mix = mixed(store, temperature=temperature)
    orders = np.concatenate([mix.order(number) for number in range(20)])
    counts = drawn(store, orders)
    assert counts["a", "lo"] / len(orders) == pytest.approx(expected, abs=0.01)
    assert len(orders) == pytest.approx(20 * 70, abs=20)
    assert counts["a", "th"] / counts["b", "th"] == pytest.approx(2, rel=0.02)


def test_long_and_held_out_documents_are_left_out(store):
    tokens = store.documents["tokens"]
    short = mixed(store, longest=60)
    assert set(short.order(0)) == set(np.flatnonzero(tokens <= 60)) and tokens.max() > 60
    held = hold_out(store, 3, 4)
    assert np.array_equal(held, hold_out(store, 3, 4))
    assert drawn(store, held)["a", "lo"] == 1 and len(held) == 5
    assert set(mixed(store, without=held).order(0)).isdisjoint(held.tolist())


def test_what_the_store_does_not_have(store):
    with pytest.raises(DataError, match=r"sources named `c`[\s\S]*known: a, b"):
        mixed(store, sources={"c": 1})
    with pytest.raises(DataError, match=r"languages named `my`[\s\S]*known: lo, th"):
        mixed(store, languages={"my": 1})
    with pytest.raises(DataError, match="less than one row"):
        mixed(store, sources={"a": 0, "b": 0})


def test_ten_million_documents_are_ordered_without_lists():
    """Only numbers in arrays: a pass of many documents in seconds."""
    groups = tuple(np.arange(start, start + 100_000) for start in range(0, 1_000_000, 100_000))
    order = Mixture(groups, (100_000.0,) * 10, 0).order(3)
    assert len(np.unique(order)) == 1_000_000
    middle = order[:100_000]
    assert abs(np.mean(middle) - 500_000) < 5_000  # well mixed
