"""One answer being written: its tokens, its text, and when it is complete."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from singalaut.contracts import Completion, FinishReason, Request, TokenMask, Usage
from singalaut.generate.images import PromptImages
from singalaut.text.tokenizer import StreamDecoder, Tokenizer

Listener = Callable[["Answer"], None]


@dataclass(eq=False)
class Answer:
    """The state of one answer, from the queue to the last token.

    `tokens` are prompt and answer; `stored` of them have, or will have when the steps under way
    are done, keys and values in the cache; `under_way` counts tokens that are being sampled and
    not known yet. `marked` is the prompt with a number of its own for each image, so that two
    prompts are equal exactly where these are.
    """

    request: Request
    index: int
    tokens: array[int]
    num_prompt: int
    marked: array[int]
    images: PromptImages | None
    image_runs: list[tuple[int, int]]  # first token of each image, and the one after its last
    seed: int
    limit: int  # tokens of the answer at most
    stop_ids: frozenset[int]
    order: tuple[int, int]  # priority, then arrival
    deadline: float | None
    listener: Listener
    decoder: StreamDecoder | None  # where text is wanted before the end
    mask: TokenMask | None = None
    slot: int = -1
    stored: int = 0
    under_way: int = 0
    is_read: bool = False  # the last chunk of the prompt has been planned
    digests: list[bytes] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None
    error: str | None = None
    fault: str | None = None  # of its mask, which forbids all that may come next
    cancelled: bool = False
    text_is_whole: bool = False

    @property
    def num_written(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def needs_tokens(self) -> bool:
        """Whether the next token cannot be sampled before the last one is known here."""
        params = self.request.sampling
        return bool(
            self.mask is not None
            or params.repetition_penalty != 1
            or params.presence_penalty
            or params.frequency_penalty
        )

    @property
    def needs_host(self) -> bool:
        """Whether the next token depends on what only the host's sampler knows."""
        params = self.request.sampling
        return bool(
            self.needs_tokens
            or params.logit_bias
            or params.top_logprobs
            or self.place < params.min_tokens
        )

    @property
    def place(self) -> int:
        """The place in the answer of the newest token under way."""
        return self.num_written + self.under_way - 1

    @property
    def wants_decoding(self) -> bool:
        """Whether everything but the newest token is stored, and another one is wanted."""
        return (
            self.is_read and self.finish is None and self.num_written + self.under_way < self.limit
        )

    def accept(self, token: int) -> None:
        """Add a token and decide whether the answer is complete."""
        self.tokens.append(token)
        enough = self.num_written >= self.request.sampling.min_tokens
        ends = token in self.stop_ids and enough
        if self.decoder is not None and not ends:
            self._extend(self.decoder.push([token]), enough)
        if self.finish is None and (ends or self.num_written >= self.limit):
            self.finish = "stop" if ends else "length"

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        self.finish, self.error = reason, error

    def close(self, tokenizer: Tokenizer) -> None:
        """Complete the text once the last token is known."""
        if self.text_is_whole:
            return
        if self.decoder is None:
            ids = self.tokens[self.num_prompt :].tolist()
            decoder = StreamDecoder(tokenizer)
            self.text = decoder.push(ids[:-1] if self.finish == "stop" else ids)
            self.text += decoder.finish()
        else:
            self._extend(self.decoder.finish(), True)
        self.text_is_whole = True

    def completion(self) -> Completion:
        assert self.finish is not None
        params = self.request.sampling
        return Completion(
            request_id=self.request.id,
            index=self.index,
            token_ids=tuple(self.tokens[self.num_prompt :]),
            text=self.text,
            finish_reason=self.finish,
            usage=Usage(self.num_prompt, self.num_written),
            logprobs=tuple(self.logprobs) if params.logprobs or params.top_logprobs else None,
            top_logprobs=tuple(self.top_logprobs) if params.top_logprobs else None,
            prompt_logprobs=tuple(self.prompt_logprobs) if params.prompt_logprobs else None,
            error=self.error,
        )

    def safe_length(self) -> int:
        """Length of the text that cannot turn out to be the beginning of a stop string."""
        held = 0
        for stop in self.request.sampling.stop:
            for size in range(min(len(stop) - 1, len(self.text)), held, -1):
                if self.text.endswith(stop[:size]):
                    held = size
                    break
        return len(self.text) - held

    def _extend(self, new: str, enough: bool) -> None:
        """Add text, and cut it before the first stop string that it completes."""
        stops = self.request.sampling.stop
        begin = len(self.text)
        self.text += new
        if not enough:
            return
        places = [self.text.find(stop, max(0, begin - len(stop) + 1)) for stop in stops]
        if found := [place for place in places if place >= 0]:
            self.text, self.finish, self.text_is_whole = self.text[: min(found)], "stop", True


def mask_fault(error: Exception) -> str:
    """What is said of a mask that raised `error`: it is the request's own code, and may do so."""
    return f"its mask failed: {type(error).__name__}: {error}"
