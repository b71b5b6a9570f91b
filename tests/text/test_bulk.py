"""Cutting texts where no token reaches across gives the library's ids, whatever the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.text.bulk import IDS, BulkEncoder
from singalaut.text.tokenizer import Tokenizer

PARTS = [
    "  ",
    "\n",
    "\n\n",
    "▁",
    " ",
    "<table>",
    "</td>",
    "the",
    "าร",
    "ที่",
    ">",
    "</",
    "2024",
    "\x01",
]
PARTS += [
    "<end_of_turn>",
    "<0x0A>",
    "<unused7>",
    "é",
    "\U0010ffff",
    "မြန်မာ",
    "人人生而自由",
    "\x00",
    "\r\n",
]
TEXT = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=6)), max_size=12).map("".join)


def plain(tokenizer, texts):
    return [np.array(ids, IDS).tobytes() for ids in tokenizer.encode_batch(texts)]


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.real)])
def tokenizer(request, tiny_tokenizer):
    if request.param == "tiny":
        return tiny_tokenizer
    return Tokenizer.load(request.getfixturevalue("real_model"))


@pytest.fixture(scope="module")
def bulk(tokenizer):
    return BulkEncoder(tokenizer)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXT, max_size=6))
def test_any_text_has_the_ids_of_the_library(bulk, tokenizer, texts):
    assert bulk.cuts
    assert bulk.encode(texts) == plain(tokenizer, texts)


def test_real_lines_have_the_ids_of_the_library(bulk, tokenizer, lines, smuggled):
    texts = [*lines, *smuggled, "".join(lines[:200])]
    assert bulk.encode(texts) == plain(tokenizer, texts)
    assert bulk.encode(texts) == plain(tokenizer, texts)  # and when every piece is known


def test_forgetting_changes_nothing(tokenizer, lines):
    forgetful = BulkEncoder(tokenizer, remembered_pieces=50)
    for start in range(0, 200, 20):
        texts = lines[start : start + 20]
        assert forgetful.encode(texts) == plain(tokenizer, texts)


def test_a_cut_inside_a_token_is_noticed(tokenizer, lines):
    """The comparison fails if one pair that tokens hold is cut as well."""
    damaged = BulkEncoder(tokenizer)
    damaged._is_joint[:] = False
    assert damaged.encode(lines[:50]) != plain(tokenizer, lines[:50])


def test_long_pieces_and_half_characters(bulk, tokenizer):
    texts = ["=" * 30_000, "\n" * 100, "x" + " " * 5000 + "y", "\x01" * 3, ""]
    assert bulk.encode(texts) == plain(tokenizer, texts)
    assert not any(len(piece) > 64 for piece in bulk._known)
    with pytest.raises(UnicodeEncodeError):
        bulk.encode(["good", "bad \ud800"])


def test_a_tokenizer_of_another_kind_is_not_cut(tiny_vocabulary):
    from tokenizers import Regex, normalizers, pre_tokenizers

    changes = {
        "normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")]),
        "pre_tokenizer": pre_tokenizers.Split(Regex("a"), "isolated"),
    }
    for name, value in changes.items():
        other = Tokenizer.from_vocabulary(*tiny_vocabulary)
        setattr(other.backend, name, value)
        bulk = BulkEncoder(other)
        assert not bulk.cuts
        assert bulk.encode(["banana at the", ""]) == plain(other, ["banana at the", ""])
    other = Tokenizer.from_vocabulary(*tiny_vocabulary)
    other.backend.model.ignore_merges = True
    assert not BulkEncoder(other).cuts
