"""Requests with images: answers against `transformers`, sharing, and the memory of embeddings."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from singalaut.contracts import Message, Request, SamplingParams
from singalaut.errors import CheckpointError, DataError, RequestError
from singalaut.generate import engine as engine_module
from singalaut.generate import images as images_module
from singalaut.generate.engine import Engine, open_engine
from singalaut.model.hf import load_model
from singalaut.model.images import load_pictures, normalise


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
def test_log_probabilities_are_those_of_transformers(engine, seeing_model):
    from transformers import Gemma3ForConditionalGeneration

    theirs = Gemma3ForConditionalGeneration.from_pretrained(seeing_model, dtype=torch.float32)
    image_id = engine.model.config.vision.image_id
    prompts = [ask_about(picture(1)), ask_about(picture(2), picture(3)), [Message("user", "a")]]
    prompts.append([*ask_about(picture(4)), Message("assistant", "b"), *ask_about(picture(1))])
    requests = [Request(p, drawn(12, logprobs=True), str(i)) for i, p in enumerate(prompts)]
    for answer in engine.sample(requests):
        ids, images = engine._prompt_ids(prompts[int(answer.request_id)])
        tokens = torch.tensor([[*ids, *answer.token_ids]])
        seen = {"pixel_values": normalise(images.pictures)} if images else {}
        types = (tokens == image_id).long()
        logits = theirs(tokens, token_type_ids=types, **seen).logits[0, len(ids) - 1 : -1]
        logits = logits[:, : engine.tokenizer.vocab_size].index_fill(
            1, torch.tensor(image_id), float("-inf")
        )
        wanted = logits.log_softmax(-1)[range(12), answer.token_ids]
        assert answer.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_company_and_sharing_change_nothing(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "MIN_SHARED_TOKENS", 4)
    same = [ask_about(picture(1), text=text) for text in ("a", "b")]
    other = ask_about(picture(2), text="a")
    alone = [run(engine, prompt)[0] for prompt in (*same, other)]
    assert alone[0] != alone[2]
    engine._counts["shared_tokens"] = 0
    assert run(engine, *same, other) == alone


@pytest.fixture(scope="module")
def wide_engine(seeing_model) -> Engine:
    """An engine whose windows are wide enough for prompts with images to be shared."""
    from dataclasses import replace

    from singalaut.model.gemma3 import Gemma3

    engine = open_engine(seeing_model, batch_size=4)
    model = Gemma3(replace(engine.model.config, window=128)).eval()
    model.load_state_dict(engine.model.state_dict())
    return Engine(model, engine.tokenizer, engine.chat, "wide", 4)


def test_only_equal_images_are_shared(wide_engine, monkeypatch):
    monkeypatch.setattr(engine_module, "MIN_SHARED_TOKENS", 4)
    engine = wide_engine
    prompts = [
        ask_about(picture(1), text="a"),
        ask_about(picture(1), text="b"),
        ask_about(picture(2), text="a"),
        ask_about(picture(1), picture(2), text="a"),
    ]
    alone = [run(engine, prompt)[0] for prompt in prompts]
    engine._counts["shared_tokens"] = 0
    assert run(engine, *prompts) == alone
    ids = [engine._prompt_ids(prompt)[0] for prompt in prompts]
    start, end, _ = engine.tokenizer.image_ids
    whole = ids[0].index(end) + 2  # up to the blank lines after the picture
    until = ids[2].index(start) + 1  # another picture: up to its start
    tail = ids[3].index(end) + 1  # here four newlines follow
    assert engine.statistics()["shared_tokens"] == whole + until + tail
    wrong = [engine._open(Request(prompt, drawn()))[0].marked for prompt in prompts]
    assert wrong[0] != wrong[2] and ids[0] == ids[2]


def test_embeddings_are_kept_and_forgotten(seeing_model, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_EMBEDDINGS", 2)
    engine = open_engine(seeing_model)
    first = run(engine, ask_about(picture(1), picture(2)))
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
    assert len(engine._images._kept) == 1


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
    ids, images = cropping._prompt_ids(prompt)
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
            run(engine, prompt)
    with pytest.raises(DataError, match="text-only, 1 were given"):
        run(open_engine(tiny_model), ask_about(picture(1)))
    blind = Engine(load_model(seeing_model, vision=False), engine.tokenizer, engine.chat, "blind")
    with pytest.raises(DataError, match="text-only"):
        run(blind, ask_about(picture(1)))
    assert run(blind, [2, 150, 151]) == run(engine, [2, 150, 151])


def test_a_tokenizer_of_another_model_is_named(seeing_model, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(seeing_model, tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "image_token_index": 514}))
    with pytest.raises(CheckpointError, match=r"image tokens \(107, 108, 514\)"):
        open_engine(folder)


def test_streams_see_too(engine):
    import asyncio

    prompt = Request(ask_about(picture(1)), drawn(5))

    async def collect() -> list[int]:
        return [t async for delta in engine.stream(prompt) for t in delta.token_ids]

    assert tuple(asyncio.run(collect())) == run(engine, prompt.prompt, tokens=5)[0]
    assert load_pictures(picture(1), 28)[0].pixels.shape == (28, 28, 3)
