"""Twenty thousand requests through a small engine with far too little cache, and what is left.

Streams of random shape, one in a hundred closed early, from prompts that share beginnings; the
answers that wait at a time would fill the cache ten times. Called by `engine.py --soak`.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from dataclasses import replace

import psutil
import torch

from singalaut.contracts import Request, SamplingParams
from singalaut.generate.engine import Engine, EngineSettings
from singalaut.model.config import SIZES
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.paged import KINDS, page_bytes

CONTEXT_TOKENS = 192
AT_ONCE = 160  # streams that are open together
OVERSUBSCRIBED = 10
VOCAB = 600
SHAPE = {
    "hidden_size": 64, "intermediate_size": 64, "num_layers": 2, "global_every": 2,
    "vocab_size": VOCAB, "window": 64, "max_positions": CONTEXT_TOKENS, "head_dim": 16,
}  # fmt: skip
STUCK_SECONDS = 120.0


class Letters:
    vocab_size = VOCAB
    image_ids = None
    end_of_turn_id = 106

    def bytes_of(self, ids, *, skip_control: bool = True) -> bytes:
        return b"x" * len(list(ids))


def soak(count: int) -> tuple[str, str]:
    """Raises AssertionError where a page leaks, an answer is wrong in length, or memory grows."""
    torch.set_num_threads(1)
    config = replace(SIZES["1b"], **SHAPE)
    model = initialise(Gemma3(config), seed=0).eval().requires_grad_(False)
    whole = AT_ONCE * (CONTEXT_TOKENS // 32) // OVERSUBSCRIBED
    budget = whole * sum(page_bytes(config, kind, torch.float32) for kind in KINDS)
    settings = EngineSettings(
        batch_size=32, context_tokens=CONTEXT_TOKENS, chunk_tokens=256, cache_bytes=budget
    )
    engine = Engine(model, Letters(), None, "soak", settings)
    begin = time.perf_counter()
    memory, cancelled = asyncio.run(_run(engine, count))
    taken = time.perf_counter() - begin
    pools = engine._core.scheduler.tables.pools
    assert all(pool.used == 0 for pool in pools.values()), "a page leaked"
    assert not engine._core.scheduler.running and not engine._core.scheduler.num_waiting
    numbers = engine.statistics()
    growth = memory[-1] / memory[len(memory) // 4] - 1
    assert growth < 0.03, memory
    return (
        f"soak, {count:,} requests, cache oversubscribed {OVERSUBSCRIBED} times",
        f"{taken:.0f} s; {cancelled} cancelled, {numbers['preemptions']:,} preemptions, "
        f"{numbers['shared_tokens']:,} tokens shared; no page kept, no request stuck, resident "
        f"memory {100 * growth:+.1f} % from a quarter to the end ({memory[-1] / 2**20:.0f} MiB)",
    )


async def _run(engine: Engine, count: int) -> tuple[list[int], int]:
    """Resident bytes after each fortieth of the requests, and how many were cancelled."""
    dice = random.Random(0)
    heads = [[2, *dice.choices(range(110, VOCAB), k=64)] for _ in range(20)]
    gate = asyncio.Semaphore(AT_ONCE)
    memory: list[int] = []
    state = {"done": 0, "cancelled": 0}

    async def one(prompt: list[int], params: SamplingParams, stop_after: int | None) -> None:
        async with gate:
            written = 0
            async for delta in (stream := engine.stream(Request(prompt, params))):
                written += len(delta.token_ids)
                if stop_after is not None and written >= stop_after:
                    await stream.aclose()
                    state["cancelled"] += 1
                    break
            else:
                assert written == params.max_tokens, (written, params)
            state["done"] += 1
            if state["done"] % (count // 40) == 0:
                gc.collect()
                memory.append(psutil.Process().memory_info().rss)

    for first in range(0, count, 2000):
        tasks = []
        for _ in range(min(2000, count - first)):
            prompt = dice.choice(heads)[: dice.randint(1, 65)]
            prompt = prompt + dice.choices(range(110, VOCAB), k=dice.randint(0, 60))
            room = CONTEXT_TOKENS - len(prompt)
            tokens = dice.choice([1 + int(dice.expovariate(1 / 12)) % room, dice.randint(1, room)])
            params = SamplingParams(
                max_tokens=tokens, temperature=dice.choice([0.0, 1.0]), ignore_eos=True,
                seed=dice.getrandbits(30), top_k=dice.choice([0, 0, 20]),
            )  # fmt: skip
            stop_after = dice.randint(1, tokens) if dice.random() < 0.01 else None
            tasks.append(one(prompt, params, stop_after))
        await asyncio.wait_for(asyncio.gather(*tasks), STUCK_SECONDS * 10)
    return memory, state["cancelled"]
