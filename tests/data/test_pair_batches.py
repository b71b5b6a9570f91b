"""Pairs laid out in rows: what both conversations begin with is there once, and nothing is lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.data.pair_batches import common_beginning, pack_pairs
from singalaut.text.conversations import is_learned, token_ids

LEARNED = np.uint32(1 << 31)
ids = st.integers(1, 3)


@st.composite
def conversations(draw):
    """Two conversations as words: a prompt, mostly the same, and answers that may begin alike."""
    prompt = draw(st.lists(ids, min_size=1, max_size=5))
    found = []
    for _ in range(2):
        begins = prompt if draw(st.booleans()) else draw(st.lists(ids, min_size=1, max_size=5))
        answer = draw(st.lists(ids, min_size=1, max_size=5))
        words = np.array(begins + answer, dtype=np.uint32)
        words[len(begins) :] |= LEARNED
        found.append(words)
    return tuple(found)


class Known:
    def __init__(self, both):
        self.both = both

    def words(self, pair):
        return self.both[pair]


@settings(max_examples=150, deadline=None)
@given(st.lists(conversations(), min_size=1, max_size=5), st.integers(1, 40))
def test_rows_hold_both_conversations_of_every_pair(both, room):
    rows = pack_pairs(Known(both), np.arange(len(both)), room)
    assert sorted(place for row in rows for place in row.places.tolist()) == list(range(len(both)))
    for row in rows:
        tokens = row.tokens[0].numpy()
        assert len(tokens) == sum(map(sum, row.trees)) == sum(row.lengths)
        assert len(row.lengths) == 2 * len(row.places)
        assert len(row.places) == 1 or len(tokens) <= room
        documents, start = [], 0
        for trunk, *branches in row.trees:
            end = start + trunk
            for branch in branches:
                places = [*range(start, start + trunk), *range(end, end + branch)]
                documents.append(places)
                end += branch
            if not branches:
                documents.append(list(range(start, end)))
            start = end
        for number, places in enumerate(documents):
            words = both[row.places[number // 2]][number % 2]
            np.testing.assert_array_equal(tokens[places], token_ids(words))
            at = np.flatnonzero(is_learned(words))
            mine = row.answer_document.numpy() == number
            np.testing.assert_array_equal(row.targets.numpy()[mine], token_ids(words[at]))
            np.testing.assert_array_equal(row.before.numpy()[mine], np.array(places)[at - 1])
        for pair, place in enumerate(row.places.tolist()):
            computed = sum(row.lengths[2 * pair : 2 * pair + 2])
            assert computed == sum(map(len, both[place])) - common_beginning(*both[place])


def test_a_conversation_keeps_a_word_of_its_own():
    long, short = np.arange(1, 9, dtype=np.uint32), np.arange(1, 5, dtype=np.uint32)
    assert common_beginning(long, short) == common_beginning(short, long) == 3
    assert common_beginning(long, long[::-1]) == 0
