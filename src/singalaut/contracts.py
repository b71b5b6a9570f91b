"""What the rooms hand each other: messages, samples, requests, completions, scores.

Only plain data and two protocols live here. `Sampler` is all that evaluation, online RL and
pair making know of a model; `Reward` is all that online RL knows of a checker.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, with the fields of the OpenAI chat format.

    `content` is a string or a list of parts, `{"type": "text", "text": ...}` or an image part.
    """

    role: Role
    content: str | list[dict[str, Any]]
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Sample:
    """One training or evaluation example with its provenance.

    `rejected` is the worse answer of a preference pair, in place of the last turns of `messages`;
    `reference` the right answer, and `constraints` what an answer must keep to, for checkers.
    """

    messages: list[Message]
    id: str
    language: str | None = None
    source: str | None = None
    licence: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    rejected: Sequence[Message] = ()
    reference: str | None = None
    constraints: Sequence[Mapping[str, Any]] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingParams:
    """How to turn logits into tokens; names and meanings as in the OpenAI and vLLM interfaces.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 switch the filter off. `seed` fixes the
    result of a request whatever else is in the batch. `stop` strings are removed from the text.
    Before `min_tokens` nothing ends an answer. `top_logprobs` asks for that many alternatives to
    each token and implies `logprobs`; `prompt_logprobs` for the log-probability of each token of
    the prompt given those before it. `max_tokens` may be 0 if `prompt_logprobs` is all that is
    wanted. Log-probabilities are those of the model, before penalties, bias and temperature.
    """

    n: int = 1
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False


class TokenMask(Protocol):
    """Which tokens may come next in one answer: the hook of constrained decoding."""

    def allowed(self) -> bytes | None:
        """One bit for each token id, lowest bit of the first byte first; None allows all."""
        ...

    def accept(self, token: int) -> None:
        """Hear which token was chosen."""
        ...


@dataclass(frozen=True)
class Request:
    """A prompt, as messages or as token ids, and how to sample from it.

    Lower `priority` goes first; `deadline_seconds` counts from the moment the request is handed
    over, and what is written by then is the answer. `mask` makes the mask of one answer. `only`
    says which of the `n` answers are wanted, where not all are.
    """

    prompt: Sequence[Message] | Sequence[int]
    sampling: SamplingParams = SamplingParams()
    id: str = ""
    priority: int = 0
    deadline_seconds: float | None = None
    mask: Callable[[], TokenMask] | None = None
    only: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts of one completion."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """One answer to a request; `logprobs` (nats) has one entry for each token where asked for.

    `top_logprobs` has, for each token, the best alternatives by token id; `prompt_logprobs` one
    entry for each token of the prompt, the first None. `error` says what went wrong where
    `finish_reason` is "error".
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[Mapping[int, float], ...] | None = None
    prompt_logprobs: tuple[float | None, ...] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Delta:
    """A piece of streamed text; the last piece carries the finish reason, and what went wrong.

    Tokens come as soon as they are known, their text once it is whole characters and cannot be
    the beginning of a stop string.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[Mapping[int, float], ...] | None = None
    error: str | None = None


@runtime_checkable
class Sampler(Protocol):
    """A source of completions: the in-process engine, an endpoint, or recorded responses."""

    @property
    def identity(self) -> str:
        """Content hash of the model, or endpoint and model name: part of every cache key."""
        ...

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each completion as it finishes, in any order.

        A request that cannot be served has one with the finish reason "error".
        """
        ...

    def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Yield the answer to one request piece by piece."""
        ...

    def weights_changed(self) -> None:
        """Forget everything that was computed with the old weights."""
        ...

    def sleep(self) -> None:
        """Give back the memory of the cache; weights stay."""
        ...

    def wake(self) -> None:
        """Take the memory of the cache again."""
        ...

    def statistics(self) -> dict[str, float]:
        """Counts and rates since the start."""
        ...


@dataclass(frozen=True)
class Score:
    """What a reward says of one completion; `value` is None where it could not be scored."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


@runtime_checkable
class Reward(Protocol):
    """A checker of completions, as online RL sees it."""

    def score(
        self, prompt: Sequence[Message], completions: Sequence[Completion], sample: Sample
    ) -> list[Score]:
        """One score for each completion, in order."""
        ...


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one named use of a run's seed, independent of the order of work."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
