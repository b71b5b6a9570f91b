"""The chat format: conversations to token ids by a sandboxed Jinja2 template, and the loss mask.

The template never sees what people wrote. It is rendered with a placeholder for each message,
and only its own text is read for control tokens; the messages are tokenised as plain text and
put in afterwards. So `<end_of_turn>` in a message stays text, whatever the template does.
Parts of a message are `parts.py`'s work; tools and the decoding of images are left to others.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from singalaut.contracts import Message, Role
from singalaut.errors import CheckpointError, DataError
from singalaut.text.parts import (
    ImageTokens,
    Parts,
    content_of,
    count_images,
    expand,
    join,
    parts_of,
    shown,
    text_part,
)
from singalaut.text.template import (
    GEMMA_TEMPLATE,
    compile_template,
    read_template,
    template_error,
)

if TYPE_CHECKING:
    from singalaut.text.tokenizer import Tokenizer

__all__ = ["GEMMA_TEMPLATE", "ChatFormat", "ImageTokens", "Layout", "Shape", "normalise_turns"]

REMEMBERED_LAYOUTS = 4096
Shape = tuple[tuple[Role, bool], ...]  # of each turn: who speaks, and whether there is text


class Layout(NamedTuple):
    """Token ids of the template's own text, and the turns whose texts stand between, in order."""

    pieces: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]


