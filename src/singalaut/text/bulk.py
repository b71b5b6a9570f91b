"""Many texts to token ids: exactly the library's, several times faster on one core.

Byte-pair merges can only join two neighbouring characters if some token of the vocabulary holds
that pair. Wherever a text has a pair that no token holds, it can be cut, and the pieces tokenised
on their own give the same ids as the whole: no merge ever crosses the cut. The pieces are short
(most are one token), so nearly all of them have been seen before, and a dictionary answers.

Holds for tokenizers of the Gemma kind only; whether one is of that kind is checked, and others go
through the library. Conversations are `conversations.py`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from singalaut.text.vocabulary import SPACE

if TYPE_CHECKING:
    from singalaut.text.tokenizer import Tokenizer

IDS = np.dtype("<u4")
Words = np.ndarray[tuple[int], np.dtype[np.uint32]]
PAIR_BITS = 20  # a megabyte of table stays in the second-level cache; 4 % of it is taken by Gemma's
REMEMBERED_PIECES = 500_000  # about 100 MB
LONGEST_REMEMBERED = 64  # characters; longer pieces do not come again
TOGETHER_CHARACTERS = 20_000  # new pieces that the library is given as one text


class BulkEncoder:
    """Encodes many texts; remembers the pieces it has seen. Not to be shared between threads."""

    def __init__(self, tokenizer: Tokenizer, *, remembered_pieces: int = REMEMBERED_PIECES):
        self._tokenizer = tokenizer
        self._limit = remembered_pieces
        self._known: dict[str, bytes] = {}
        vocabulary = list(tokenizer.backend.get_vocab())
        self.longest_token = max(map(len, vocabulary))
        """In characters: by it, the tokens of a text can be bounded below."""
        self._is_joint = _joint_pairs(tokenizer, vocabulary)
        self._separator = None if self._is_joint is None else _separator(tokenizer, vocabulary)

    @property
    def cuts(self) -> bool:
        """Whether texts are cut at all; else every text goes through the library whole."""
        return self._is_joint is not None and self._separator is not None

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Token ids of each text, without BOS, as little-endian 32-bit integers.

        The ids of `Tokenizer.encode_batch`; control tokens written in a text stay text.
        Raises: UnicodeEncodeError if a text holds half of a surrogate pair.
        """
        if not self.cuts:
            return [_packed(ids) for ids in self._tokenizer.encode_batch(texts)]
        whole = "".join(texts)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        cuts = self._cuts(whole, ends)
        places = cuts.tolist()
        pieces = [whole[start:stop] for start, stop in pairwise(places)]
        found = self._look_up(pieces)
        ids, start = [], 0
        for stop in np.searchsorted(cuts, ends).tolist():
            ids.append(b"".join(found[start:stop]))
            start = stop
        return ids

    def _cuts(self, whole: str, ends: np.ndarray) -> np.ndarray:
        """Where the joined texts may be cut: between them, and between pairs no token holds."""
        code = np.frombuffer(whole.replace(" ", SPACE).encode("utf-32-le"), IDS)
        is_cut = np.zeros(len(code) + 1, dtype=bool)
        is_cut[0] = True
        if len(code) > 1:
            assert self._is_joint is not None
            is_cut[1:-1] = ~self._is_joint[_pair_hash(code[:-1], code[1:])]
        is_cut[ends] = True
        return np.flatnonzero(is_cut)

    def _look_up(self, pieces: list[str]) -> list[bytes]:
        found: list[Any] = list(map(self._known.get, pieces))
        if None not in found:
            return found
        missing = [place for place, ids in enumerate(found) if ids is None]
        encoded = self._encode_new(list({pieces[place] for place in missing}))
        for place in missing:
            found[place] = encoded[pieces[place]]
        if len(self._known) + len(encoded) > self._limit:
            self._known.clear()  # the common pieces are back within a few batches
        self._known.update(
            (piece, ids) for piece, ids in encoded.items() if len(piece) <= LONGEST_REMEMBERED
        )
        return found

    def _encode_new(self, pieces: list[str]) -> dict[str, bytes]:
        """Ids of pieces by the library, which takes ten times longer over many short texts.

        So they are joined by a character that no token holds beside others, and cut apart again.
        """
        assert self._separator is not None
        separator, _ = self._separator
        ids_of: dict[str, bytes] = {}
        batch: list[str] = []
        size = 0
        for piece in pieces:
            if separator in piece:
                ids_of[piece] = _packed(self._tokenizer.encode(piece))
                continue
            batch.append(piece)
            size += len(piece) + 1
            if size > TOGETHER_CHARACTERS:
                ids_of.update(zip(batch, self._encode_joined(batch), strict=True))
                batch, size = [], 0
        if batch:
            ids_of.update(zip(batch, self._encode_joined(batch), strict=True))
        return ids_of

    def _encode_joined(self, pieces: list[str]) -> list[bytes]:
        assert self._separator is not None
        separator, separator_id = self._separator
        ids = np.array(self._tokenizer.encode(separator.join(pieces)), dtype=IDS)
        stops = [*np.flatnonzero(ids == separator_id).tolist(), len(ids)]
        starts = [0, *(stop + 1 for stop in stops[:-1])]
        return [ids[start:stop].tobytes() for start, stop in zip(starts, stops, strict=True)]


