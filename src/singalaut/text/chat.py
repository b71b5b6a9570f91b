"""The chat format: conversations to token ids by a sandboxed Jinja2 template, and the loss mask.

The template never sees what people wrote. It is rendered with a placeholder for each message,
and only its own text is read for control tokens; the messages are tokenised as plain text and
put in afterwards. So `<end_of_turn>` in a message stays text, whatever the template does.
Tools and images are left to others.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from singalaut.contracts import ROLES, Message
from singalaut.errors import CheckpointError, DataError
from singalaut.text.template import (
    GEMMA_TEMPLATE,
    compile_template,
    read_template,
    template_error,
)

if TYPE_CHECKING:
    from singalaut.text.tokenizer import Tokenizer

__all__ = ["GEMMA_TEMPLATE", "ChatFormat", "normalise_turns"]


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
        parts[1::2] = [str(turns[int(index)].content) for index in parts[1::2]]
        return "".join(parts)

    def encode(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, BOS included.

        Raises: DataError for a conversation that does not fit the format.
        """
        turns = normalise_turns(messages)
        parts = self._parts(turns, generation_prompt)
        return [i for ids in self._encode(turns, parts) for i in ids]

    def encode_with_mask(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids of a whole conversation, and which of them the model shall learn to write.

        True for the text of each assistant turn and the token that ends the turn.
        Raises: DataError if no assistant turn is there, or one is without text.
        """
        turns = normalise_turns(messages)
        _check_learnable(turns)
        parts = self._parts(turns, generation_prompt=False)
        ids: list[int] = []
        mask: list[bool] = []
        learnt = False
        for position, piece in enumerate(self._encode(turns, parts)):
            if position % 2 == 0:  # the template's own text, which closes the turn before it
                self._check_closed(piece, learnt)
                mask += [learnt and index == 0 for index in range(len(piece))]
            else:
                learnt = turns[int(parts[position])].role == "assistant"
                mask += [learnt] * len(piece)
            ids += piece
        return ids, mask

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

    def _encode(self, turns: Sequence[Message], parts: Sequence[str]) -> list[list[int]]:
        """Token ids of each part: control tokens are read in template text only."""
        pieces: list[list[int]] = [[]] * len(parts)
        pieces[0::2] = self._tokenizer.encode_batch(parts[0::2], control=True)
        texts = [str(turns[int(index)].content) for index in parts[1::2]]
        pieces[1::2] = self._tokenizer.encode_batch(texts)
        return pieces

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
    Raises: DataError for an unknown role, images, tool calls, or a conversation without a user
    turn at its start.
    """
    turns: list[Message] = []
    for number, message in enumerate(messages, start=1):
        role, text = message.role, _text_of(message, number)
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        elif role == "system" and any(turn.role != "system" for turn in turns):
            role = "user"
        if turns and turns[-1].role == role:
            text = "\n\n".join(part for part in (str(turns.pop().content), text) if part)
        turns.append(Message(role, text))
    first = next((turn.role for turn in turns if turn.role != "system"), None)
    if first != "user":
        found = "starts with the assistant" if first else "has no user message"
        raise DataError(
            f"the conversation {found}" if turns else "the conversation is empty",
            hint="a user message is needed first; only a system message may precede it",
        )
    return turns


def _text_of(message: Message, number: int) -> str:
    """The trimmed text of a message; several text parts are joined as Gemma's template does."""
    where = f"message {number}"
    if message.role not in ROLES:
        raise DataError(
            f"unknown role `{message.role}`", where=where, hint="known roles: " + ", ".join(ROLES)
        )
    if message.tool_calls:
        raise DataError("tool calls are not part of this chat format", where=where)
    if isinstance(message.content, str):
        return message.content.strip()
    if not isinstance(message.content, list):
        found = type(message.content).__name__
        raise DataError(f"the content is {found}, not text", where=where)
    return "".join(_text_of_part(part, where) for part in message.content)


def _text_of_part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"]).strip()
    if "image" in str(kind):
        raise DataError("images are not supported by this model: it is text-only", where=where)
    raise DataError(
        f"a content part of type `{kind}` cannot be read",
        where=where,
        hint='a part is {"type": "text", "text": "..."}',
    )


def _check_learnable(turns: Sequence[Message]) -> None:
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    if not answers or not all(answers):
        raise DataError(
            "an assistant turn has no text" if answers else "there is no assistant turn",
            hint="training needs at least one assistant turn, and text in each",
        )
