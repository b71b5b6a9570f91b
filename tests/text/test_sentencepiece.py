"""The SentencePiece file that we write, read by its own library."""

from __future__ import annotations

import re

import pytest

from singalaut.checkpoint.convert import convert
from singalaut.text.sentencepiece import sentencepiece_model, sentencepiece_pieces
from singalaut.text.tokenizer import Tokenizer

library = pytest.importorskip("sentencepiece")


def load(data: bytes):
    return library.SentencePieceProcessor(model_proto=data)


def test_the_library_reads_every_piece(tiny_vocabulary):
    tokens, scores, _ = tiny_vocabulary
    data = sentencepiece_model(*tiny_vocabulary)
    theirs = load(data)
    assert len(theirs) == len(tokens)
    for index, (token, score, kind) in enumerate(zip(*tiny_vocabulary, strict=True)):
        assert theirs.IdToPiece(index) == (token.replace(" ", "▁") if kind == 4 else token)
        assert theirs.GetScore(index) == score
        assert theirs.IsControl(index) == (kind == 3 and token != "<unk>")
        assert theirs.IsByte(index) == (kind == 6)
    ids = (theirs.pad_id(), theirs.eos_id(), theirs.bos_id(), theirs.unk_id())
    assert ids == (0, 1, 2, 3)
    assert [score for _, score in sentencepiece_pieces(data)] == scores


def test_it_cuts_texts_as_we_do(tiny_vocabulary, tiny_tokenizer, lines):
    theirs = load(sentencepiece_model(*tiny_vocabulary))
    # the tiny vocabulary joins Thai letters that it does not have alone, as no trained one would,
    # and its longest run of spaces is short: beyond that, ours joins from the left
    latin = [line.encode("ascii", "ignore").decode() for line in lines[:1000]]
    latin = [re.sub(" {5,}", " ", line) for line in latin]
    texts = [*latin, "  theirs \n\n the", " a", "<bos> the <table>", "ក"]
    assert theirs.encode(texts) == tiny_tokenizer.encode_batch(texts)
    tokens, scores, types = tiny_vocabulary
    wrong = [-score if kind == 1 else score for score, kind in zip(scores, types, strict=True)]
    other = load(sentencepiece_model(tokens, wrong, types))
    assert other.encode(texts) != theirs.encode(texts)


def test_a_converted_directory_has_it(gguf_seeing_model, tmp_path):
    import json

    from transformers import AutoTokenizer

    convert(gguf_seeing_model, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    ours = Tokenizer.load(tmp_path / "back")
    added = json.loads((tmp_path / "back" / "added_tokens.json").read_text())
    assert added == {"<image_soft_token>": 513}
    theirs = load((tmp_path / "back" / "tokenizer.model").read_bytes())
    text = "the  mat\n\n\n\nthat ក <bos>"
    assert theirs.encode(text) == ours.encode(text)
    transformers = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert transformers.encode(text[:-6]) == [2, *ours.encode(text[:-6])]
    assert transformers.convert_tokens_to_ids("<image_soft_token>") == 513


@pytest.mark.real
def test_real_texts_are_cut_as_we_do(real_model, lines):
    theirs = load((real_model / "tokenizer.model").read_bytes())
    assert theirs.encode(lines) == Tokenizer.load(real_model).encode_batch(lines)
