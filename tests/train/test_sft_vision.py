"""Fine-tuning on pictures: the decoder learns, the vision part is left as it is."""

from __future__ import annotations

import base64
import io
import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from test_sft import run, weights

from singalaut.data.batches import micro_batches
from singalaut.errors import DataError
from singalaut.model.hf import hf_name, load_model
from singalaut.model.images import load_pictures, normalise
from singalaut.model.training import compile_layers
from singalaut.train import weights as network_weights
from singalaut.train.optim import adamw
from singalaut.train.pictures import embed_pictures
from singalaut.train.step import train_step


def png(seed: int) -> bytes:
    """Four patches of colour."""
    colours = np.random.default_rng(seed).integers(0, 2, (2, 2, 3), np.uint8) * 255
    out = io.BytesIO()
    Image.fromarray(colours.repeat(10, 0).repeat(15, 1)).save(out, "PNG")
    return out.getvalue()


def row(*content, answer="a cat") -> str:
    turns = [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


def text(words: str) -> dict:
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Conversations with two pictures, one, and none; named by file and by `data:` URI."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    for seed, name in enumerate(("a.png", "below/b.png")):
        (folder / name).write_bytes(png(seed))
    uri = "data:image/png;base64," + base64.b64encode(png(2)).decode()
    by_name = {"type": "image", "path": "a.png"}
    below = {"type": "image", "image": "below/b.png"}
    by_uri = {"type": "image_url", "image_url": {"url": uri}}
    file = folder / "rows.jsonl"
    file.write_text(
        row(by_name, text("what?"), by_uri, answer="the cat and the man")
        + row(text("and this?"), below, answer="a mat")
        + row(text("what is a cat?"), answer="that")
        + row(by_name, text("again?"), answer="a cat, again")
    )
    return file


def their_loss(theirs, store, batch, example, image_id, *, types=True):
    """The library's loss of each conversation alone, over all that are learned."""
    count = int(store.documents["learned"][batch].sum())
    total = 0.0
    for document in batch.tolist():
        ids, mask = example(store, document)
        tokens = torch.tensor(ids)[None]
        inputs = {"labels": tokens.masked_fill(~torch.tensor(mask)[None], -100)}
        inputs["token_type_ids"] = (tokens == image_id).long() * types
        if sources := store.pictures(document):
            inputs["pixel_values"] = normalise([load_pictures(s, 28)[0] for s in sources])
        loss = theirs(tokens, **inputs).loss * int(mask.sum()) / count
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize("micro_tokens", [2048, 60])
def test_loss_and_gradients_equal_transformers(
    micro_tokens, rows, seeing_model, load, example, monkeypatch
):
    from transformers import Gemma3ForConditionalGeneration

    ours = load_model(seeing_model).train().requires_grad_(True)
    ours.vision.requires_grad_(False)
    store, batch = load(rows, seeing_model, 4)
    grads = {}
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.0)
    monkeypatch.setattr(
        optimizer,
        "step",
        lambda: grads.update(
            {n: p.grad.clone() for n, p in ours.named_parameters() if p.grad is not None}
        ),
    )
    meters = train_step(ours, optimizer, micro_batches(store, batch, micro_tokens), 0.0, 1e9)
    theirs = Gemma3ForConditionalGeneration.from_pretrained(seeing_model, dtype=torch.float32)
    image_id = ours.config.vision.image_id
    loss = their_loss(theirs.train(), store, batch, example, image_id)
    assert meters.loss == pytest.approx(loss, rel=1e-5)
    expected = dict(theirs.named_parameters())
    assert grads and not any(name.startswith("vision") for name in grads)
    for name, gradient in grads.items():
        place = hf_name(name).replace("model.", "model.language_model.", 1)
        wanted = expected[place].grad
        assert (gradient - wanted).norm() <= 1e-4 * wanted.norm(), name
    theirs.zero_grad()
    causal = their_loss(theirs, store, batch, example, image_id, types=False)
    assert abs(meters.loss - causal) > 5e-5 * causal  # images that do not see themselves