class ChatFormat:
    """Turns conversations into the token ids that a chat model was trained on."""

    def __init__(
        self, tokenizer: Tokenizer, template: str | None = None, *, where: Path | None = None
    ):
        """Compile `template`, Gemma's own where None.

        Raises: CheckpointError with the line of a template that cannot be compiled.
        """
        self.template = GEMMA_TEMPLATE if template is None else template
        self._tokenizer = tokenizer
        self._where = where
        self._compiled = compile_template(self.template, where)
        self._layouts: dict[Shape, Layout] = {}
        self._names = {
            "bos_token": tokenizer.token(tokenizer.bos_id),
            "eos_token": tokenizer.token(tokenizer.eos_id),
            "pad_token": tokenizer.token(tokenizer.pad_id),
            "unk_token": tokenizer.token(tokenizer.unk_id),
        }

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> ChatFormat:
        """The template of a model directory; Gemma's own where it has none, as base models do.

        Raises: CheckpointError for a template that cannot be read or compiled.
        """
        template, file = read_template(directory) or (GEMMA_TEMPLATE, None)
        return cls(tokenizer, template, where=file)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the tokenizer and the template."""
        return hashlib.sha256(f"{self._tokenizer.identity}\0{self.template}".encode()).hexdigest()

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The conversation as the model reads it; for people to look at, not to tokenise.

        Raises: DataError for a conversation that does not fit the format.
        """
        turns = normalise_turns(messages)
        parts = self._parts(turns, generation_prompt)
        parts[1::2] = [shown(turns[int(index)].content) for index in parts[1::2]]
        return "".join(parts)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool = True,
        images: ImageTokens | None = None,
    ) -> list[int]:
        """Token ids of a conversation, BOS included; `images` where the model can see.

        Raises: DataError for a conversation that does not fit the format, and for images that
        `images` does not tell of.
        """
        turns = normalise_turns(messages)
        parts = self._parts(turns, generation_prompt)
        return [i for ids in self._encode(turns, parts, images) for i in ids]

    def encode_with_mask(
        self, messages: Sequence[Message], *, images: ImageTokens | None = None
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a whole conversation, and which of them the model shall learn to write.

        True for the text of each assistant turn and the token that ends the turn.
        Raises: DataError as `encode`, if no assistant turn is there, or one is without text.
        """
        turns = normalise_turns(messages)
        check_learnable(turns)
        parts = self._parts(turns, generation_prompt=False)
        ids: list[int] = []
        mask: list[bool] = []
        learnt = False
        for position, piece in enumerate(self._encode(turns, parts, images)):
            if position % 2 == 0:  # the template's own text, which closes the turn before it
                self._check_closed(piece, learnt)
                mask += [learnt and index == 0 for index in range(len(piece))]
            else:
                learnt = turns[int(parts[position])].role == "assistant"
                mask += [learnt] * len(piece)
            ids += piece
        return ids, mask

    def layout(self, shape: Shape) -> Layout:
        """What the template writes around the texts of a conversation of this shape.

        It never sees the texts, so conversations of one shape share it; it is remembered.
        Raises: DataError where the template refuses the shape.
        """
        if shape not in self._layouts:
            if len(self._layouts) >= REMEMBERED_LAYOUTS:
                self._layouts.clear()
            self._layouts[shape] = self._make_layout(shape)
        return self._layouts[shape]

    def _make_layout(self, shape: Shape) -> Layout:
        parts = self._parts([Message(role, "x" if filled else "") for role, filled in shape], False)
        order = tuple(int(index) for index in parts[1::2])
        pieces = self._tokenizer.encode_batch(parts[0::2], control=True)
        for piece, index in zip(pieces[1:], order, strict=True):
            self._check_closed(piece, shape[index][0] == "assistant")
        return Layout(tuple(map(tuple, pieces)), order)

    def _parts(self, turns: Sequence[Message], generation_prompt: bool) -> list[str]:
        """Template text and, at odd positions, the number of the turn whose text stands there."""
        nonce = secrets.token_hex(8)  # so that the template cannot hold it by accident
        names = [f"\ue000{nonce}.{index}\ue001" for index in range(len(turns))]
        messages = [
            {"role": turn.role, "content": name if turn.content else ""}
            for turn, name in zip(turns, names, strict=True)
        ]
        rendered = self._run(messages, generation_prompt)
        parts = re.split(f"\ue000{nonce}\\.([0-9]+)\ue001", rendered)
        expected = [str(index) for index, turn in enumerate(turns) if turn.content]
        if sorted(parts[1::2], key=int) != expected:
            raise CheckpointError(
                "the chat template leaves out, changes or repeats the text of a message",
                where=self._where,
                hint="a template that Singalaut can use puts each message's content in once",
            )
        return parts

    def _run(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        try:
            return str(
                self._compiled.render(
                    messages=messages, add_generation_prompt=generation_prompt, **self._names
                )
            )
        except DataError:
            raise
        except Exception as error:  # a template can fail in any way a program can
            raise template_error(error, self._where) from error

    def _encode(
        self, turns: Sequence[Message], parts: Sequence[str], images: ImageTokens | None
    ) -> list[list[int]]:
        """Token ids of each part: control tokens are read in template text only."""
        order = [int(index) for index in parts[1::2]]
        template = list(parts[0::2])
        crops = self._crops(turns, images)
        bodies: list[list[str | list[int]]] = []
        for place, index in enumerate(order):
            content = turns[index].content
            if isinstance(content, str):
                bodies.append([content])
                continue
            assert images and self._tokenizer.image_ids
            tail = self._tokenizer.plain_tail(template[place])
            template[place] = template[place].removesuffix(tail)
            ids = self._tokenizer.image_ids
            bodies.append(expand(content, ids, crops[index], images.each, tail))
        texts = iter(self._tokenizer.encode_batch([t for b in bodies for t in b[0::2]]))  # type: ignore[misc]
        pieces: list[list[int]] = [[]] * len(parts)
        pieces[0::2] = self._tokenizer.encode_batch(template, control=True)
        pieces[1::2] = [
            [i for t in body for i in (next(texts) if isinstance(t, str) else t)] for body in bodies
        ]
        return pieces

    def _crops(
        self, turns: Sequence[Message], images: ImageTokens | None
    ) -> dict[int, Iterator[int]]:
        """How many crops follow each image, by turn. Raises: DataError where images do not fit."""
        counts = {i: count_images(turn.content) for i, turn in enumerate(turns)}
        total = sum(counts.values())
        if images is None and total:
            raise DataError(
                f"images are not supported by this model: it is text-only, {total} were given",
                hint="use a model that sees (Gemma 3 4B, 12B or 27B), or leave the images out",
            )
        if images and len(images.crops) != total:
            raise DataError(
                f"{len(images.crops)} images for {total} image parts in the conversation",
                hint="give one image part for each image, in the same order",
            )
        if total and self._tokenizer.image_ids is None:
            raise CheckpointError(
                "the tokenizer has no image tokens",
                hint="use the tokenizer of a Gemma 3 model that sees; it has <image_soft_token>",
            )
        crops = iter(images.crops if images else ())
        return {i: iter(list(islice(crops, count))) for i, count in counts.items() if count}

    def _check_closed(self, piece: Sequence[int], learnt: bool) -> None:
        ends = (self._tokenizer.end_of_turn_id, self._tokenizer.eos_id)
        if learnt and not (piece and piece[0] in ends):
            raise CheckpointError(
                "the chat template does not end assistant turns with an end-of-turn token",
                where=self._where,
                hint="a model trained so would never stop; use the template of Gemma 3",
            )


def normalise_turns(messages: Sequence[Message]) -> list[Message]:
    """The same conversation as an optional system turn, then user and assistant in turn.

    A later system message and a tool's result become user text where they stand, the result in
    `<tool_response>` lines; neighbours of one role are joined by a blank line; texts are trimmed.
    The content of a turn is a string, or a list of parts where it has images.
    Raises: DataError for an unknown role, tool calls, parts that cannot be read, or a conversation
    without a user turn at its start.
    """
    turns: list[Message] = []
    earlier: Parts = []
    for number, message in enumerate(messages, start=1):
        role, parts = message.role, parts_of(message, number)
        if role == "tool":
            role, parts = "user", _tool_response(parts)
        elif role == "system" and any(turn.role != "system" for turn in turns):
            role = "user"
        if turns and turns[-1].role == role:
            turns.pop()
            parts = join(earlier, parts, "\n\n")
        turns.append(Message(role, content_of(parts)))
        earlier = parts
    first = next((turn.role for turn in turns if turn.role != "system"), None)
    if first != "user":
        found = "starts with the assistant" if first else "has no user message"
        raise DataError(
            f"the conversation {found}" if turns else "the conversation is empty",
            hint="a user message is needed first; only a system message may precede it",
        )
    return turns


def _tool_response(parts: Parts) -> Parts:
    if not parts:
        return [text_part("<tool_response>\n\n</tool_response>")]
    opened = join([text_part("<tool_response>")], parts, "\n")
    return join(opened, [text_part("</tool_response>")], "\n")


def check_learnable(turns: Sequence[Message]) -> None:
    """Refuse a conversation in which there is nothing to learn, or a turn without text.

    A question may be empty where a system message says what to do.
    """
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    if not answers or not all(answers):
        raise DataError(
            "an assistant turn has no text" if answers else "there is no assistant turn",
            hint="training needs at least one assistant turn, and text in each",
        )
    asked = [turn.content for turn in turns if turn.role == "user"]
    if not all(asked[1:] if turns[0].role == "system" else asked):
        raise DataError("a user turn has no text", hint="an answer to nothing teaches nothing")
