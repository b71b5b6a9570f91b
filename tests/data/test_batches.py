"""Batches from a store: every token once, the same for any number of ranks and after a resume."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from singalaut.data.batches import PackedBatches, lay_out, micro_batches
from singalaut.data.mix import mixture
from singalaut.errors import DataError
from singalaut.text.chat import ChatFormat
from singalaut.text.conversations import is_learned, token_ids
from singalaut.text.tokenizer import Tokenizer

ROOM = 150


@pytest.fixture
def store(make_store):
    return make_store({"a": {"th": 40, "lo": 13}, "b": {"th": 20}})


@pytest.fixture
def packed(store):
    mix = mixture(store, 5, weights=[1.0, 0.7], limits=[None, None])

    def make(rank=0, world=1, **settings):
        values = {"row_tokens": ROOM, "rows_in_batch": 6} | settings
        return PackedBatches(store, mix, rank=rank, world=world, **values)

    return make


def same(first, second):
    return all(
        (a.tokens.equal(b.tokens) and a.mask.equal(b.mask) and a.lengths == b.lengths)
        for a, b in zip(first, second, strict=True)
    )


def test_a_row_holds_its_documents_whole(store):
    row = lay_out(store, [3, 50, 7])
    assert row.documents == (3, 50, 7)
    start = 0
    for document, length in zip(row.documents, row.lengths, strict=True):
        words = store.words(document)
        own = slice(start, start + length)
        assert row.tokens[0, own].tolist() == token_ids(words).tolist()
        assert row.mask[0, own].tolist() == is_learned(words).tolist()
        start += length
    assert start == row.tokens.shape[1]
    names = [store.languages[number] for number in row.languages]
    assert names == ["th", "lo", "th"]


def test_the_first_token_is_never_learned(store, monkeypatch):
    from singalaut.data.store import Store
    from singalaut.text.conversations import LEARNED

    everything = Store.words
    monkeypatch.setattr(Store, "words", lambda self, i: everything(self, i) | LEARNED)
    row = lay_out(store, [1, 2])
    begins = np.cumsum((0, *row.lengths[:-1]))
    assert not row.mask[0, begins].any() and row.mask.sum() == row.tokens.numel() - 2


@pytest.mark.parametrize("room", [40, 1000])
def test_micro_batches_lose_nothing(store, room):
    documents = np.array([0, 5, 9, 33, 60, 5])
    micros = micro_batches(store, documents, room)
    assert sorted(d for m in micros for d in m.documents) == sorted(documents.tolist())
    for micro in micros:
        assert sum(micro.lengths) <= room or len(micro.lengths) == 1
    assert len(micros) == (1 if room == 1000 else len(micros))


def test_a_pass_has_every_document_of_the_mixture(store, packed):
    batches = packed()
    seen = Counter()
    rows = 0
    while batches.state()["pass"] == 0:
        for row in next(batches):
            assert sum(row.lengths) <= ROOM
            if rows < batches.rows_in_pass(0):
                seen.update(row.documents)
            rows += 1
    mix = mixture(store, 5, weights=[1.0, 0.7], limits=[None, None])
    assert seen == Counter(mix.order(0).tolist())
    full = sum(store.documents["tokens"][list(seen)]) / (ROOM * packed().rows_in_pass(0))
    assert full > 0.9


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_the_same_batches(packed, world):
    alone, ranks = packed(), [packed(rank, world) for rank in range(world)]
    for _ in range(12):
        whole = next(alone)
        parts = [next(rank) for rank in ranks]
        for rank, part in enumerate(parts):
            assert same(part, whole[rank::world])


def test_a_resumed_iteration_goes_on(packed):
    whole = packed()
    batches = [next(whole) for _ in range(15)]
    first = packed(0, 1)
    for _ in range(7):
        next(first)
    state = first.state()
    resumed = packed(1, 3)  # another number of ranks
    resumed.load_state(state)
    for expected in batches[7:]:
        assert same(next(resumed), expected[1::3])
    assert state != packed().state()


def test_what_cannot_be_packed(packed):
    with pytest.raises(DataError, match=r"7 rows in a batch cannot be shared by 2"):
        packed(rows_in_batch=7, world=2)
    with pytest.raises(DataError, match=r"the longest conversation has \d+ tokens, a row has 20"):
        packed(row_tokens=20)


def test_the_store_holds_what_the_format_says(store, tiny_model):
    """A document of the store against the reference for one conversation."""
    from singalaut.contracts import Message

    chat = ChatFormat.load(tiny_model, Tokenizer.load(tiny_model))
    ids, mask = chat.encode_with_mask([Message("user", "x" * 38), Message("assistant", "a th 1")])
    assert token_ids(store.words(1)).tolist() == ids
    assert is_learned(store.words(1)).tolist() == mask
