"""Many conversations at once against the format's own code, one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.contracts import ROLES, Message
from singalaut.errors import DataError
from singalaut.text.bulk import IDS, BulkEncoder
from singalaut.text.chat import ChatFormat
from singalaut.text.conversations import ConversationEncoder, is_learned, token_ids
from singalaut.text.parts import ImageTokens, image_sources
from singalaut.text.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
OTHER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system message') }}{% endif %}"
    "[{{ m.role }}]\n{{ m.content }}<end_of_turn>{% if not loop.last %}\n{% endif %}{% endfor %}"
)
TEXT = st.one_of(
    st.sampled_from(
        ["", " ", "a", "<end_of_turn>", "\n the \n", "ที่นี่", "{{ bos_token }}", "\ue000"]
    ),
    st.text(max_size=8),
)
PART = st.one_of(
    TEXT.map(lambda text: {"type": "text", "text": text}),
    st.just({"type": "image", "image": b"x"}),
    st.just({"type": "audio"}),
)
CONTENT = st.one_of(TEXT, TEXT, TEXT, st.lists(PART, max_size=3), st.none())
MESSAGE = st.builds(
    Message,
    st.sampled_from([*ROLES, "user", "assistant", "boss"]),
    CONTENT,
    st.sampled_from([None, None, [{}]]),
)
ORDERLY = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3).map(
    lambda pairs: [
        Message(r, t) for p in pairs for r, t in zip(("user", "assistant"), p, strict=True)
    ]
)
CONVERSATION = st.one_of(
    ORDERLY, st.lists(MESSAGE, max_size=5), st.tuples(MESSAGE, ORDERLY).map(lambda x: [x[0], *x[1]])
)


def one_by_one(chat, messages):
    """Ids and mask, or the complaint, by the format's own code."""
    try:
        images = ImageTokens((0,) * len(image_sources(messages)), 4)
        return chat.encode_with_mask(messages, images=images)
    except DataError as error:
        return error.what


def together(encoder, conversations):
    found = encoder.encode(conversations)
    return [
        item.what
        if isinstance(item, DataError)
        else (token_ids(words := np.frombuffer(item, IDS)).tolist(), is_learned(words).tolist())
        for item in found
    ]


@pytest.fixture(scope="module", params=[None, OTHER_TEMPLATE], ids=["gemma", "other"])
def chat(request, seeing_tokenizer):
    return ChatFormat(seeing_tokenizer, request.param)


@pytest.fixture(scope="module")
def encoder(chat, seeing_tokenizer):
    return ConversationEncoder(chat, BulkEncoder(seeing_tokenizer), tokens_per_image=4)


@settings(max_examples=300, deadline=None)
@given(conversations=st.lists(CONVERSATION, max_size=4))
def test_any_conversations_equal_one_by_one(chat, encoder, conversations):
    assert together(encoder, conversations) == [one_by_one(chat, c) for c in conversations]


def test_half_a_character_costs_one_row(encoder):
    good = [Message("user", "a"), Message("assistant", "b")]
    bad = [Message("user", "a"), Message("assistant", "b\ud800")]
    found = encoder.encode([good, bad, good])
    assert found[0] == found[2] and isinstance(found[0], bytes)
    assert "not valid Unicode" in str(found[1])


def test_a_wrong_mask_is_noticed(chat, encoder):
    messages = [Message("user", "a"), Message("assistant", "b")]
    ids, mask = one_by_one(chat, messages)
    wrong = [not flag for flag in mask]
    assert together(encoder, [messages]) == [(ids, mask)] != [(ids, wrong)]


@pytest.mark.real
@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder with real text is not here")
def test_real_conversations_equal_one_by_one(real_model):
    """Every seventh row of the shared data; `benchmarks/data.py` compares all of them."""
    tokenizer = Tokenizer.load(real_model)
    chat = ChatFormat.load(real_model, tokenizer)
    encoder = ConversationEncoder(chat, BulkEncoder(tokenizer))
    rows = []
    for file in sorted(SHARED.glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines()[::7]:
            row = json.loads(line)
            turns = row.get("messages") or [*row["prompt"], *row["chosen"]]
            rows.append(
                [Message(t["role"], t.get("content") or "", t.get("tool_calls")) for t in turns]
            )
    assert together(encoder, rows) == [one_by_one(chat, row) for row in rows]
