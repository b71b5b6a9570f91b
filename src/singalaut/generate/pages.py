"""Which page of the cache belongs to whom: pools, tables, and beginnings that prompts share.

Pages are reference-counted. A full page whose content is known has a digest, of its tokens and of
all before them; a page that nobody holds keeps its content until it is needed for something else,
so a later prompt with the same beginning finds it. Pure bookkeeping: tensors are in
`model/paged.py`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from singalaut.model.paged import KINDS, PAGE_TOKENS, Kind


def digest_pages(tokens: Sequence[int], parent: bytes = b"", start: int = 0) -> list[bytes]:
    """Digests of the full pages of `tokens` from page `start` on; `parent` is the one before."""
    digests = []
    for first in range(start * PAGE_TOKENS, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        page = array("q", tokens[first : first + PAGE_TOKENS])
        parent = hashlib.blake2b(page.tobytes(), digest_size=16, key=parent).digest()
        digests.append(parent)
    return digests


class PagePool:
    """Pages of one kind, numbered from 1; page 0 belongs to nobody."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_pages))
        self._holders = [0] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.num_pages - 1 - len(self._free)

    def take(self) -> int:
        """A page for new content: an empty one, else the one not used for longest."""
        page, _ = self._free.popitem(last=False)
        digest = self._digest_of.pop(page, None)
        if digest is not None:
            del self._page_of[digest]
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Share a page whose content is wanted."""
        if self._holders[page] == 0:
            del self._free[page]
        self._holders[page] += 1

    def release(self, page: int) -> None:
        self._holders[page] -= 1
        assert self._holders[page] >= 0, page
        if self._holders[page] == 0:
            self._free[page] = None
            if page not in self._digest_of:
                self._free.move_to_end(page, last=False)  # empty pages are taken first

    def find(self, digest: bytes) -> int | None:
        return self._page_of.get(digest)

    def is_held(self, page: int) -> bool:
        return self._holders[page] > 0

    def name(self, page: int, digest: bytes) -> None:
        """Let a page be found by its content; the first page with a content keeps the name."""
        if digest not in self._page_of and page not in self._digest_of:
            self._page_of[digest] = page
            self._digest_of[page] = digest

    def unname(self, page: int) -> None:
        digest = self._digest_of.pop(page, None)
        if digest is not None:
            del self._page_of[digest]

    def forget(self) -> None:
        """No content can be found any more: the weights have changed."""
        self._page_of.clear()
        self._digest_of.clear()


class PageTables:
    """The pages of the sequences in `slots`, and how they grow, slide and share.

    `tables[kind][slot]` has the page of each 32 tokens; window pages left of the window are given
    back and their entries are stale. `changes` lists what was written since it was last cleared.
    """

    def __init__(self, pages: dict[Kind, int], window: int, slots: int, max_tokens: int):
        self.pools: dict[Kind, PagePool] = {kind: PagePool(pages[kind]) for kind in KINDS}
        self.window = window
        width = -(-max_tokens // PAGE_TOKENS) + 1
        self.tables: dict[Kind, np.ndarray] = {
            kind: np.zeros((slots, width), np.int32) for kind in KINDS
        }
        self.changes: list[tuple[Kind, int, int, int]] = []
        self._count = [0] * slots  # pages of each slot, of both kinds alike
        self._first = [0] * slots  # the first window page that is still held

    def capacity_tokens(self) -> int:
        """Tokens of the longest sequence that fits, alone in the cache."""
        if self.pools["window"].num_pages - 1 < self._window_pages():
            return 0
        return (self.pools["global"].num_pages - 1) * PAGE_TOKENS

    def open(
        self, slot: int, digests: Sequence[bytes], whole: Sequence[tuple[int, int]] = ()
    ) -> int:
        """Take over the longest known beginning; returns its length in tokens.

        A beginning is usable if all its global pages are there, and of its window pages those that
        the next token sees. It does not end inside one of the `whole` runs of tokens.
        """
        assert self._count[slot] == 0
        globals_, windows = self.pools["global"], self.pools["window"]
        known = 0
        while known < len(digests) and globals_.find(digests[known]) is not None:
            known += 1
        run = 0  # window pages that are known, ending at each page
        best = 0
        runs = []
        for digest in digests[:known]:
            run = run + 1 if windows.find(digest) is not None else 0
            runs.append(run)
        for count in range(known, 0, -1):
            end = count * PAGE_TOKENS
            is_cut = any(first < end < last for first, last in whole)
            if not is_cut and runs[count - 1] >= count - self._first_seen(end):
                best = count
                break
        first = self._first_seen(best * PAGE_TOKENS) if best else 0
        for kind, pool in self.pools.items():
            for index in range(first if kind == "window" else 0, best):
                page = pool.find(digests[index])
                assert page is not None
                pool.hold(page)
                self._write(kind, slot, index, page)
        self._count[slot], self._first[slot] = best, first
        return best * PAGE_TOKENS

    def room(self, slot: int, kept_pages: int = 0) -> int:
        """Tokens that the sequence in a slot can grow to while `kept_pages` stay free."""
        free = min(pool.available for pool in self.pools.values()) - kept_pages
        return (self._count[slot] + max(0, free)) * PAGE_TOKENS

    def grow(self, slot: int, tokens: int) -> bool:
        """Take the pages for `tokens` tokens, or none and say False where there are not enough."""
        wanted = -(-tokens // PAGE_TOKENS)
        more = wanted - self._count[slot]
        if more <= 0:
            return True
        if any(pool.available < more for pool in self.pools.values()):
            return False
        for index in range(self._count[slot], wanted):
            for kind in KINDS:
                self._write(kind, slot, index, self.pools[kind].take())
        self._count[slot] = wanted
        return True

    def slide(self, slot: int, tokens: int) -> None:
        """Give back the window pages that no token after the first `tokens` sees."""
        first = min(self._first_seen(tokens), self._count[slot])
        pool, table = self.pools["window"], self.tables["window"][slot]
        for index in range(self._first[slot], first):
            pool.release(int(table[index]))
        self._first[slot] = max(first, self._first[slot])

    def name(self, slot: int, index: int, digest: bytes) -> None:
        """Let others find page `index` of a sequence, now that its content is decided."""
        self.pools["global"].name(int(self.tables["global"][slot, index]), digest)
        if index >= self._first[slot]:
            self.pools["window"].name(int(self.tables["window"][slot, index]), digest)

    def held(self, kind: Kind, slot: int) -> list[int]:
        """The pages of a slot."""
        first = self._first[slot] if kind == "window" else 0
        return self.tables[kind][slot, first : self._count[slot]].tolist()

    def close(self, slot: int, *, spoiled: bool = False) -> None:
        """Give all pages of a slot back, the last first; `spoiled` content is never found again."""
        for kind, pool in self.pools.items():
            for page in reversed(self.held(kind, slot)):
                if spoiled:
                    pool.unname(page)
                pool.release(page)
        self._count[slot] = self._first[slot] = 0

    def forget(self) -> None:
        for pool in self.pools.values():
            pool.forget()

    def _first_seen(self, tokens: int) -> int:
        """The first page that the token after `tokens` tokens sees through the window."""
        return max(0, tokens - self.window + 1) // PAGE_TOKENS

    def _window_pages(self) -> int:
        """Pages that a window can touch, and the one that is being written."""
        return -(-self.window // PAGE_TOKENS) + 1

    def _write(self, kind: Kind, slot: int, index: int, page: int) -> None:
        self.tables[kind][slot, index] = page
        self.changes.append((kind, slot, index, page))