def _packed(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=IDS).tobytes()


def _pair_hash(first: Words, second: Words) -> Words:
    """A place in the table for each pair of characters; pairs may share one.

    A pair that shares the place of a joint one is not cut, which costs time and changes nothing.
    """
    mixed = first * np.uint32(0x9E3779B1) + second * np.uint32(0x85EBCA6B)
    return (mixed ^ (mixed >> np.uint32(15))) & np.uint32((1 << PAIR_BITS) - 1)


def _joint_pairs(tokenizer: Tokenizer, vocabulary: list[str]) -> np.ndarray | None:
    """Which pairs of characters some token holds, by `_pair_hash`; None if cutting is not exact.

    Control and byte tokens are left out: no merge makes them, and they are not matched in texts.
    """
    backend = tokenizer.backend
    if not _is_plain(tokenizer):
        return None
    bytes_of = {f"<0x{byte:02X}>" for byte in range(256)}
    ids = [backend.token_to_id(token) for token in sorted(bytes_of)]
    spelled = tokenizer.encode_batch(sorted(bytes_of))
    if None in ids or any(set(found) & set(ids) for found in spelled):
        return None
    apart = bytes_of | tokenizer.control_tokens
    tokens = [token for token in vocabulary if len(token) > 1 and token not in apart]
    is_joint = np.zeros(1 << PAIR_BITS, dtype=bool)
    code = np.frombuffer("\0".join(tokens).replace(" ", SPACE).encode("utf-32-le"), IDS)
    inner = (code[:-1] != 0) & (code[1:] != 0)
    is_joint[_pair_hash(code[:-1], code[1:])[inner]] = True
    zero = any("\0" in token for token in tokens)
    return None if zero else is_joint


def _is_plain(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer is what the argument of this module needs: merges, and no more.

    Spaces become U+2581 and nothing else changes; unknown characters become bytes; words are not
    looked up whole; added tokens match wherever they stand.
    """
    backend, model = tokenizer.backend, tokenizer.backend.model
    normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    never = {"type": "Split", "pattern": {"String": " "}, "invert": False}  # no space is left
    before = _state(backend.pre_tokenizer)
    if before is not None:
        before.pop("behavior", None)
    added = backend.get_added_tokens_decoder().values()
    return (
        _state(backend.normalizer) == normalizer
        and before in (None, never)
        and bool(model.byte_fallback)
        and not (model.dropout or model.ignore_merges)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and not any(token.lstrip or token.rstrip or token.single_word for token in added)
    )


def _state(part: Any) -> dict[str, Any] | None:
    """The settings of a part of the library's tokenizer."""
    return None if part is None else json.loads(part.__getstate__())


def _separator(tokenizer: Tokenizer, vocabulary: list[str]) -> tuple[str, int] | None:
    """A character that is one token of its own beside any other character."""
    held = set("".join(token for token in vocabulary if len(token) > 1))
    for character in map(chr, range(1, 32)):
        ids = tokenizer.encode(character)
        if character not in held and len(ids) == 1:
            return character, ids[0]
    return None
