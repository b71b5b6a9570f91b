"""What the first process tells the others of a step: numbers that JSON can carry.

The others have no queue and no requests. Of an answer they know what a runner asks for: its slot,
tokens as far as they are read, images as places, and how to sample.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from singalaut.contracts import Request, SamplingParams
from singalaut.generate.answer import Answer
from singalaut.generate.child import Record
from singalaut.generate.images import PromptImages
from singalaut.generate.pages import PageTables
from singalaut.generate.scheduler import Chunk, Step
from singalaut.model.images import Picture
from singalaut.model.paged import KINDS
from singalaut.text.parts import ImageTokens

FILTERS = ("temperature", "top_k", "top_p", "min_p")
UNSEEN = Picture(np.zeros((0, 0, 3), np.uint8))  # the first process alone has the pixels


class ChosenElsewhere:
    """Stands for all that makes the first process choose a token on its host."""

    def allowed(self) -> bytes | None:
        return None

    def accept(self, token: int) -> None:
        pass


def tell_step(step: Step, tables: PageTables, *, knows_tokens: bool) -> Record:
    """A step as a record; `knows_tokens` where decoding begins with tokens from the host."""
    decode = step.decode
    record: Record = {
        "pages": [[KINDS.index(kind), *change] for kind, *change in tables.changes],
        "slots": [answer.slot for answer in decode],
        "chunks": [tell_chunk(chunk) for chunk in step.chunks],
    }
    if any(hosts := [int(answer.needs_host) for answer in decode]):
        record["hosts"] = hosts
    if knows_tokens:
        record["stored"] = [answer.stored for answer in decode]
        record["tokens"] = [answer.tokens[answer.stored - 1] for answer in decode]
    return record


def tell_chunk(chunk: Chunk) -> Record:
    """A chunk, with the token after it if there is one: it may be scored."""
    answer, params = chunk.answer, chunk.answer.request.sampling
    return {
        "slot": answer.slot,
        "start": chunk.start,
        "end": chunk.end,
        "samples": chunk.samples,
        "tokens": answer.tokens[chunk.start : chunk.end + 1].tolist(),
        "prompt": answer.num_prompt,
        "images": answer.image_runs,
        "seed": answer.seed,
        "host": answer.needs_host,
        "scored": len(answer.prompt_logprobs) if params.prompt_logprobs else -1,
        **{name: getattr(params, name) for name in FILTERS},
    }


def hear_step(record: Record, tables: PageTables, answers: dict[int, Answer]) -> Step:
    """The step of a record. `answers` are those by slot, which it keeps up to date."""
    for kind, slot, index, page in record["pages"]:
        tables.tables[KINDS[kind]][slot, index] = page
        tables.changes.append((KINDS[kind], slot, index, page))
    decode = [answers[slot] for slot in record["slots"]]
    hosts: Sequence[int] = record.get("hosts") or [0] * len(decode)
    for answer, host in zip(decode, hosts, strict=True):
        answer.mask = ChosenElsewhere() if host else None
    for answer, stored, token in zip(
        decode, record.get("stored", ()), record.get("tokens", ()), strict=False
    ):
        answer.stored = stored
        answer.tokens = answer.tokens[: stored - 1]
        answer.tokens.append(token)
    chunks = [hear_chunk(each) for each in record["chunks"]]
    answers |= {chunk.answer.slot: chunk.answer for chunk in chunks}
    return Step(decode, chunks)


def hear_chunk(record: Record) -> Chunk:
    """A chunk and an answer that knows as much as it needs; tokens before it are left open."""
    tokens = array("i", bytes(4 * record["start"])) + array("i", record["tokens"])
    scored = record["scored"]
    params = SamplingParams(prompt_logprobs=scored >= 0, **{name: record[name] for name in FILTERS})
    runs = [(first, end) for first, end in record["images"]]
    answer = Answer(
        request=Request((), params),
        index=0,
        tokens=tokens,
        num_prompt=record["prompt"],
        marked=array("q"),
        images=PromptImages((UNSEEN,) * len(runs), ImageTokens(())),
        image_runs=runs,
        seed=record["seed"],
        limit=0,
        stop_ids=frozenset(),
        order=(0, 0),
        deadline=None,
        listener=lambda _: None,
        decoder=None,
        mask=ChosenElsewhere() if record["host"] else None,
        slot=record["slot"],
        stored=record["end"],
        under_way=1,
        prompt_logprobs=[None] * max(0, scored),
    )
    return Chunk(answer, record["start"], record["end"], record["samples"])
