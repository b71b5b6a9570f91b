"""Pools, tables and the queue: nothing is lost, nothing is held twice, nobody starves."""

from __future__ import annotations

from array import array

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from singalaut.contracts import Request, SamplingParams
from singalaut.generate.answer import Answer
from singalaut.generate.memory import Room, plan_pages
from singalaut.generate.pages import PagePool, PageTables, digest_pages
from singalaut.generate.scheduler import Scheduler
from singalaut.model.config import SIZES
from singalaut.model.paged import KINDS, PAGE_TOKENS, page_bytes

WINDOW = 80


def answer(tokens: list[int], limit: int = 8, order: int = 0, **more) -> Answer:
    return Answer(
        request=Request(tokens, SamplingParams(max_tokens=limit)),
        index=0,
        tokens=array("i", tokens),
        num_prompt=len(tokens),
        marked=array("q", tokens),
        images=None,
        image_runs=[],
        seed=0,
        limit=limit,
        stop_ids=frozenset(),
        order=(0, order),
        deadline=None,
        listener=lambda _: None,
        decoder=None,
        **more,
    )


def test_digests_name_a_page_and_all_before_it():
    page = PAGE_TOKENS
    tokens = list(range(2 * page + 8))
    whole = digest_pages(tokens)
    assert len(whole) == 2 and digest_pages(tokens, whole[0], start=1) == whole[1:]
    assert digest_pages([99, *tokens[1:]])[1] != whole[1]
    assert digest_pages([*tokens[:page], *tokens[:page]])[1] != whole[0]


