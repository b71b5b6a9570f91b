"""Many conversations to token ids and loss masks at once.

Gives what `ChatFormat.encode_with_mask` gives for each, many times faster: the template is run
once for each shape of conversation, and texts go through `bulk.py` together. The mask is the top
bit of a token's 32-bit word, so that one array holds both; that is also how they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from singalaut.contracts import Message, Role
from singalaut.errors import DataError
from singalaut.text.bulk import IDS, BulkEncoder
from singalaut.text.chat import (
    REMEMBERED_LAYOUTS,
    ChatFormat,
    Layout,
    Shape,
    check_learnable,
    normalise_turns,
)
from singalaut.text.parts import ImageTokens, image_sources

LEARNED = np.uint32(1 << 31)  # the bit of a token that the model shall learn to write
TOKEN = np.uint32(LEARNED - 1)  # the bits of its id
NOT_UNICODE = DataError(
    "a text is not valid Unicode", hint="half of a surrogate pair; repair or drop the row"
)


_Marked = tuple[list[bytes], tuple[int, ...]]  # the template's words, and the order of the turns


@dataclass(frozen=True)
class _Texts:
    """A conversation as its shape and the text of each turn."""

    shape: Shape
    texts: list[str]


class ConversationEncoder:
    """Encodes conversations in the format of one model."""

    def __init__(self, chat: ChatFormat, bulk: BulkEncoder, *, tokens_per_image: int | None = None):
        """`tokens_per_image` is None for a model that cannot see."""
        self._chat = chat
        self._bulk = bulk
        self._tokens_per_image = tokens_per_image
        self._around: dict[Shape, _Marked] = {}

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[bytes | DataError]:
        """Each conversation as 32-bit words, little-endian: a token id, and `LEARNED` or not.

        In the place of a conversation that cannot be learned from stands the reason.
        """
        read = [_read(messages) for messages in conversations]
        flat = [text for item in read if isinstance(item, _Texts) for text in item.texts if text]
        try:
            ids = iter(self._bulk.encode(flat))
        except UnicodeEncodeError:
            read = [_unicode(item) for item in read]
            flat = [t for item in read if isinstance(item, _Texts) for t in item.texts if t]
            ids = iter(self._bulk.encode(flat))
        results: list[bytes | DataError] = []
        for item, messages in zip(read, conversations, strict=True):
            if isinstance(item, _Texts):
                found = [next(ids) if text else b"" for text in item.texts]
                results.append(self._lay_out(item.shape, found))
            else:
                results.append(self._with_images(messages) if item is None else item)
        return results

    def _lay_out(self, shape: Shape, ids: list[bytes]) -> bytes | DataError:
        if shape not in self._around:
            if len(self._around) >= REMEMBERED_LAYOUTS:
                self._around.clear()
            try:
                self._around[shape] = _marked(self._chat.layout(shape), shape)
            except DataError as error:
                return error
        pieces, order = self._around[shape]
        parts = [pieces[0]]
        for index, piece in zip(order, pieces[1:], strict=True):
            learnt = shape[index][0] == "assistant"
            parts.append(_learned(ids[index]) if learnt else ids[index])
            parts.append(piece)
        return b"".join(parts)

    def _with_images(self, messages: Sequence[Message]) -> bytes | DataError:
        try:
            count, each = len(image_sources(messages)), self._tokens_per_image
            images = None if each is None else ImageTokens((0,) * count, each)
            ids, mask = self._chat.encode_with_mask(messages, images=images)
        except DataError as error:
            return error
        words = np.array(ids, dtype=IDS)
        words[mask] |= LEARNED
        return words.tobytes()


def token_ids(words: np.ndarray) -> np.ndarray:
    """The ids in an array of 32-bit words."""
    return words & TOKEN


def is_learned(words: np.ndarray) -> np.ndarray:
    """The loss mask in an array of 32-bit words."""
    return words >= LEARNED


def _read(messages: Sequence[Message]) -> _Texts | DataError | None:
    """The shape and texts of a conversation, or why it has none; None for one with images."""
    plain = _alternating(messages)
    if plain is not None:
        return plain
    try:
        turns = normalise_turns(messages)
        if any(not isinstance(turn.content, str) for turn in turns):
            return None
        check_learnable(turns)
    except DataError as error:
        return error
    texts = [turn.content for turn in turns if isinstance(turn.content, str)]
    return _Texts(tuple((turn.role, bool(turn.content)) for turn in turns), texts)


def _alternating(messages: Sequence[Message]) -> _Texts | None:
    """What nearly all conversations are: plain texts, user and assistant in turn, none empty."""
    shape: list[tuple[Role, bool]] = []
    texts = []
    before = None
    for message in messages:
        role, content = message.role, message.content
        if not isinstance(content, str) or message.tool_calls:
            return None
        text = content.strip()
        if role == "user":
            fits = before in (None, "system", "assistant")
        elif role == "assistant":
            fits = before == "user"
        else:
            fits = role == "system" and before is None
        if not (fits and text):
            return None
        shape.append((role, True))
        texts.append(text)
        before = role
    return _Texts(tuple(shape), texts) if ("assistant", True) in shape else None


def _unicode(item: _Texts | DataError | None) -> _Texts | DataError | None:
    if isinstance(item, _Texts):
        try:
            "".join(item.texts).encode()
        except UnicodeEncodeError:
            return NOT_UNICODE
    return item


def _marked(layout: Layout, shape: Shape) -> _Marked:
    """The template's tokens as words; the one that ends an assistant's turn is learned."""
    words = [np.array(piece, dtype=IDS) for piece in layout.pieces]
    for index, piece in zip(layout.order, words[1:], strict=True):
        if shape[index][0] == "assistant":
            piece[0] |= LEARNED
    return [piece.tobytes() for piece in words], layout.order


def _learned(ids: bytes) -> bytes:
    return (np.frombuffer(ids, IDS) | LEARNED).tobytes()
