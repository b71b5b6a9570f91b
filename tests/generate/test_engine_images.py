"""Requests with images: answers against `transformers`, sharing, and the memory of embeddings."""

from __future__ import annotations

import asyncio
import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from singalaut.contracts import Message, Request, SamplingParams
from singalaut.errors import CheckpointError, DataError, RequestError
from singalaut.generate import images as images_module
from singalaut.generate.engine import Engine, open_engine
from singalaut.model.hf import load_model
from singalaut.model.images import load_pictures, normalise
from singalaut.model.paged import PAGE_TOKENS


def picture(seed: int, width: int = 30, height: int = 20) -> bytes:
    generator = np.random.default_rng(seed)  # four patches of colour: noise would average out
    colours = generator.integers(0, 2, (2, 2, 3), np.uint8) * 255
    values = colours.repeat(height // 2, 0).repeat(width // 2, 1)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def ask_about(*pictures: bytes, text: str = "ที่?", before: str = "") -> list[Message]:
    parts = [{"type": "text", "text": before}] if before else []
    parts += [{"type": "image", "image": data} for data in pictures]
    return [Message("user", [*parts, {"type": "text", "text": text}])]


def drawn(tokens: int = 6, **more) -> SamplingParams:
    """Hot enough that another image gives other tokens even with random weights."""
    return SamplingParams(max_tokens=tokens, temperature=2.0, seed=3, ignore_eos=True, **more)


def run(engine: Engine, *prompts, **more) -> list[tuple[int, ...]]:
    requests = [Request(prompt, drawn(**more), str(i)) for i, prompt in enumerate(prompts)]
    found = {c.request_id: c.token_ids for c in engine.sample(requests)}
    return [found[request.id] for request in requests]


@pytest.fixture(scope="module")
def engine(seeing_model) -> Engine:
    return open_engine(seeing_model, batch_size=4)


@torch.no_grad()
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_log_probabilities_are_those_of_transformers(batch_invariant, engine, seeing_model):
    from transformers import Gemma3ForConditionalGeneration

    if batch_invariant:
        engine = open_engine(seeing_model, batch_size=4, batch_invariant=True)
    theirs = Gemma3ForConditionalGeneration.from_pretrained(seeing_model, dtype=torch.float32)
    image_id = engine.model.config.vision.image_id
    prompts = [ask_about(picture(1)), ask_about(picture(2), picture(3)), [Message("user", "a")]]
    prompts.append([*ask_about(picture(4)), Message("assistant", "b"), *ask_about(picture(1))])
    requests = [Request(p, drawn(12, logprobs=True), str(i)) for i, p in enumerate(prompts)]
    for answer in engine.sample(requests):
        ids, images = engine._prompts.read(prompts[int(answer.request_id)])
        tokens = torch.tensor([[*ids, *answer.token_ids]])
        seen = {"pixel_values": normalise(images.pictures)} if images else {}
        types = (tokens == image_id).long()
        logits = theirs(tokens, token_type_ids=types, **seen).logits[0, len(ids) - 1 : -1]
        logits = logits[:, : engine.tokenizer.vocab_size].index_fill(
            1, torch.tensor(image_id), float("-inf")
        )
        wanted = logits.log_softmax(-1)[range(12), answer.token_ids]
        assert answer.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_company_and_sharing_change_nothing(engine):
    same = [ask_about(picture(1), text=text) for text in ("a", "b")]
    other = ask_about(picture(2), text="a")
    alone = [run(engine, prompt)[0] for prompt in (*same, other)]
    assert alone[0] != alone[2]
    assert run(engine, *same, other) == alone


def test_company_changes_no_bit_of_a_batch_invariant_answer(seeing_model):
    engine = open_engine(seeing_model, batch_size=4, chunk_tokens=40, batch_invariant=True)
    prompts = [ask_about(picture(1)), ask_about(picture(2), picture(1), before="abc" * 9)]
    requests = [Request(p, drawn(logprobs=True), str(i)) for i, p in enumerate(prompts)]
    alone = []
    for request in requests:
        engine.weights_changed()
        alone += engine.sample([request])
    engine.weights_changed()
    others = [Request([5] * n, drawn(), f"other {n}") for n in (1, 40)]
    found = {c.request_id: c for c in engine.sample([others[0], *requests, others[1]])}
    assert [found[c.request_id] for c in alone] == alone


def test_only_equal_images_are_shared(engine):
    before = [{"type": "text", "text": "abcdefghijklmnopqrstuvwxyz" * 2}]
    images = [{"type": "image", "image": picture(n)} for n in (1, 2, 3, 4)]

    def prompt(*numbers: int, text: str = "a") -> list[Message]:
        parts = [*before, *(images[n] for n in numbers), {"type": "text", "text": text}]
        return [Message("user", parts)]

    prompts = [prompt(0, 1, 2), prompt(0, 1, 2, text="b"), prompt(0, 3, 2), prompt(1)]
    alone = []
    for each in prompts:
        engine.weights_changed()
        alone += run(engine, each)
    engine.weights_changed()
    shared = []
    for each, wanted in zip(prompts, alone, strict=True):
        known = engine.statistics()["shared_tokens"]
        assert run(engine, each) == [wanted]
        shared.append(engine.statistics()["shared_tokens"] - known)
    ids = [engine._prompts.read(each)[0] for each in prompts]
    start, _, image = engine.tokenizer.image_ids
    runs = [[i for i, token in enumerate(row) if token == start] for row in ids]
    assert shared[0] == 0
    for row, other in ((1, 0), (2, 0), (3, 0)):
        same = 0
        marks = [
            list(
                engine._prompts.open(Request(prompts[r], drawn()), 512, 512, print, streams=False)[
                    0
                ].marked
            )
            for r in (row, other)
        ]
        while marks[0][same] == marks[1][same]:
            same += 1
        assert 0 < shared[row] <= same
        assert shared[row] % PAGE_TOKENS == 0
        assert (
            shared[row] == len(ids[row])
            or ids[row][shared[row]] != image
            or (
                ids[row][shared[row] - 1] != image  # never inside an image
            )
        )
    assert shared[1] >= runs[1][1] // PAGE_TOKENS * PAGE_TOKENS


def test_embeddings_are_kept_and_forgotten(seeing_model, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_EMBEDDINGS", 2)
    engine = open_engine(seeing_model)
    first = run(engine, ask_about(picture(1), picture(2)))
    engine._core.scheduler.tables.forget()  # else their keys and values are found again
    assert run(engine, ask_about(picture(1), picture(2))) == first
    assert (engine.statistics()["images"], engine.statistics()["images_reused"]) == (2, 2)
    run(engine, ask_about(picture(3)))
    run(engine, ask_about(picture(2)))  # 1 was the oldest
    assert engine.statistics()["images"] == 3
    run(engine, ask_about(picture(1)))
    assert engine.statistics()["images"] == 4
    engine.weights_changed()
    run(engine, ask_about(picture(1)))
    assert engine.statistics()["images"] == 5
    assert len(engine._core.images._kept) == 1


def test_the_same_picture_twice_is_computed_once(seeing_model):
    engine = open_engine(seeing_model)
    run(engine, ask_about(picture(1), picture(1)))
    assert engine.statistics()["images"] == 1


def test_data_uris_and_pan_and_scan(engine, seeing_model):
    data = picture(5, 700, 300)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    part = {"type": "image_url", "image_url": {"url": uri}}
    prompt = [Message("user", [part, {"type": "text", "text": "a"}])]
    assert run(engine, prompt) == run(engine, ask_about(data, text="a"))
    cropping = open_engine(seeing_model, pan_and_scan=True)
    ids, images = cropping._prompts.read(prompt)
    start = cropping.tokenizer.image_ids[0]
    assert (ids.count(start), len(images.pictures), images.tokens.crops) == (3, 3, (2,))
    assert cropping.identity != engine.identity
    assert run(cropping, prompt) != run(engine, prompt)


def test_the_image_token_is_never_sampled(engine):
    image_id = engine.tokenizer.image_ids[2]
    params = SamplingParams(max_tokens=40, temperature=50.0, n=8, seed=1, ignore_eos=True)
    sampled = {t for c in engine.sample([Request([2, 150], params)]) for t in c.token_ids}
    assert len(sampled) > 100 and image_id not in sampled
    assert max(sampled) < engine.tokenizer.vocab_size


def test_requests_that_cannot_be_served(engine, tiny_model, seeing_model):
    image_id = engine.tokenizer.image_ids[2]
    bare = [Message("user", [{"type": "image"}])]
    broken = ask_about(picture(1), picture(2)[:60])
    for prompt, kind, message in (
        (bare, RequestError, "an image part without an image"),
        (broken, DataError, r"cannot be decoded[\s\S]*where: image 2"),
        ([2, image_id], RequestError, f"the image token {image_id}, but no image"),
        (ask_about(*[picture(1)] * 80), RequestError, "the model's context is 512"),
    ):
        with pytest.raises(kind, match=message):
            streamed(engine, prompt)
        refused = next(iter(engine.sample([Request(prompt, drawn())])))
        assert refused.finish_reason == "error" and re.search(message, refused.error)
    with pytest.raises(DataError, match="text-only, 1 were given"):
        streamed(open_engine(tiny_model), ask_about(picture(1)))
    blind = Engine(load_model(seeing_model, vision=False), engine.tokenizer, engine.chat, "blind")
    with pytest.raises(DataError, match="text-only"):
        streamed(blind, ask_about(picture(1)))
    assert run(blind, [2, 150, 151]) == run(engine, [2, 150, 151])


def test_a_tokenizer_of_another_model_is_named(seeing_model, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(seeing_model, tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "image_token_index": 514}))
    with pytest.raises(CheckpointError, match=r"image tokens \(107, 108, 514\)"):
        open_engine(folder)


def streamed(engine: Engine, prompt, tokens: int = 5) -> tuple[int, ...]:
    async def collect() -> list[int]:
        deltas = engine.stream(Request(prompt, drawn(tokens)))
        return [t async for delta in deltas for t in delta.token_ids]

    return tuple(asyncio.run(collect()))


def test_streams_see_too(engine):
    prompt = ask_about(picture(1))
    assert streamed(engine, prompt) == run(engine, prompt, tokens=5)[0]
    assert load_pictures(picture(1), 28)[0].pixels.shape == (28, 28, 3)
