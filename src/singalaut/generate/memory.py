"""How many pages of each kind fit into the memory that a cache may take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from singalaut.artifact import memory_bytes
from singalaut.errors import MachineError
from singalaut.model.config import Gemma3Config
from singalaut.model.paged import KINDS, PAGE_TOKENS, Kind, page_bytes

CPU_SHARE = 0.25  # of the machine's memory; what is not used is never touched
GPU_SHARE = 0.9  # of what is free, the room of a step taken off


@dataclass(frozen=True)
class Room:
    """What the cache is for: so many sequences of at most so many tokens, read in chunks."""

    slots: int
    context_tokens: int
    chunk_tokens: int


def plan_pages(
    config: Gemma3Config, dtype: torch.dtype, room: Room, budget_bytes: int
) -> dict[Kind, int]:
    """Pages for `room.slots` sequences of equal length, as long as the budget allows.

    Window layers need no more than the window of each, and a chunk beside it; where there is room
    left, twice that, so that beginnings can be found again. Raises: MachineError where not even
    one short sequence fits.
    """
    low, high = 1, -(-room.context_tokens // PAGE_TOKENS)
    best = None
    while low <= high:
        pages = (low + high) // 2
        wanted = _pages(config, room, pages)
        if _bytes(config, dtype, wanted) <= budget_bytes:
            best, low = wanted, pages + 1
        else:
            high = pages - 1
    if best is None:
        alone = _pages(config, Room(1, PAGE_TOKENS, PAGE_TOKENS), 1)
        needed = _bytes(config, dtype, alone)
        if needed > budget_bytes:
            raise MachineError(
                f"the cache may take {budget_bytes / 2**20:.3g} MiB, the smallest one has "
                f"{needed / 2**20:.3g} MiB",
                hint="give the cache more (`cache_bytes`, in recipes `cache_gib`), or free memory "
                "on the device",
            )
        return alone
    spare = budget_bytes - _bytes(config, dtype, best)
    more = max(0, spare) // page_bytes(config, "window", dtype)
    if low * PAGE_TOKENS > config.window:
        best["window"] += min(more, best["window"])
    return best


def shrink(pages: dict[Kind, int]) -> dict[Kind, int]:
    """Three quarters of the pages."""
    return {kind: max(2, count * 3 // 4) for kind, count in pages.items()}


def default_budget_bytes(device: torch.device, step_bytes: int) -> int:
    """What a cache may take where nobody said: a share of what is free beside a step's needs."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return max(0, int(GPU_SHARE * (free - step_bytes)))
    return int(CPU_SHARE * memory_bytes())


def _pages(config: Gemma3Config, room: Room, pages_each: int) -> dict[Kind, int]:
    window_pages = -(-config.window // PAGE_TOKENS) + 1
    chunk_pages = -(-min(room.chunk_tokens, pages_each * PAGE_TOKENS) // PAGE_TOKENS) + 1
    windows = room.slots * min(pages_each, window_pages) + chunk_pages
    return {"global": 1 + room.slots * pages_each, "window": 1 + windows}


def _bytes(config: Gemma3Config, dtype: torch.dtype, pages: dict[Kind, int]) -> int:
    return sum(pages[kind] * page_bytes(config, kind, dtype) for kind in KINDS)
