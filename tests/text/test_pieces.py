"""The vocabulary read back from a tokenizer directory, with and without its SentencePiece model."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from singalaut.errors import CheckpointError
from singalaut.text.pieces import Pieces, read_pieces
from singalaut.text.sentencepiece import sentencepiece_pieces
from singalaut.text.tokenizer import Tokenizer

SPACES = ["   ".join("ab"), "  theirs \n\n the", " " * 9 + "t"]


@pytest.fixture
def saved(tiny_tokenizer, tmp_path) -> Path:
    tiny_tokenizer.save(tmp_path)
    return tmp_path


def edit(directory: Path, change) -> None:
    file = directory / "tokenizer.json"
    raw = json.loads(file.read_bytes())
    change(raw)
    file.write_text(json.dumps(raw))


def test_tokens_and_types_come_back(saved, tiny_vocabulary):
    tokens, _, types = tiny_vocabulary
    pieces = read_pieces(saved, 512)
    assert (pieces.tokens, pieces.types) == (tokens, types)


def test_ids_stay_the_same(saved, tiny_tokenizer, lines):
    again = Tokenizer.from_vocabulary(*read_pieces(saved, 512))
    texts = [*lines[:500], *SPACES]
    assert again.encode_batch(texts) == tiny_tokenizer.encode_batch(texts)
    assert again.identity == Tokenizer.load(saved).identity


def test_another_order_of_scores_is_another_tokenizer(saved, tiny_tokenizer, lines):
    pieces = read_pieces(saved, 512)
    wrong = [-score if kind == 1 else score for score, kind in zip(*pieces[1:], strict=True)]
    again = Tokenizer.from_vocabulary(pieces.tokens, wrong, pieces.types)
    texts = [*lines[:500], *SPACES]
    assert again.encode_batch(texts) != tiny_tokenizer.encode_batch(texts)


def test_merges_as_text_are_read_as_well(saved):
    wanted = read_pieces(saved, 512)
    edit(
        saved, lambda raw: raw["model"].update(merges=[" ".join(m) for m in raw["model"]["merges"]])
    )
    assert read_pieces(saved, 512) == wanted


def test_merges_of_another_kind_are_warned_of(saved, caplog):
    edit(saved, lambda raw: raw["model"]["merges"].pop())
    with caplog.at_level(logging.WARNING, logger="singalaut"):
        read_pieces(saved, 512)
    assert "1 merges of tokenizer.json are not those of a SentencePiece" in caplog.text


def test_an_image_token_beyond_the_rows_is_dropped_and_a_hole_is_filled(saved):
    def change(raw):
        token = dict(raw["added_tokens"][0], id=514, content="<image_soft_token>")
        raw["added_tokens"].append(token)

    edit(saved, change)
    assert len(read_pieces(saved, 512).tokens) == 512
    pieces = read_pieces(saved, 600)
    assert pieces.tokens[512:] == ["[PAD512]", "[PAD513]", "<image_soft_token>"]
    assert pieces.types[512:] == [5, 5, 3]


def test_more_tokens_than_rows(saved):
    with pytest.raises(CheckpointError, match="have no row in an embedding of 500 rows"):
        read_pieces(saved, 500)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"added_tokens": [], "model": {"vocab": [], "merges": 3}}']
)
def test_a_damaged_tokenizer(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="tokenizer cannot be read") as caught:
        read_pieces(tmp_path, 512)
    assert caught.value.hint


def test_a_tokenizer_that_transformers_saved(saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.AutoTokenizer.from_pretrained(saved).save_pretrained(tmp_path / "theirs")
    assert read_pieces(tmp_path / "theirs", 512) == read_pieces(saved, 512)


def write_model(file: Path, pieces: Pieces) -> None:
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    proto.trainer_spec.model_type = 2
    for token, score, kind in zip(*pieces, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    file.write_bytes(proto.SerializeToString())


def test_scores_of_a_sentencepiece_model(saved, tiny_vocabulary):
    write_model(saved / "tokenizer.model", Pieces(*tiny_vocabulary))
    pieces = read_pieces(saved, 512)
    normal = [i for i, kind in enumerate(pieces.types) if kind == 1]
    assert [pieces.scores[i] for i in normal] == [tiny_vocabulary[1][i] for i in normal]
    assert Tokenizer.from_vocabulary(*pieces).identity == Tokenizer.load(saved).identity


def test_a_sentencepiece_model_against_its_library(tmp_path, lines):
    library = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join(lines[:300]), "utf-8")
    library.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=1500,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    wanted = [(theirs.IdToPiece(i), theirs.GetScore(i)) for i in range(len(theirs))]
    assert list(sentencepiece_pieces((tmp_path / "tokenizer.model").read_bytes())) == wanted


def test_a_model_of_another_tokenizer(saved, tiny_vocabulary):
    tokens, scores, types = tiny_vocabulary
    shifted = [*tokens[:-1], "another"]
    write_model(saved / "tokenizer.model", Pieces(shifted, scores, types))
    with pytest.raises(CheckpointError, match=r"token 511 is `another`, but `.*` in") as caught:
        read_pieces(saved, 512)
    assert "remove" in caught.value.hint


def test_a_damaged_sentencepiece_model(saved, tiny_vocabulary):
    model = saved / "tokenizer.model"
    write_model(model, Pieces(*tiny_vocabulary))
    whole = model.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"\x0b" + whole, b"\xff" * 40):
        model.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model cannot be read|token \d"):
            read_pieces(saved, 512)


@pytest.fixture(scope="module")
def real_pieces(real_model) -> Pieces:
    return read_pieces(real_model, 262_144)


@pytest.fixture(scope="module")
def real_pair(real_model, real_pieces) -> tuple[Tokenizer, Tokenizer]:
    return Tokenizer.load(real_model), Tokenizer.from_vocabulary(*real_pieces)


@pytest.mark.real
def test_the_real_vocabulary_comes_back(real_gguf, real_pieces):
    from singalaut.model.gguf import GgufFile

    metadata = GgufFile(real_gguf).metadata
    assert real_pieces.tokens == metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]
    odd = {
        t for t, a, b in zip(real_pieces.tokens, types, real_pieces.types, strict=True) if a != b
    }
    assert odd == {
        "<start_of_image>",
        "<end_of_image>",
    }  # control tokens here, whatever a file says


@pytest.mark.real
def test_real_ids_stay_the_same(real_pair, lines):
    ours, again = real_pair
    assert again.encode_batch(lines) == ours.encode_batch(lines)
    assert again.identity == ours.identity


@pytest.mark.real
def test_real_ids_by_llama_cpp(real_pair, real_pieces, lines, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    import torch

    from singalaut.model.config import Gemma3Config
    from singalaut.model.gguf_write import write_gguf
    from singalaut.model.hf import parameter_shapes

    config = Gemma3Config(32, 32, 1, 1, 1, 32, 32.0, 8, 64)
    weights = (torch.zeros(shape) for shape in parameter_shapes(config).values())
    write_gguf(tmp_path / "m.gguf", config, "Q8_0", weights, real_pieces, name="vocabulary")
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    found = [theirs.tokenize(line.encode(), add_bos=False, special=False) for line in lines]
    wanted = real_pair[0].encode_batch(lines)
    different = [line for line, a, b in zip(lines, found, wanted, strict=True) if a != b]
    assert different == []


def test_a_copied_directory_is_enough(saved, tmp_path):
    (tmp_path / "copy").mkdir()
    shutil.copy(saved / "tokenizer.json", tmp_path / "copy")
    assert read_pieces(tmp_path / "copy", 512) == read_pieces(saved, 512)
