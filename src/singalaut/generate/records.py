"""Requests and completions as records that JSON can carry between processes, and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from singalaut.contracts import Completion, Message, Request, SamplingParams, Usage
from singalaut.errors import RequestError
from singalaut.generate.child import Record


def request_record(request: Request) -> Record:
    """Raises: RequestError for a mask, which is code."""
    if request.mask is not None:
        raise RequestError(
            "a mask of tokens cannot be handed to another process",
            where=request.id or None,
            hint="use one engine in this process",
        )
    prompt: Sequence[Any] = request.prompt
    if prompt and isinstance(prompt[0], Message):
        prompt = [_message_record(message) for message in prompt]
    return {
        "id": request.id,
        "prompt": list(prompt),
        "sampling": asdict(request.sampling),
        "priority": request.priority,
        "deadline_seconds": request.deadline_seconds,
    }


def request_of(record: Record) -> Request:
    sampling = record["sampling"]
    prompt = record["prompt"]
    if prompt and isinstance(prompt[0], dict):
        prompt = [Message(**message) for message in prompt]
    params = SamplingParams(
        **{
            **sampling,
            "logit_bias": {int(token): bias for token, bias in sampling["logit_bias"].items()},
            "stop": tuple(sampling["stop"]),
            "stop_token_ids": tuple(sampling["stop_token_ids"]),
        }
    )
    return Request(prompt, params, record["id"], record["priority"], record["deadline_seconds"])


def completion_record(completion: Completion) -> Record:
    return asdict(completion)


def completion_of(record: Record) -> Completion:
    top = record["top_logprobs"]
    return Completion(
        **{
            **record,
            "token_ids": tuple(record["token_ids"]),
            "usage": Usage(**record["usage"]),
            "logprobs": _tuple(record["logprobs"]),
            "top_logprobs": None if top is None else tuple(_by_token(each) for each in top),
            "prompt_logprobs": _tuple(record["prompt_logprobs"]),
        }
    )


def _message_record(message: Message) -> Record:
    record = asdict(message)
    if isinstance(message.content, list):
        record["content"] = [_part_record(part) for part in message.content]
    return record


def _part_record(part: Mapping[str, Any]) -> Record:
    """A part whose image is text: bytes and files become `data:` URIs."""
    image = part.get("image")
    if isinstance(image, Path):
        try:
            data = image.read_bytes()
        except OSError as error:
            raise RequestError(error.strerror or str(error), where=image) from error
        image = data
    if isinstance(image, bytes):
        text = base64.b64encode(image).decode()
        return {**part, "image": f"data:application/octet-stream;base64,{text}"}
    return dict(part)


def _tuple(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def _by_token(values: Mapping[str, float]) -> dict[int, float]:
    return {int(token): value for token, value in values.items()}
