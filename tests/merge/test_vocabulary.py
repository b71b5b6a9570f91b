"""Models with different vocabularies: rows go by the text of their tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from singalaut.artifact import Work
from singalaut.errors import CheckpointError
from singalaut.merge.config import MergeConfig
from singalaut.merge.stream import run_merge
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import load_model, read_config, save_model
from singalaut.text.tokenizer import Tokenizer

EMBEDDING = "model.embed_tokens.weight"
MORE = ["▁mak", "▁makan", "สว", "<tool>"]  # "▁mak" is made of "▁ma" and "k", and so on


@pytest.fixture(scope="module")
def vocabularies(tiny_vocabulary):
    """The tiny vocabulary; it with words added; another order with one token less."""
    tokens, scores, types = tiny_vocabulary
    last = min(scores[-10:])
    longer = (
        [*tokens, *MORE],
        [*scores, last - 1, last - 2, last - 3, 0.0],
        [*types, 1, 1, 1, 3],
    )
    swapped = [list(column) for column in tiny_vocabulary]
    for column in swapped:
        column[-1], column[-2] = column[-2], column[-1]
        del column[-3]
    return {"base": tiny_vocabulary, "longer": longer, "swapped": tuple(swapped)}


@pytest.fixture
def models(tmp_path, tiny_config, vocabularies):
    """A model for each, with a few rows beyond its tokens."""
    for seed, (name, vocabulary) in enumerate(vocabularies.items()):
        tokenizer = Tokenizer.from_vocabulary(*vocabulary)
        rows = tokenizer.vocab_size + 2
        config = replace(tiny_config, vocab_size=rows, eos_ids=(1, tokenizer.end_of_turn_id))
        save_model(initialise(Gemma3(config), seed=seed), tmp_path / name, torch.float32)
        tokenizer.save(tmp_path / name)
    return tmp_path


def merge(folder, names, **settings):
    config = MergeConfig.model_validate({"models": [{"from": n} for n in names], **settings})
    models = {label: folder / name for label, name in config.inputs().items()}
    work = Work(folder / "work")
    work.path.mkdir()
    run_merge(config, models=models, adapters={}, work=work, seed=0)
    return work


def rows_by_token(folder) -> dict[str, torch.Tensor]:
    rows = load_file(folder / "model.safetensors")[EMBEDDING]
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    ids = dict(vocabulary["model"]["vocab"])
    ids |= {entry["content"]: entry["id"] for entry in vocabulary["added_tokens"]}
    return {token: rows[index] for token, index in ids.items()}


def test_the_vocabulary_of_one_model(models):
    work = merge(models, ["base", "longer", "swapped"], tokenizer="swapped")
    found = rows_by_token(work.path / "model")
    sources = [rows_by_token(models / name) for name in ("base", "longer", "swapped")]
    assert found.keys() == sources[2].keys()
    for token, row in found.items():
        wanted = sum(source[token] for source in sources) / 3
        torch.testing.assert_close(row, wanted, rtol=0, atol=1e-6)
    merged = read_config(work.path / "model")
    assert merged.vocab_size == read_config(models / "swapped").vocab_size
    facts = work.facts["merge"]["vocabulary"]
    assert [entry["count"] for entry in facts["dropped_tokens"]] == [1, 5, 0]
    assert set(facts["dropped_tokens"][1]["examples"]) > set(MORE)
    load_model(work.path / "model")


def test_all_tokens_of_all_models(models):
    names = ["base", "longer", "swapped"]
    weights = (0.5, 0.3, 0.2)
    inputs = [{"from": n, "weight": w} for n, w in zip(names, weights, strict=True)]
    work = merge(models, [], **{"models": inputs, "tokenizer": "union"})
    found = rows_by_token(work.path / "model")
    sources = [rows_by_token(models / name) for name in names]
    assert found.keys() == sources[0].keys() | sources[1].keys()
    for token, row in found.items():
        having = [source[token] for source in sources if token in source]
        mean = sum(having) / len(having)  # what a model without the token gets
        wanted = sum(w * s.get(token, mean) for w, s in zip(weights, sources, strict=True))
        torch.testing.assert_close(row, wanted, rtol=0, atol=1e-6)
    joined, longer = Tokenizer.load(work.path / "model"), Tokenizer.load(models / "longer")
    for text in ("makan di sana", " makan", "สวัสดี", "mak", "the maker"):
        assert joined.encode(text) == longer.encode(text), text
    assert joined.encode("<tool>", control=True) == longer.encode("<tool>", control=True)
    assert load_model(work.path / "model").config.eos_ids == (1, joined.end_of_turn_id)


def test_the_base_stands_in_for_a_lacking_row(models):
    """Without a row of its own a model has the base's, so that its task vector is zero there."""
    work = merge(models, ["swapped"], base="longer", method="task_arithmetic", tokenizer="longer")
    found, base, other = (
        rows_by_token(folder)
        for folder in (work.path / "model", models / "longer", models / "swapped")
    )
    for token, row in found.items():
        torch.testing.assert_close(row, other.get(token, base[token]), rtol=0, atol=1e-6)