def test_a_picture_goes_through_the_tower_once_a_step(rows, seeing_model, load, monkeypatch):
    model = load_model(seeing_model).train()
    model.requires_grad_(True)
    seen = []
    real = model.vision.forward

    def forward(pixels):
        seen.append(len(pixels))
        assert not torch.is_grad_enabled()
        return real(pixels)

    monkeypatch.setattr(model.vision, "forward", forward)
    micros = micro_batches(*load(rows, seeing_model, 4), 60)
    assert len(micros) > 1 and sum(len(m.pictures) for m in micros) == 4
    train_step(model, adamw(model, 1e-3, 0.0), micros, 1e-3, 1.0)
    assert seen == [3]


def test_the_same_picture_from_everywhere(tmp_path, seeing_model):
    model = load_model(seeing_model)
    (tmp_path / "a.png").write_bytes(png(0))
    uri = "data:image/png;base64," + base64.b64encode(png(0)).decode()
    found = embed_pictures(model, [png(0), uri, tmp_path / "a.png", png(1), png(0)])
    for other in (1, 2, 4):
        assert torch.equal(found[0], found[other])
    assert not torch.equal(found[0], found[3])
    with torch.no_grad():
        alone = model.vision(normalise(load_pictures(png(1), 28)))
    torch.testing.assert_close(found[3:4], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adapter", [None, {"rank": 4}])
def test_the_decoder_learns_and_the_vision_part_stays(adapter, tmp_path, rows, seeing_model):
    work = run(tmp_path, seeing_model, rows, adapter=adapter, steps=12, weight_decay=0.1)
    losses = [entry["loss"] for entry in work.metrics()]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    before, after = weights(seeing_model), weights(work.path / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("language_model.") for name in changed)
    assert load_model(work.path / "model").config.vision == load_model(seeing_model).config.vision
    assert (work.path / "model" / "preprocessor_config.json").exists()


def test_recomputed_and_compiled_layers_learn_the_same(tmp_path, rows, seeing_model, monkeypatch):
    torch._dynamo.reset()
    plain = run(tmp_path, seeing_model, rows, "plain", steps=3, adapter={"rank": 4})
    monkeypatch.setattr(network_weights, "compile_layers", partial(compile_layers, backend="eager"))
    other = {"keep": "attention", "compile": True}
    work = run(tmp_path, seeing_model, rows, "other", steps=3, adapter={"rank": 4}, **other)
    for one, two in zip(plain.metrics(), work.metrics(), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-4)
    assert weights(work.path / "model").keys() == weights(seeing_model).keys()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image", "path": "../a.png"}, "lies outside the folder of the rows"),
        ({"type": "image", "path": "/etc/passwd"}, "lies outside the folder of the rows"),
        ({"type": "image", "image": "gone.png"}, "the picture `gone.png` cannot be read"),
        ({"type": "image", "path": "cut.png"}, "the image cannot be decoded"),
        ({"type": "image"}, "fewer images than places"),
        ({"type": "image", "url": "https://a.b/c.png"}, "addresses are not fetched"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}}, "no image of a known"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(part, message, tmp_path, seeing_model):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "below" / "cut.png").write_bytes(png(0)[:70])
    file = tmp_path / "below" / "rows.jsonl"
    file.write_text(row(text("a")) + row(part, text("b")))
    with pytest.raises(DataError) as caught:
        run(tmp_path, seeing_model, file)
    assert message in str(caught.value)
    assert "rows.jsonl, row 2" in caught.value.where
    assert caught.value.hint


def test_pictures_for_a_model_that_cannot_see(tmp_path, rows, tiny_model):
    with pytest.raises(DataError, match="it is text-only, 2 were given") as caught:
        run(tmp_path, tiny_model, rows)
    assert "rows.jsonl, row 1" in caught.value.where


def test_a_conversation_longer_than_the_context(tmp_path, tiny_model):
    file = tmp_path / "rows.jsonl"
    file.write_text(row(text("a")) + row(text("ab " * 300)))
    with pytest.raises(DataError, match=r"has \d+ tokens; the model's context is 512") as caught:
        run(tmp_path, tiny_model, file)
    assert "rows, row 2" in caught.value.where and "lower `max_tokens` from 2048 to 512" in str(
        caught.value.hint
    )
    work = run(tmp_path, tiny_model, file, max_tokens=512, steps=1)
    assert work.facts["data"][0]["rows"] == 1
