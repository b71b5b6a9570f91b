"""The OpenAI wire format: requests as JSON bodies, answers as completions.

Parameters beyond OpenAI's own are sent under vLLM's names, and only where they differ from the
defaults, so that a server that does not know them is asked for nothing new.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from singalaut.contracts import (
    Completion,
    Delta,
    FinishReason,
    Message,
    Request,
    SamplingParams,
    Usage,
)
from singalaut.errors import RequestError

DEFAULTS = asdict(SamplingParams())
ALWAYS = ("temperature", "top_p", "max_tokens")
SAME_NAME = (
    "n",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "seed",
    "ignore_eos",
)
FINISH: Mapping[str | None, FinishReason] = {"length": "length"}
LONGEST_REASON = 300
TAGS = re.compile(r"<[^>]*>")


class Wire:
    """Bodies for one model."""

    def __init__(self, model: str, own_settings: bool = False, token_ids: bool = False):
        self.model, self.own_settings, self.token_ids = model, own_settings, token_ids

    def request(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path below the base address, and the body.

        Raises: RequestError for what cannot be sent.
        """
        if request.mask is not None:
            raise RequestError("a mask of tokens cannot be sent to an endpoint", where=request.id)
        if request.only is not None:
            raise RequestError("an endpoint gives all answers or none", where=request.id)
        body: dict[str, Any] = {"model": self.model, **self._parameters(request.sampling)}
        prompt = request.prompt
        if prompt and isinstance(prompt[0], int):
            return "/completions", body | {"prompt": list(prompt)} | self._logprobs(request, False)
        body["messages"] = [_message(part) for part in prompt if isinstance(part, Message)]
        return "/chat/completions", body | self._logprobs(request, True)

    def completions(self, request: Request, found: Mapping[str, Any]) -> list[Completion]:
        """What a server has answered. Raises: KeyError, TypeError, ValueError, IndexError."""
        given = found.get("usage") or {}
        prompt_tokens = int(given.get("prompt_tokens") or 0)
        total = int(given.get("completion_tokens") or 0)
        choices = found["choices"]
        if not choices:
            raise KeyError("choices")
        made = []
        for place, choice in enumerate(choices):
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            ids = tuple(choice.get("token_ids") or ())
            tokens = len(ids) or (total if len(choices) == 1 else total // len(choices))
            made.append(
                Completion(
                    request.id,
                    int(choice.get("index", place)),
                    ids,
                    text or "",
                    FINISH.get(choice.get("finish_reason"), "stop"),
                    Usage(prompt_tokens, tokens),
                    logprobs=_token_logprobs(choice) if request.sampling.logprobs else None,
                    prompt_logprobs=_prompt_logprobs(request, choice, found),
                )
            )
        return made

    def estimated_tokens(self, request: Request) -> int:
        """About how many tokens a request uses up, to keep to a rate."""
        prompt = request.prompt
        if prompt and isinstance(prompt[0], int):
            return len(prompt) + request.sampling.max_tokens
        characters = sum(len(str(m.content)) for m in prompt if isinstance(m, Message))
        return characters // 3 + request.sampling.max_tokens

    def _parameters(self, sampling: SamplingParams) -> dict[str, Any]:
        body = {}
        for name in SAME_NAME:
            value = getattr(sampling, name)
            always = name in ALWAYS and not (self.own_settings and name != "max_tokens")
            # for training nothing may come from the server's `generation_config.json`
            always |= self.token_ids and not self.own_settings and value is not None
            if always or value != DEFAULTS[name]:
                body[name] = value
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.stop_token_ids:
            body["stop_token_ids"] = list(sampling.stop_token_ids)
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if self.token_ids:
            body["return_token_ids"] = True
        return body

    def _logprobs(self, request: Request, chat: bool) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {}
        if sampling.logprobs or sampling.top_logprobs:
            body = {"logprobs": True} if chat else {"logprobs": sampling.top_logprobs}
            if chat and sampling.top_logprobs:
                body["top_logprobs"] = sampling.top_logprobs
        if sampling.prompt_logprobs:
            body["prompt_logprobs"] = 0
            body["max_tokens"] = max(1, sampling.max_tokens)  # servers refuse to answer nothing
        return body


def failed(request: Request, finish: FinishReason, reason: str) -> Completion:
    """The completion of a request that got no answer."""
    return Completion(request.id, 0, (), "", finish, Usage(0, 0), error=reason)


def error_text(status: int, body: str) -> str:
    """What a server says is wrong, short: its message, or the text of its page."""
    text = body
    try:
        found = json.loads(body)
        error = found.get("error", found)
        text = error.get("message", error) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        text = " ".join(TAGS.sub(" ", body).split())
    text = str(text)
    return f"HTTP {status}: {text[:LONGEST_REASON]}"


def delta_of(data: str) -> Delta | None:
    """A piece of a streamed answer, or None for what is no piece."""
    if data == "[DONE]":
        return None
    try:
        choice = json.loads(data)["choices"][0]
        text = choice["delta"].get("content") if "delta" in choice else choice["text"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    finish = choice.get("finish_reason")
    return Delta(text or "", (), FINISH.get(finish, "stop") if finish else None)


def _message(message: Message) -> dict[str, Any]:
    given = asdict(message)
    return {name: value for name, value in given.items() if value is not None}


def _token_logprobs(choice: Mapping[str, Any]) -> tuple[float, ...] | None:
    given = choice.get("logprobs")
    if not given:
        return None
    if "content" in given:
        return tuple(float(token["logprob"]) for token in given["content"] or ())
    return tuple(float(value) for value in given["token_logprobs"])


def _prompt_logprobs(
    request: Request, choice: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[float | None, ...] | None:
    """One entry for each token of the prompt, as vLLM gives them: by token id, the first null."""
    given: Sequence[Any] | None = choice.get("prompt_logprobs") or found.get("prompt_logprobs")
    if not request.sampling.prompt_logprobs or given is None:
        return None
    values: list[float | None] = []
    for place, entry in enumerate(given):
        if entry is None:
            values.append(None)
            continue
        token = request.prompt[place] if isinstance(request.prompt[place], int) else None
        chosen = entry.get(str(token)) if token is not None else next(iter(entry.values()))
        values.append(float(chosen["logprob"]))
    return tuple(values)