def test_rows_beyond_the_tokens_go_by_their_number(models):
    work = merge(models, ["longer"], tokenizer="longer")
    ours, theirs = (
        load_file(folder / "model.safetensors")[EMBEDDING]
        for folder in (work.path / "model", models / "longer")
    )
    assert torch.equal(ours, theirs)


def test_a_difference_is_named(models, tiny_config):
    with pytest.raises(CheckpointError, match="`vocab_size` is 518 here and 514"):
        merge(models, ["base", "longer"])
    tokenizer = json.loads((models / "swapped" / "tokenizer.json").read_text())
    (models / "base" / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.rmtree(models / "work")
    swapped = models / "other"
    save_model(initialise(Gemma3(read_config(models / "base")), seed=9), swapped, torch.float32)
    Tokenizer.load(models / "longer").save(swapped)
    with pytest.raises(CheckpointError, match=r"is token \d+ here and .* in the first model"):
        merge(models, ["base", "other"])


def test_embeddings_from_one_model(models, tiny_config, tiny_tokenizer):
    for name, seed in (("a", 1), ("b", 2)):
        save_model(initialise(Gemma3(tiny_config), seed=seed), models / name, torch.float32)
        tiny_tokenizer.save(models / name)
    a, b = (load_file(models / name / "model.safetensors") for name in "ab")
    work = merge(models, ["a", "b"], embeddings_from="b")
    found = load_file(work.path / "model" / "model.safetensors")
    assert torch.equal(found[EMBEDDING], b[EMBEDDING])
    torch.testing.assert_close(
        found["model.norm.weight"], (a["model.norm.weight"] + b["model.norm.weight"]) / 2
    )


def test_control_tokens_from_one_model(models, tiny_config, tiny_tokenizer):
    for name, seed in (("a", 1), ("b", 2)):
        save_model(initialise(Gemma3(tiny_config), seed=seed), models / name, torch.float32)
        tiny_tokenizer.save(models / name)
    a, b = (load_file(models / name / "model.safetensors")[EMBEDDING] for name in "ab")
    work = merge(models, ["a", "b"], embeddings_from="b", embedding_rows="control")
    found = load_file(work.path / "model" / "model.safetensors")[EMBEDDING]
    control = torch.zeros(len(found), dtype=torch.bool)
    control[list(tiny_tokenizer.control_ids)] = True
    assert torch.equal(found[control], b[control])
    torch.testing.assert_close(found[~control], (a[~control] + b[~control]) / 2)
    assert control.sum() > 100


def test_a_model_without_tokenizer(models):
    (models / "longer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="the vocabulary cannot be read"):
        merge(models, ["base", "longer"], tokenizer="union")
