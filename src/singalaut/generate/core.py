"""The engine without anyone waiting for it: cache, scheduler and runner, stepped from outside.

Not safe for threads; `engine.py` lets one thread in at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch

from singalaut.errors import MachineError
from singalaut.generate.answer import Answer, mask_fault
from singalaut.generate.images import BATCH, ImageEmbeddings
from singalaut.generate.memory import Room, default_budget_bytes, plan_pages, shrink
from singalaut.generate.orders import tell_chunk, tell_step
from singalaut.generate.pages import PageTables
from singalaut.generate.plain import Outcome, PlainRunner
from singalaut.generate.ranks import ALONE, Ranks
from singalaut.generate.scheduler import Chunk, Scheduler, Step
from singalaut.model.gemma3 import Gemma3
from singalaut.model.paged import KINDS, Kind, PagedCache
from singalaut.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from singalaut.generate.fast import FastRunner, Launched

log = logging.getLogger("singalaut")
WeightKind = Literal["int8", "int4", "fp8"]
LOOK_SECONDS = 2e-5
SUMS = ("preemptions", "shared_tokens", "prompt_tokens")


class Core:
    """Answers go in by `add`; each `step` moves all of them on and tells their listeners."""

    def __init__(
        self,
        model: Gemma3,
        tokenizer: Tokenizer,
        room: Room,
        cache_bytes: int | None,
        *,
        batch_invariant: bool = False,
        weights: WeightKind | None = None,
        ranks: Ranks = ALONE,
    ):
        self.model, self.tokenizer, self.room = model, tokenizer, room
        self.device, self.dtype = model.embedding.weight.device, model.embedding.weight.dtype
        self.ranks = ranks
        self.images = ImageEmbeddings(model, ranks, together=1 if batch_invariant else BATCH)
        self._ways: dict[str, Any] = {
            "vocab_size": tokenizer.vocab_size,
            "image_id": tokenizer.image_ids[2] if tokenizer.image_ids else None,
            "batch_invariant": batch_invariant,
            "weights": weights,
        }
        self._cache_bytes = cache_bytes
        self._pending: Outcome | Launched | None = None
        self._counts = dict.fromkeys(("answers", "generated_tokens", "steps"), 0)
        self._sums = dict.fromkeys(SUMS, 0)  # of schedulers before this one
        self._seconds = 0.0
        self.is_awake = True
        self._open(self._plan(), [])

    @property
    def is_busy(self) -> bool:
        scheduler = self.scheduler
        left = scheduler.running or scheduler.num_waiting or scheduler.is_watching
        return bool(left or self._pending)

    def add(self, answer: Answer) -> None:
        if answer.finish is None:  # else it was cancelled before it came
            self.scheduler.add(answer)

    def cancel(self, answer: Answer) -> None:
        if answer.finish is None:
            self.scheduler.cancel(answer)

    def fail(self, reason: str) -> None:
        """End every answer with an error: something went wrong that is not theirs."""
        self._pending = None
        answers = list(self.scheduler)
        for answer in answers:
            answer.end("error", reason)
        self.end(answers, spoiled=True)

    def step(self) -> None:
        """Plan and run one step; its tokens, or those of the step before it, reach the answers."""
        begin = time.monotonic()
        self.wake()
        if self._waits_for_tokens():
            self.flush()
        self.end(self.scheduler.ended())
        step = self.scheduler.plan()
        try:
            launched = self._launch(step) if step else None
            is_short = False
        except torch.OutOfMemoryError:
            is_short = True  # what the error holds is free from here on
        if is_short:
            self.flush()
            self._shrink()
            return
        self._counts["steps"] += bool(step)
        if self.runner.keeps_ahead:
            self._pending, launched = launched, self._pending
        if launched is not None:
            self._commit(self._wait(launched))
        self._seconds += time.monotonic() - begin

    def _launch(self, step: Step) -> Outcome | Launched:
        ranks, tables = self.ranks, self.scheduler.tables
        if ranks.size > 1:
            ranks.tell("step", **tell_step(step, tables, knows_tokens=not self.runner.keeps_ahead))
        with ranks.watched():
            return self.runner.launch(step)

    def _wait(self, launched: Outcome | Launched) -> Outcome:
        with self.ranks.watched():
            if self.ranks.size > 1:  # a device may wait for one that will never come
                while not launched.is_done():
                    self.ranks.check()
                    time.sleep(LOOK_SECONDS)
            return launched.wait()

    def _waits_for_tokens(self) -> bool:
        """Whether an answer must hear of its last token before the next step."""
        return self._pending is not None and any(a.needs_tokens for a in self._pending.answers)

    def flush(self) -> None:
        """Wait for the step under way."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._commit(self._wait(pending))

    def end(self, answers: Iterable[Answer], *, spoiled: bool = False) -> None:
        """Take out answers that have a finish reason, and tell their listeners."""
        for answer in answers:
            self.scheduler.remove(answer, spoiled=spoiled)
            answer.close(self.tokenizer)
            self._counts["answers"] += 1
            answer.listener(answer)

    def weights_changed(self) -> None:
        """Forget what was computed with other weights; answers under way are read again."""
        self.images.clear()
        if self.is_awake:
            self.flush()
            self.scheduler.preempt_all()
            self.scheduler.tables.forget()
            self.ranks.tell("refresh")
            self.runner.refresh()

    def sleep(self) -> None:
        """Give back the memory of the cache and of copies of weights; answers under way wait."""
        if self.is_awake:
            self.flush()
            self.scheduler.preempt_all()
            self.images.clear()
            self._close()
            self.is_awake = False

    def wake(self) -> None:
        if not self.is_awake:
            self._open(self._plan(), list(self.scheduler))
            self.is_awake = True

    def statistics(self) -> dict[str, float]:
        """Counts and rates since the start; shares are of the cache's pages."""
        seconds = self._seconds or 1.0
        sums = {name: self._sums[name] + getattr(self.scheduler, name) for name in SUMS}
        pools = self.scheduler.tables.pools
        return {
            **self._counts,
            **sums,
            "seconds": self._seconds,
            "generated_tokens_per_second": self._counts["generated_tokens"] / seconds,
            "running": len(self.scheduler.running),
            "waiting": self.scheduler.num_waiting,
            **{f"cache_{kind}_share": p.used / (p.num_pages - 1) for kind, p in pools.items()},
            "images": self.images.computed,
            "images_reused": self.images.reused,
        }

    def _plan(self) -> dict[Kind, int]:
        budget = self._cache_bytes
        if budget is None:
            self.ranks.tell("budget", step_bytes=self._step_bytes())
            with self.ranks.watched():
                free = default_budget_bytes(self.device, self._step_bytes())
                budget = self.ranks.least(free, self.device)
        return plan_pages(self.model.config, self.dtype, self.room, budget)

    def _step_bytes(self) -> int:
        """About what a step needs beside the cache: activations of a chunk, logits of a batch."""
        config = self.model.config
        wide = 8 * config.hidden_size + 4 * config.intermediate_size
        return self.room.chunk_tokens * wide * 2 + 3 * self.room.slots * config.vocab_size * 4

    def _open(self, pages: dict[Kind, int], waiting: list[Answer]) -> None:
        """Make cache, tables, scheduler and runner, with fewer pages where memory runs out."""
        config, room = self.model.config, self.room
        while True:
            tables = PageTables(pages, config.window, room.slots, room.context_tokens)
            self.ranks.tell(
                "open", pages=pages, window=config.window, slots=room.slots,
                tokens=room.context_tokens, **self._ways,
            )  # fmt: skip
            if self._allocate(pages, tables):
                break
            self.ranks.tell("close")
            pages = _fewer(pages)
        self.scheduler = Scheduler(tables, room.slots, room.chunk_tokens)
        for answer in waiting:
            self.scheduler.add(answer)
        self.end(self._without_room(waiting))

    def _without_room(self, answers: Iterable[Answer]) -> list[Answer]:
        """Those that a cache which has become smaller cannot hold, or whose room is full."""
        room = self.scheduler.tables.capacity_tokens()
        for answer in answers:
            left = room - answer.num_prompt
            if left < min(answer.limit, 1):
                fact = f"the cache has become smaller: it has room for {room} tokens"
                answer.end("error", f"{fact}, the prompt has {answer.num_prompt}")
            elif answer.num_written >= left > 0:
                answer.end("length")
            answer.limit = min(answer.limit, left)
        return [answer for answer in answers if answer.finish is not None]

    def _allocate(self, pages: dict[Kind, int], tables: PageTables) -> bool:
        """Make cache and runner; False, with nothing of them left, where memory runs out."""
        try:
            cache = PagedCache(self.model.config, pages, self.dtype, self.device)
            parts = (self.model, self.images, cache, tables)
            self.runner = open_runner(*parts, ranks=self.ranks, **self._ways)
        except torch.OutOfMemoryError:
            return False
        self.cache = cache
        return True

    def _close(self) -> None:
        for name in SUMS:
            self._sums[name] += getattr(self.scheduler, name)
            setattr(self.scheduler, name, 0)
        self.ranks.tell("close")
        self.runner.close()
        del self.runner, self.cache
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _shrink(self) -> None:
        """A step did not find the memory it needs: go on with a smaller cache."""
        for answer in self.scheduler.running:
            answer.under_way = 0
        self.scheduler.preempt_all()
        pages = _fewer(self.cache.pages)
        self._close()
        self.is_awake = False  # and so it stays where not even the smallest cache finds room
        self._open(pages, list(self.scheduler))
        self.is_awake = True

    def _commit(self, outcome: Outcome) -> None:
        """Add the tokens of a step to their answers."""
        for row, answer in enumerate(outcome.answers):
            answer.under_way -= 1
            if answer.finish is not None:
                continue  # it ended while the step was under way
            if answer.limit == 0:
                answer.end("length")
            elif outcome.bad[row]:
                self._spoil(answer)
            else:
                self._accept(answer, outcome, row)
            if answer.finish is not None:
                self.end([answer], spoiled=answer.error is not None)
            elif answer.decoder is not None:
                answer.listener(answer)

    def _accept(self, answer: Answer, outcome: Outcome, row: int) -> None:
        token, params = outcome.tokens[row], answer.request.sampling
        if outcome.logprobs is not None and (params.logprobs or params.top_logprobs):
            answer.logprobs.append(outcome.logprobs[row])
        if outcome.top is not None and params.top_logprobs:
            best = list(outcome.top[row].items())[: params.top_logprobs]
            answer.top_logprobs.append(dict(best))
        answer.accept(token)
        if answer.mask is not None and answer.finish is None:
            try:
                answer.mask.accept(token)
            except Exception as error:
                answer.end("error", mask_fault(error))
        self._counts["generated_tokens"] += 1
        if answer.slot >= 0 and answer.finish is None:
            self.scheduler.name_pages(answer)

    def _spoil(self, answer: Answer) -> None:
        """End an answer whose logits allow no token, and say why; its pages are wiped."""
        for kind in KINDS:
            pages = self.scheduler.tables.held(kind, answer.slot) if answer.slot >= 0 else []
            self.ranks.tell("wipe", kind=kind, pages=pages)
            self.cache.wipe(kind, pages)
        if self.ranks.size > 1:
            whole = Chunk(answer, 0, len(answer.tokens), samples=True)
            self.ranks.tell("examine", whole=tell_chunk(whole))
        with self.ranks.watched():
            layer = self.runner.first_bad_layer(answer)
        if answer.fault is not None:
            fact = answer.fault
        elif layer is None:
            fact = "the mask, bias or penalties allow no token"
        else:
            fact = f"the logits are not numbers: {layer} is the first that gives none"
        answer.end("error", f"{fact}, at token {answer.num_written + 1} of the answer")
        log.warning("request `%s`: %s", answer.request.id, answer.error)


def open_runner(
    model: Gemma3,
    images: ImageEmbeddings,
    cache: PagedCache,
    tables: PageTables,
    **ways: Any,
) -> PlainRunner | FastRunner:
    """The runner of the model's device; `ways` are its other arguments."""
    if model.embedding.weight.is_cuda:
        from singalaut.generate.fast import FastRunner  # Triton is there where CUDA is

        return FastRunner(model, images, cache, tables, **ways)
    return PlainRunner(model, images, cache, tables, **ways)


def _fewer(pages: dict[Kind, int]) -> dict[Kind, int]:
    """Raises: MachineError where the cache cannot be smaller."""
    smaller = shrink(pages)
    if smaller == pages:
        raise MachineError(
            "the device has no memory for the smallest cache",
            hint="use a smaller model, a smaller `batch_size` or `chunk_tokens`",
        )
    counts = ", ".join(f"{smaller[kind]} of {pages[kind]} {kind} pages" for kind in KINDS)
    log.warning("the device is out of memory; going on with a smaller cache: %s", counts)
    return smaller