def test_an_empty_page_is_taken_before_a_known_one():
    pool = PagePool(4)
    pages = [pool.take() for _ in range(3)]
    for page in pages[:2]:
        pool.name(page, b"%d" % page)
    for page in pages:
        pool.release(page)
    assert pool.take() == pages[2]
    assert pool.take() == pages[0] and pool.find(b"%d" % pages[0]) is None
    assert pool.find(b"%d" % pages[1]) == pages[1]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_pages_are_conserved(data):
    """Whatever sequences do, each page is free, or held as often as tables say."""
    tables = PageTables({"global": 14, "window": 10}, WINDOW, slots=4, max_tokens=400)
    tokens: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        slot = data.draw(st.integers(0, 3))
        if slot not in tokens:
            prompt = [data.draw(st.integers(0, 1))] * data.draw(st.integers(1, 90))
            shared = tables.open(slot, digest_pages(prompt)[: (len(prompt) - 1) // PAGE_TOKENS])
            assert shared < len(prompt) and shared % PAGE_TOKENS == 0
            tokens[slot] = prompt
            if not tables.grow(slot, len(prompt)):
                tables.close(slot)
                del tokens[slot]
                continue
            for index, digest in enumerate(digest_pages(prompt)):
                tables.name(slot, index, digest)
        elif data.draw(st.booleans()):
            more = len(tokens[slot]) + data.draw(st.integers(1, 40))
            if tables.grow(slot, more):
                tokens[slot] += [7] * (more - len(tokens[slot]))
                tables.slide(slot, more)
        else:
            tables.close(slot, spoiled=data.draw(st.booleans()))
            del tokens[slot]
        for kind in KINDS:
            pool = tables.pools[kind]
            held = [page for s in tokens for page in tables.held(kind, s)]
            assert pool.used == len(set(held)) and 0 not in held
            assert all(pool._holders[page] == held.count(page) for page in range(1, pool.num_pages))
            assert pool.used + pool.available == pool.num_pages - 1
        for slot, known in tokens.items():
            seen = max(0, len(known) - WINDOW + 1) // PAGE_TOKENS
            assert len(tables.held("global", slot)) >= -(-len(known) // PAGE_TOKENS)
            assert len(tables.held("window", slot)) >= -(-len(known) // PAGE_TOKENS) - seen


def test_a_beginning_needs_the_window_before_its_end():
    page = PAGE_TOKENS
    tables = PageTables({"global": 30, "window": 30}, WINDOW, slots=2, max_tokens=400)
    prompt = list(range(10 * page))
    digests = digest_pages(prompt)
    tables.open(0, [])
    tables.grow(0, 10 * page)
    for index, digest in enumerate(digests):
        tables.name(0, index, digest)
    tables.slide(0, 10 * page)
    assert tables.open(1, digests[:9]) == 9 * page
    assert len(tables.held("global", 1)) == 9
    assert tables.held("window", 1) == tables.tables["window"][0, 6:9].tolist()
    tables.close(1)
    tables.close(0)
    gone = tables.tables["window"][0, 7]
    tables.pools["window"].unname(int(gone))
    # page 7 is gone: ends after 8 or 9 pages would need it
    assert tables.open(1, digests[:9]) == 7 * page


def test_images_are_not_cut():
    page = PAGE_TOKENS
    tables = PageTables({"global": 30, "window": 30}, WINDOW, slots=2, max_tokens=400)
    digests = digest_pages(list(range(6 * page)))
    tables.grow(0, 6 * page)
    for index, digest in enumerate(digests):
        tables.name(0, index, digest)
    image = [(2 * page + 8, 4 * page + 6)]
    assert tables.open(1, digests, whole=image) == 6 * page
    tables.close(1)
    assert tables.open(1, digests[:4], whole=image) == 2 * page


def run(scheduler: Scheduler, answers: list[Answer], steps: int = 500) -> list[list[Answer]]:
    """Let every token be 5; returns who decoded or was read in each step."""
    history = []
    for _ in range(steps):
        step = scheduler.plan()
        if not step:
            break
        history.append([*step.decode, *(chunk.answer for chunk in step.chunks)])
        new = [*step.decode, *(chunk.answer for chunk in step.chunks if chunk.samples)]
        assert len(new) == len(set(new))
        for each in new:
            each.under_way -= 1
            each.accept(5)
            if each.finish:
                scheduler.remove(each)
    return history


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 60)), min_size=1, max_size=8),
    pages=st.integers(9, 24),
    chunk=st.integers(1, 64),
)
@example(lengths=[(1, 38), (127, 35)], pages=9, chunk=64)
def test_everyone_finishes_however_small_the_cache(lengths, pages, chunk):
    numbers = {"global": pages, "window": max(6, pages // 2)}
    tables = PageTables(numbers, WINDOW, slots=3, max_tokens=400)
    scheduler = Scheduler(tables, 3, chunk)
    answers = [
        answer([i] * length, limit=limit, order=i) for i, (length, limit) in enumerate(lengths)
    ]
    for each in answers:
        scheduler.add(each)
    run(scheduler, answers, steps=20_000)
    assert [each.num_written for each in answers] == [limit for _, limit in lengths]
    assert all(tables.pools[kind].used == 0 for kind in KINDS)


def test_the_more_important_goes_first_and_the_last_gives_way():
    tables = PageTables({"global": 6, "window": 6}, WINDOW, slots=4, max_tokens=400)
    scheduler = Scheduler(tables, 4, 256)
    first, second = answer([1] * 60, limit=50, order=0), answer([2] * 60, limit=50, order=1)
    scheduler.add(second)
    scheduler.add(first)
    assert scheduler.plan().chunks[0].answer is first
    for each in (first, second):
        each.under_way = 0
        each.accept(5)
    run(scheduler, [first, second])
    assert scheduler.preemptions >= 1 and first.finish == second.finish == "length"


def test_pages_fill_the_budget():
    for size in SIZES.values():
        room = Room(64, size.max_positions, 4096)
        pages = plan_pages(size, torch.bfloat16, room, 20 << 30)
        taken = sum(pages[kind] * page_bytes(size, kind, torch.bfloat16) for kind in KINDS)
        longest = 1 + 64 * size.max_positions // PAGE_TOKENS
        assert taken <= 20 << 30
        assert taken > 0.9 * (20 << 30) or pages["global"] == longest
        each = pages["global"] // 64
        assert pages["window"] >= 64 * min(each, size.window // PAGE_TOKENS)
