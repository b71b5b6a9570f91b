"""Who runs next: which answers decode, which prompts are read, who waits, who must start again.

A step decodes one token of every answer whose prompt is stored, and reads a bounded number of
prompt tokens beside it, long prompts in chunks. Earlier and more important requests go first; when
pages run out the last of the line gives up its pages and is read again later. Pure state: it
knows pages and answers, no tensors.
"""

from __future__ import annotations

import heapq
import time
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from singalaut.generate.answer import Answer
from singalaut.generate.pages import PageTables, digest_pages
from singalaut.model.paged import PAGE_TOKENS


@dataclass(frozen=True)
class Chunk:
    """Tokens of an answer that are read together; the last chunk is followed by a new token."""

    answer: Answer
    start: int
    end: int
    samples: bool


@dataclass(frozen=True)
class Step:
    """What one forward pass does. Answers that decode store one token each."""

    decode: list[Answer]
    chunks: list[Chunk]

    def __bool__(self) -> bool:
        return bool(self.decode or self.chunks)


class Scheduler:
    """The queue and the answers under way in the slots of a cache."""

    def __init__(self, tables: PageTables, slots: int, chunk_tokens: int):
        self.tables, self.slots, self.chunk_tokens = tables, slots, chunk_tokens
        self.running: list[Answer] = []  # in order
        self._waiting: list[tuple[tuple[int, int], int, Answer]] = []  # a heap
        self._free_slots = list(range(slots - 1, -1, -1))
        self._ties = 0
        self._given_up: set[Answer] = set()  # in this very step
        self._watched: set[Answer] = set()  # those that may end before they are complete
        self.preemptions = self.shared_tokens = self.prompt_tokens = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_watching(self) -> bool:
        """Whether an answer may have to end early, even one that was cancelled before it came."""
        return bool(self._watched)

    def __iter__(self) -> Iterator[Answer]:
        yield from self.running
        yield from (answer for _, _, answer in self._waiting)

    def add(self, answer: Answer) -> None:
        if answer.deadline is not None:
            self._watched.add(answer)
        self._ties += 1
        heapq.heappush(self._waiting, (answer.order, self._ties, answer))

    def plan(self) -> Step:
        """Choose the work of the next step, and take the pages for it."""
        self._given_up.clear()
        decode = self._plan_decoding()
        chunks = self._plan_reading()
        decode = [answer for answer in decode if answer not in self._given_up]
        for answer in decode:
            answer.stored += 1
            answer.under_way += 1
        return Step(decode, chunks)

    def cancel(self, answer: Answer) -> None:
        answer.cancelled = True
        self._watched.add(answer)

    def remove(self, answer: Answer, *, spoiled: bool = False) -> None:
        """Take a finished answer out of its slot."""
        self._watched.discard(answer)
        if answer.slot >= 0:
            self.running.remove(answer)
            self._vacate(answer, spoiled=spoiled)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not answer]
            heapq.heapify(self._waiting)

    def preempt_all(self) -> None:
        """Send every running answer back to the queue: its keys and values are gone."""
        while self.running:
            self._preempt(self.running[-1])

    def name_pages(self, answer: Answer) -> None:
        """Let other prompts find the pages whose content is decided by known tokens."""
        full = min(answer.stored, len(answer.tokens)) // PAGE_TOKENS
        done = len(answer.digests)
        if full > done:
            parent = answer.digests[-1] if done else b""
            known = self._marked(answer)
            answer.digests += digest_pages(known[: full * PAGE_TOKENS], parent, done)
            for index in range(done, full):
                self.tables.name(answer.slot, index, answer.digests[index])

    def ended(self) -> list[Answer]:
        """Waiting and running answers that were cancelled or whose time is over."""
        now = time.monotonic()
        ended = []
        for answer in self._watched:
            late = answer.deadline is not None and now >= answer.deadline
            if answer.finish is None and (answer.cancelled or late):
                answer.end("cancelled" if answer.cancelled else "deadline")
                ended.append(answer)
        return ended

    def _plan_decoding(self) -> list[Answer]:
        """The answers that decode; the last in line give way where pages run out."""
        decode = []
        for answer in list(self.running):
            if answer.slot < 0 or not answer.wants_decoding:
                continue
            self.tables.slide(answer.slot, answer.stored)  # it may need what it gives back itself
            while answer.slot >= 0 and not self.tables.grow(answer.slot, answer.stored + 1):
                self._preempt(self.running[-1])
            if answer.slot >= 0:
                decode.append(answer)
        return decode

    def _plan_reading(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        budget = self.chunk_tokens
        for answer in list(self.running):
            if budget > 0 and answer.slot >= 0 and not answer.is_read:
                self.tables.slide(answer.slot, answer.stored)
                while self.tables.room(answer.slot) <= answer.stored:
                    if self.running[-1] is answer:
                        break  # those before it will give pages back
                    self._preempt(self.running[-1])
                budget -= self._read(answer, budget, chunks, kept_pages=0)
        while budget > 0 and self._waiting and self._free_slots:
            answer = self._waiting[0][2]
            if answer.under_way or answer in self._given_up:
                break  # its last token is still on its way
            answer.slot = self._free_slots[-1]
            self._share(answer)
            # some pages are left to those who decode, else they would soon preempt this one
            taken = self._read(answer, budget, chunks, kept_pages=len(self.running))
            if not taken:
                self.tables.close(answer.slot)
                answer.slot, answer.stored = -1, 0
                break
            heapq.heappop(self._waiting)
            self._free_slots.pop()
            insort(self.running, answer, key=lambda a: a.order)
            self.prompt_tokens += answer.num_prompt
            budget -= taken
        return chunks

    def _read(self, answer: Answer, budget: int, chunks: list[Chunk], kept_pages: int) -> int:
        """Plan the next chunk of a prompt as far as budget and pages reach; returns its tokens."""
        start, total = answer.stored, len(answer.tokens)
        room = self.tables.room(answer.slot, kept_pages)
        end = _between_images(min(total, start + budget), start, answer)
        if end > room:
            end = _between_images(room, start, answer, up=False)
        if end <= start or (kept_pages and end < min(total, start + budget)):
            return 0
        grown = self.tables.grow(answer.slot, end)
        assert grown
        self.tables.slide(answer.slot, start)
        chunk = Chunk(answer, start, end, samples=end == total)
        chunks.append(chunk)
        answer.stored = end
        self.name_pages(answer)
        if chunk.samples:
            answer.is_read = True
            answer.under_way += 1
        return end - start

    def _share(self, answer: Answer) -> None:
        """Begin with what the cache knows of the prompt; its last token is computed in any case."""
        if answer.request.sampling.prompt_logprobs:
            answer.digests = []
            return
        full = (len(answer.tokens) - 1) // PAGE_TOKENS * PAGE_TOKENS
        digests = digest_pages(self._marked(answer)[:full])
        answer.stored = self.tables.open(answer.slot, digests, answer.image_runs)
        answer.digests = digests[: answer.stored // PAGE_TOKENS]
        self.shared_tokens += answer.stored

    def _preempt(self, answer: Answer) -> None:
        """Give up the pages of an answer; it will be read again, with what it has written."""
        self._given_up.add(answer)
        self.running.remove(answer)
        self._vacate(answer)
        answer.stored, answer.is_read = 0, False
        self.preemptions += 1
        self.add(answer)

    def _vacate(self, answer: Answer, *, spoiled: bool = False) -> None:
        self.tables.close(answer.slot, spoiled=spoiled)
        self._free_slots.append(answer.slot)
        answer.slot = -1

    @staticmethod
    def _marked(answer: Answer) -> list[int]:
        return [*answer.marked, *answer.tokens[answer.num_prompt :]]


def _between_images(place: int, start: int, answer: Answer, *, up: bool = True) -> int:
    """`place`, moved out of the image it would cut: to its begin, or else to its end."""
    for first, end in answer.image_runs:
        if first < place < end:
            return first if first > start or not up else end
    return place
