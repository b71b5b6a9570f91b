"""The SentencePiece file `tokenizer.model`: read for its scores, written for readers that want it.

A serialised protocol buffer `ModelProto`: pieces with score and type, the trainer's settings, the
normaliser's. llama.cpp's converter takes the exact tokenizer only from this file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from singalaut.text.vocabulary import NAMES, SPACE, UNKNOWN, USER_DEFINED

BPE = 2  # the trainer's kind of model
VARINT, FIXED, LENGTH = 0, 5, 2  # wire types
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of the file


def sentencepiece_model(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> bytes:
    """The file of a vocabulary that is given as GGUF files have it; the types are the same."""
    parts = []
    for token, score, kind in zip(tokens, scores, types, strict=True):
        piece = token.replace(" ", SPACE) if kind == USER_DEFINED else token
        kind = UNKNOWN if token == NAMES["unk_token"] else kind  # without one it cannot be loaded
        content = _text(1, piece) + _tag(2, FIXED) + struct.pack("<f", score) + _number(3, kind)
        parts.append(_message(PIECES, content))
    trainer = _number(3, BPE) + _number(4, len(tokens)) + _number(35, 1)  # with bytes as fallback
    for place, name in enumerate(("unk_token", "bos_token", "eos_token", "pad_token")):
        if NAMES[name] in tokens:
            trainer += _number(40 + place, tokens.index(NAMES[name]))
            trainer += _text(45 + place, NAMES[name])
    normalizer = _text(1, "identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
    return b"".join([*parts, _message(TRAINER, trainer), _message(NORMALIZER, normalizer)])


def sentencepiece_pieces(data: bytes) -> Iterator[tuple[str, float]]:
    """Every piece and its score in a serialised SentencePiece `ModelProto` (its field 1)."""
    for number, value in _fields(data):
        if number == PIECES and isinstance(value, bytes):
            piece = dict(_fields(value))
            text, score = piece.get(1, b""), piece.get(2, b"\0\0\0\0")
            if not isinstance(text, bytes) or not isinstance(score, bytes):
                raise ValueError("a piece is damaged")
            yield text.decode("utf-8"), struct.unpack("<f", score)[0]


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a protocol buffer message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown field kind {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"it breaks off at byte {at}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number is too long at byte {at}")


def _tag(field: int, wire: int) -> bytes:
    return _encoded(field << 3 | wire)


def _number(field: int, value: int) -> bytes:
    return _tag(field, VARINT) + _encoded(value)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, content: bytes) -> bytes:
    return _tag(field, LENGTH) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    """A number of seven bits a byte, lowest first."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
