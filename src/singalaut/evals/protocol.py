"""How a model is asked: a profile, what settings change in it, and the model's own settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from singalaut.contracts import Message, SamplingParams, derive
from singalaut.errors import CheckpointError, RecipeError
from singalaut.evals.config import EvaluateConfig
from singalaut.evals.profiles import Profile
from singalaut.evals.schedule import SEED_BITS, Encode, Protocol
from singalaut.evals.tasks import Cell

OWN_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
BETWEEN_TURNS = "\n\n"  # of a conversation as text; also what ends an answer then


def make_protocol(
    config: EvaluateConfig, profile: Profile, identity: str, directory: Path | None, seed: int
) -> Protocol:
    """The protocol for one model; `directory` has its tokenizer and generation settings.

    Raises: RecipeError where prompts have to be token ids and there is no tokenizer.
    """
    settings, about = _settings(config, profile, directory)

    @cache
    def by_limit(max_tokens: int, temperature: float | None) -> SamplingParams:
        changed = {} if temperature is None else {"temperature": temperature}
        stop = (BETWEEN_TURNS,) if config.protocol.base else ()
        return SamplingParams(max_tokens=max_tokens, stop=stop, **{**settings, **changed})

    def sampling(cell: Cell) -> SamplingParams:
        own = cell.task.temperature if config.temperature is None else None
        return by_limit(cell.language.max_tokens, own)

    needs_ids = config.protocol.base or config.protocol.logprobs
    tokenizer = _Prompts(directory, config.protocol.base) if needs_ids else None
    return Protocol(
        sampling=sampling,
        seeds=seeds_of(config, profile, seed),
        identity=identity,
        prompt=tokenizer.flat if tokenizer and config.protocol.base else tuple,
        encode=tokenizer.with_answer if tokenizer and config.protocol.logprobs else None,
        about=about,
    )


def seeds_of(config: EvaluateConfig, profile: Profile, seed: int) -> tuple[int, ...]:
    """One seed for each run, the same first ones however many there are."""
    count = config.protocol.seeds or profile.seeds
    return tuple(derive(seed, "run", run) & ((1 << SEED_BITS) - 1) for run in range(count))


def _settings(
    config: EvaluateConfig, profile: Profile, directory: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sampling parameters, and where they come from."""
    if config.temperature is not None:
        return {"temperature": config.temperature}, {"source": "settings"}
    if profile.temperature is not None:
        settings = {"temperature": profile.temperature, **profile.sampling}
        return settings, {"source": f"profile {profile.name}", **settings}
    own = _own_settings(directory) if directory else {}
    source = "generation_config.json" if own else "defaults of the sampler"
    return own, {"source": source, **own}


def _own_settings(directory: Path) -> dict[str, Any]:
    """What a model's `generation_config.json` says of sampling. Raises: CheckpointError."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"not JSON: {error}", where=file, hint="mend or remove it") from None
    return {name: found[name] for name in OWN_SETTINGS if found.get(name) is not None}


class _Prompts:
    """Conversations as token ids, by the tokenizer of a model's directory."""

    def __init__(self, directory: Path | None, base: bool):
        from singalaut.text.chat import ChatFormat
        from singalaut.text.tokenizer import Tokenizer

        if directory is None:
            raise RecipeError(
                "prompts have to be sent as token ids here, and the tokenizer is not known",
                where="protocol",
                hint="set `tokenizer` of the endpoint to a directory of the model",
            )
        self.tokenizer = Tokenizer.load(directory)
        self.chat = ChatFormat.load(directory, self.tokenizer)
        self.base = base

    def flat(self, messages: Sequence[Message]) -> list[int]:
        """The conversation as plain text, as a model reads it that knows no turns."""
        texts = [str(message.content).strip() for message in messages]
        text = BETWEEN_TURNS.join(texts) + BETWEEN_TURNS
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def with_answer(self, messages: Sequence[Message], answer: str) -> tuple[list[int], int]:
        """A conversation and the beginning of its answer, and where that begins."""
        asked = self.flat(messages) if self.base else self.chat.encode(messages)
        return [*asked, *self.tokenizer.encode(answer)], len(asked)


__all__ = ["BETWEEN_TURNS", "Encode", "make_protocol", "seeds_of"]
