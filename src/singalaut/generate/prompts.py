"""Requests to answers: prompts to tokens, images found, and everything refused that cannot be."""

from __future__ import annotations

import itertools
import secrets
import time
from array import array
from collections.abc import Sequence

from singalaut.contracts import Message, Request, TokenMask, derive
from singalaut.errors import RequestError
from singalaut.generate.answer import Answer, Listener, mask_fault
from singalaut.generate.images import PromptImages, read_images
from singalaut.generate.sampling import check_params
from singalaut.model.config import Gemma3Config
from singalaut.text.chat import ChatFormat
from singalaut.text.tokenizer import StreamDecoder, Tokenizer


class PromptReader:
    """Reads requests for one model."""

    def __init__(
        self, config: Gemma3Config, tokenizer: Tokenizer, chat: ChatFormat, pan_and_scan: bool
    ):
        self.config, self.tokenizer, self.chat = config, tokenizer, chat
        self.pan_and_scan = pan_and_scan
        self.image_id = tokenizer.image_ids[2] if tokenizer.image_ids else None
        self._stop_ids = frozenset((*config.eos_ids, tokenizer.end_of_turn_id))
        self._arrivals = itertools.count()

    def open(
        self,
        request: Request,
        context_tokens: int,
        cache_tokens: int,
        listener: Listener,
        *,
        streams: bool,
    ) -> list[Answer]:
        """The answers that a request asks for. Raises RequestError or DataError."""
        params = request.sampling
        check_params(params, self.tokenizer.vocab_size)
        prompt, images = self.read(request.prompt)
        room = min(context_tokens, cache_tokens) - len(prompt)
        if room < 1 and not (room == 0 and params.max_tokens == 0):
            what, size, more = "the model's context", context_tokens, ""
            if cache_tokens < context_tokens:
                what, size = "the cache's room", cache_tokens
                more = ", or give the cache more memory (`cache_bytes`)"
            elif context_tokens < self.config.max_positions:
                what, more = "the engine's context", ", or give it more (`context_tokens`)"
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; {what} is {size}",
                where=request.id or None,
                hint=f"shorten the prompt{more}",
            )
        seed = secrets.randbits(62) if params.seed is None else params.seed
        now = time.monotonic()
        deadline = None
        if request.deadline_seconds is not None:
            deadline = now + request.deadline_seconds
        tokens = array("i", prompt)
        marked = self._marked(prompt, images)
        runs = self._image_runs(prompt) if images else []
        own = () if params.ignore_eos else self._stop_ids
        wants_text = streams or bool(params.stop)
        return [
            Answer(
                request=request,
                index=index,
                tokens=array("i", tokens),
                num_prompt=len(prompt),
                marked=marked,
                images=images,
                image_runs=runs,
                seed=derive(seed, "answer", index),
                limit=min(params.max_tokens, room),
                stop_ids=frozenset((*own, *params.stop_token_ids)),
                order=(request.priority, next(self._arrivals)),
                deadline=deadline,
                listener=listener,
                decoder=StreamDecoder(self.tokenizer) if wants_text else None,
                mask=_mask(request),
            )
            for index in (range(params.n) if request.only is None else request.only)
        ]

    def read(
        self, prompt: Sequence[Message] | Sequence[int]
    ) -> tuple[list[int], PromptImages | None]:
        """Token ids of a prompt, and its images."""
        if not prompt:
            raise RequestError("the prompt is empty", hint="give at least one message or token")
        if isinstance(prompt[0], Message):
            messages: list[Message] = list(prompt)  # type: ignore[arg-type]
            vision = self.config.vision
            images = read_images(messages, vision, self.pan_and_scan) if vision else None
            return self.chat.encode(messages, images=images.tokens if images else None), images
        ids = [int(token) for token in prompt]  # type: ignore[arg-type]
        if min(ids) < 0 or max(ids) >= self.tokenizer.vocab_size:
            raise RequestError(
                f"token ids must lie in 0…{self.tokenizer.vocab_size - 1}; "
                f"found {min(ids)}…{max(ids)}"
            )
        if self.image_id is not None and self.image_id in ids:
            raise RequestError(
                f"the prompt has the image token {self.image_id}, but no image",
                hint="give messages with image parts instead of token ids",
            )
        return ids, None

    def _marked(self, prompt: list[int], images: PromptImages | None) -> array[int]:
        """The prompt with numbers below zero for image tokens, the same only for the same image."""
        if images is None:
            return array("q", prompt)
        marks = iter(
            -int(picture.digest[:15], 16) - 1
            for picture in images.pictures
            for _ in range(images.tokens.each)
        )
        return array("q", [next(marks) if token == self.image_id else token for token in prompt])

    def _image_runs(self, prompt: list[int]) -> list[tuple[int, int]]:
        runs = []
        place = 0
        for is_image, group in itertools.groupby(prompt, lambda token: token == self.image_id):
            length = sum(1 for _ in group)
            if is_image:
                runs.append((place, place + length))
            place += length
        return runs


def _mask(request: Request) -> TokenMask | None:
    if request.mask is None:
        return None
    try:
        return request.mask()
    except Exception as error:
        raise RequestError(mask_fault(error)) from error
