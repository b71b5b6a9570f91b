"""What has to be asked of a model: every question of every task in one stream, in a good order.

Requests that may answer longest go first, so that no long one is left for the end; those that
begin alike stand together, so that a cache of prompts is used. Equal requests are asked once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from singalaut.contracts import Message, SamplingParams
from singalaut.evals.gather import Ask
from singalaut.evals.store import Generation, Keys, prompt_digest
from singalaut.evals.tasks import Cell, Example

SEED_BITS = 31  # endpoints take no larger seeds
Turns = list[Generation]
Encode = Callable[[Sequence[Message], str], "tuple[list[int], int]"]


@dataclass
class CellAnswers:
    """Answers of one cell: by run and question the turns so far; None where one has failed."""

    cell: Cell
    runs: int
    turns: list[list[Turns | None]]
    left: int = 0  # answers of the present round still to come
    failed: list[tuple[str, str]] = field(default_factory=list)  # request, why

    @classmethod
    def empty(cls, cell: Cell, runs: int) -> CellAnswers:
        return cls(cell, runs, [[[] for _ in cell.examples] for _ in range(runs)])


class Place(NamedTuple):
    """Where an answer belongs."""

    answers: CellAnswers
    run: int
    example: int

    def name(self) -> str:
        cell = self.answers.cell
        return f"{cell.name}/{cell.examples[self.example].id}/{self.run}"


@dataclass(frozen=True)
class Protocol:
    """How a model is asked: parameters by cell, seeds of the runs, and what a prompt becomes.

    `base` flattens conversations to text; `encode` gives the token ids of a conversation with an
    answer, and where the answer begins, for tasks scored by log-probability.
    """

    sampling: Callable[[Cell], SamplingParams]
    seeds: tuple[int, ...]
    identity: str
    prompt: Callable[[Sequence[Message]], Sequence[Message] | Sequence[int]] = tuple
    encode: Encode | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def runs(self, cell: Cell) -> int:
        """Runs of a cell: one is enough for greedy answers, one a label for log-probabilities."""
        if self.encode is not None and cell.task.kind == "labels":
            return len(cell.language.labels)
        return 1 if self.sampling(cell).temperature == 0 else len(self.seeds)


def next_round(protocol: Protocol, everything: Sequence[CellAnswers]) -> list[Ask]:
    """The requests of the next turn of all conversations that have one, in the order to send."""
    asks: dict[bytes, Ask] = {}
    for answers in _ordered(everything, protocol):
        cell = answers.cell
        first = [example.turns[0] for example in cell.examples]
        order = sorted(range(len(first)), key=first.__getitem__)
        scored = protocol.encode is not None and cell.task.kind == "labels"
        for ask in (_scored if scored else _written)(protocol, answers, order):
            known = asks.get(ask.key)
            if known is None:
                asks[ask.key] = ask
            else:
                known.places.extend(ask.places)
            answers.left += len(ask.places)
    return list(asks.values())


def _written(protocol: Protocol, answers: CellAnswers, order: Sequence[int]) -> Iterator[Ask]:
    """Requests for texts: the next turn of each run of each question."""
    cell = answers.cell
    sampling = protocol.sampling(cell)
    keys = Keys(protocol.identity, sampling)
    seeds = [None] if sampling.temperature == 0 else [PromptSeeds(s) for s in protocol.seeds]
    for index in order:
        example = cell.examples[index]
        shared: tuple[Sequence[Message] | Sequence[int], bytes] | None = None
        for run in range(answers.runs):
            turns = answers.turns[run][index]
            if turns is None or len(turns) >= len(example.turns):
                continue
            if shared is None or turns:
                prompt = protocol.prompt(conversation(example, turns))
                shared = prompt, prompt_digest(prompt)
            prompt, digest = shared
            seeded = seeds[run]
            seed = None if seeded is None else seeded.of(digest)
            place = Place(answers, run, index)
            key = keys.key(digest, seed)
            yield Ask(key, place.name(), prompt, sampling, seed, [place])


def _scored(protocol: Protocol, answers: CellAnswers, order: Sequence[int]) -> Iterator[Ask]:
    """Requests for the log-probability of each label as the answer; a run for each label."""
    assert protocol.encode is not None
    cell = answers.cell
    sampling = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=True)
    keys = Keys(protocol.identity, sampling)
    answer = cell.language.prompt.answer
    for index in order:
        asked = conversation(cell.examples[index], [])
        for run, written in enumerate(cell.language.labels.values()):
            if answers.turns[run][index]:
                continue
            prompt, tail = protocol.encode(asked, answer.fill({"label": written}))
            place = Place(answers, run, index)
            key = keys.key(prompt_digest(prompt), None)
            yield Ask(key, place.name(), prompt, sampling, None, [place], tail)


def conversation(example: Example, turns: Sequence[Generation]) -> list[Message]:
    """The messages up to the next question, with the model's own answers between."""
    messages = list(example.before)
    for question, answer in zip(example.turns, turns, strict=False):
        messages += (Message("user", question), Message("assistant", answer.text))
    return [*messages, Message("user", example.turns[len(turns)])]


class PromptSeeds:
    """The seed of each prompt in one run: the same whatever else is asked, and by whom."""

    def __init__(self, seed: int):
        self._begin = hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=8)

    def of(self, digest: bytes) -> int:
        found = self._begin.copy()
        found.update(digest)
        return int.from_bytes(found.digest(), "big") & ((1 << SEED_BITS) - 1)


def _ordered(everything: Sequence[CellAnswers], protocol: Protocol) -> list[CellAnswers]:
    """Cells by the longest answers, then the longest prompts, that they may have."""

    def size(answers: CellAnswers) -> tuple[int, int, int]:
        cell = answers.cell
        turns = max(len(example.turns) for example in cell.examples)
        longest = max(len(example.turns[0]) for example in cell.examples)
        return turns, protocol.sampling(cell).max_tokens, longest

    return sorted(everything, key=size, reverse=True)
