"""The real vocabulary against two independent readers: `transformers` and SentencePiece itself."""

from __future__ import annotations

import random
import re

import pytest

from singalaut.contracts import Message
from singalaut.model.gguf import GgufFile
from singalaut.text.chat import ChatFormat
from singalaut.text.tokenizer import StreamDecoder, Tokenizer

pytestmark = pytest.mark.real
KEYS = ("tokens", "scores", "token_type")


@pytest.fixture(scope="session")
def vocabulary(real_gguf):
    metadata = GgufFile(real_gguf).metadata
    return [metadata[f"tokenizer.ggml.{key}"] for key in KEYS]


@pytest.fixture(scope="session")
def tokenizer(vocabulary):
    return Tokenizer.from_vocabulary(*vocabulary)


@pytest.fixture(scope="session")
def saved(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("real")
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="session")
def theirs(real_gguf):
    """What `transformers` reads from the same file; slow, so once."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(real_gguf.parent, gguf_file=real_gguf.name)


@pytest.fixture(scope="session")
def theirs_saved(saved):
    """What `transformers` reads from the directory that we wrote."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(saved)


def ids_of(theirs, texts):
    return theirs(texts, add_special_tokens=False).input_ids


def test_ids_equal_transformers(tokenizer, theirs, lines):
    assert not any(token in "".join(lines) for token in ("<bos>", "<start_of_turn>"))
    assert tokenizer.encode_batch(lines) == ids_of(theirs, lines)
    assert tokenizer.decode(tokenizer.encode(lines[7])) == lines[7]


def test_long_runs_equal_transformers(tokenizer, theirs):
    units = [
        " ",
        "  a",
        "\n",
        "\t",
        "a",
        "ha",
        "aab",
        "=",
        "=-",
        "0",
        "><",
        "ก",
        "เล",
        "ๆ",
        "哈",
        "█",
    ]
    texts = [unit * count for unit in units for count in range(1, 71)]
    assert tokenizer.encode_batch(texts) == ids_of(theirs, texts)


def test_every_line_survives(tokenizer, lines):
    ids = tokenizer.encode_batch(lines)
    assert [tokenizer.decode(line) for line in ids] == lines
    for line, text in zip(ids, lines, strict=True):
        stream = StreamDecoder(tokenizer)
        assert "".join([*(stream.push([i]) for i in line), stream.finish()]) == text


def test_smuggled_control_tokens_stay_text(tokenizer, theirs, smuggled):
    assert len(smuggled) >= 100
    assert tokenizer.encode_batch(smuggled, control=True) == ids_of(theirs, smuggled)
    for text, ids in zip(smuggled, tokenizer.encode_batch(smuggled), strict=True):
        assert tokenizer.control_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text


def test_a_saved_directory_loads_the_same_in_both(tokenizer, saved, theirs_saved, lines, smuggled):
    theirs = theirs_saved
    loaded = Tokenizer.load(saved)
    assert loaded.identity == tokenizer.identity
    assert loaded.encode_batch(lines) == tokenizer.encode_batch(lines) == ids_of(theirs, lines)
    assert tokenizer.encode_batch(smuggled, control=True) == ids_of(theirs, smuggled)
    assert len(theirs) == tokenizer.vocab_size == 262144
    assert theirs("a").input_ids == [2, *tokenizer.encode("a")]


def test_the_comparison_can_fail(vocabulary, theirs, lines):
    tokens, scores, types = vocabulary
    backwards = Tokenizer.from_vocabulary(tokens, [-score for score in scores], types)
    assert backwards.encode_batch(lines) != ids_of(theirs, lines)


def test_ids_equal_sentencepiece(vocabulary, tokenizer, lines):
    """Up to runs of more than 31 spaces, which both cut, but into different lengths."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(*vocabulary, strict=True):
        token = token.replace(" ", "\u2581")
        model.pieces.add(piece=token, score=score, type=2 if token == "<unk>" else kind)
    model.trainer_spec.MergeFrom(
        sentencepiece_model_pb2.TrainerSpec(
            model_type="BPE", byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3
        )
    )
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    texts = [text for text in lines if not re.search(" {32}", text)]
    assert len(texts) > 1900
    assert tokenizer.encode_batch(texts) == processor.encode(texts)
    assert tokenizer.encode(" " * 40) != processor.encode(" " * 40)


def test_conversations_equal_transformers(tokenizer, saved, theirs_saved, lines):
    ours = ChatFormat.load(saved, tokenizer)
    chance = random.Random(5)
    texts = [line for line in lines if line.strip()]
    roles = ["system", "user", "assistant", "user", "assistant"]
    for _ in range(200):
        first = chance.randint(0, 1)
        chosen = roles[first : first + chance.randint(2, 4)]
        messages = [Message(role, chance.choice(texts)) for role in chosen]
        plain = [{"role": m.role, "content": m.content} for m in messages]
        prompt = messages[-1].role != "assistant"
        expected = theirs_saved.apply_chat_template(
            plain, tokenize=True, add_generation_prompt=prompt, return_dict=False
        )
        assert ours.encode(messages, generation_prompt=prompt) == expected
