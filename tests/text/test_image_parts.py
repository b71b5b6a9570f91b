"""Images in messages: token ids against `transformers`' processor, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.contracts import Message
from singalaut.errors import CheckpointError, DataError
from singalaut.text.chat import ChatFormat, ImageTokens, normalise_turns
from singalaut.text.parts import image_sources
from singalaut.text.tokenizer import Tokenizer

EACH = 4
IMAGE = {"type": "image"}


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def user(*parts) -> Message:
    return Message("user", list(parts))


@pytest.fixture(scope="module")
def tokenizer(seeing_tokenizer) -> Tokenizer:
    return seeing_tokenizer


@pytest.fixture(scope="module")
def chat(tokenizer) -> ChatFormat:
    return ChatFormat(tokenizer)


@pytest.fixture(scope="module")
def processor(tokenizer, tmp_path_factory):
    """The library's processor; its images are only counted here, so they may be small."""
    from transformers import AutoTokenizer, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    folder = tmp_path_factory.mktemp("processor")
    tokenizer.save(folder)
    images = Gemma3ImageProcessorPil(size={"height": 8, "width": 8})
    theirs = AutoTokenizer.from_pretrained(folder)
    return Gemma3Processor(
        images, theirs, chat_template=theirs.chat_template, image_seq_length=EACH
    )


CONVERSATIONS = [
    [user(IMAGE)],
    [user(IMAGE, words("what is this?"))],
    [user(words("what is this?"), IMAGE)],
    [user(words("first"), IMAGE, words("second"), IMAGE, IMAGE, words("all of them"))],
    [Message("system", "be brief"), user(IMAGE, words("go on"))],
    [Message("system", "be brief"), user(words(" a \n"), IMAGE)],
    [user(words("a"), IMAGE), Message("assistant", "ok"), user(IMAGE, words("ที่นี่"))],
    [user(IMAGE, IMAGE), Message("assistant", "two"), Message("user", "thanks")],
]


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
@pytest.mark.parametrize("wide", [False, True])
def test_token_ids_match_the_processor(number, wide, chat, processor):
    messages = CONVERSATIONS[number]
    count = len(image_sources(messages))
    shape = (300, 700, 3) if wide else (20, 20, 3)
    pictures = [np.zeros(shape, np.uint8)] * count
    plain = [{"role": m.role, "content": m.content} for m in messages]
    text = processor.apply_chat_template(plain, add_generation_prompt=True)
    assert text == chat.render(messages, generation_prompt=True)
    expected = processor(
        text=text, images=pictures, do_pan_and_scan=wide, add_special_tokens=False
    )["input_ids"][0]
    crops = (2 if wide else 0,) * count
    assert chat.encode(messages, images=ImageTokens(crops, EACH)) == list(expected)
    if wide:  # the comparison notices missing crops
        assert chat.encode(messages, images=ImageTokens((0,) * count, EACH)) != list(expected)


def test_blank_lines_that_meet_are_one_token(chat, tokenizer):
    ids = chat.encode([user(IMAGE, IMAGE)], images=ImageTokens((0, 0), EACH))
    start, end, image = tokenizer.image_ids
    four, three = tokenizer.encode("\n\n\n\n"), tokenizer.encode("\n\n\n")
    assert len(four) == len(three) == 1
    picture = [start, *[image] * EACH, end]
    begin = ids.index(start)
    assert ids[begin - 1 : begin] == three
    assert ids[begin : begin + 2 * len(picture) + 1] == [*picture, *four, *picture]


SMUGGLED = st.lists(
    st.sampled_from(["a", " ", "\n", "<start_of_image>", "<image_soft_token>", "<end_of_image>"]),
    min_size=1,
    max_size=5,
).map("".join)


@given(before=SMUGGLED, after=SMUGGLED)
def test_text_never_becomes_an_image(before, after, chat, tokenizer):
    message = user(words(before), IMAGE, words(after))
    ids = chat.encode([message], images=ImageTokens((0,), EACH))
    start, end, image = tokenizer.image_ids
    assert [ids.count(i) for i in (start, end, image)] == [1, 1, EACH]
    shown = tokenizer.decode(ids, skip_control=False)
    picture = "<start_of_image>" + "<image_soft_token>" * EACH + "<end_of_image>"
    assert f"user\n{before.strip()}\n\n{picture}\n\n{after.strip()}<end_of_turn>" in shown


def test_the_mask_is_on_the_answers_only(chat, tokenizer):
    messages = [user(words("a"), IMAGE), Message("assistant", "a cat"), user(IMAGE)]
    messages += [Message("assistant", "a dog")]
    ids, mask = chat.encode_with_mask(messages, images=ImageTokens((0, 1), EACH))
    learnt = [i for i, flag in zip(ids, mask, strict=True) if flag]
    assert tokenizer.decode(learnt, skip_control=False) == "a cat<end_of_turn>a dog<end_of_turn>"
    wanted = chat.encode(messages, generation_prompt=False, images=ImageTokens((0, 1), EACH))
    assert ids == wanted


def test_sources_are_found_in_order(tmp_path):
    uri = "data:image/png;base64,AAAA"
    messages = [
        user({"type": "image", "image": b"1"}, words("a"), {"type": "image", "image": tmp_path}),
        Message("assistant", "b"),
        user({"type": "image_url", "image_url": {"url": uri}}, IMAGE),
        user({"type": "image_url", "image_url": uri}, {"type": "image", "base64": "AAAA"}),
    ]
    wanted = [b"1", tmp_path, uri, None, uri, "data:image;base64,AAAA"]
    assert image_sources(messages) == wanted
    assert image_sources(normalise_turns(messages)) == wanted


def test_neighbours_with_images_are_joined():
    turns = normalise_turns([user(words("a")), user(IMAGE, words(" b ")), user(words("c"))])
    image = {"type": "image", "image": None}
    assert turns == [Message("user", [words("a"), image, words("b\n\nc")])]
    assert normalise_turns(turns) == turns
    (first, tool) = normalise_turns(
        [Message("user", "a"), Message("assistant", "f()"), Message("tool", [IMAGE])]
    )[::2]
    assert first.content == "a"
    assert tool.content == [words("<tool_response>"), image, words("</tool_response>")]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image", "image": "/etc/passwd"}, "is `/etc/passwd`"),
        ({"type": "image_url", "image_url": {"url": "https://a.org/b.png"}}, "is `https:"),
        ({"type": "image_url", "image_url": {}}, "is missing"),
        ({"type": "image_url"}, "is missing"),
        ({"type": "image", "image": 3}, "is int"),
    ],
)
def test_sources_that_cannot_be_used(part, reason):
    with pytest.raises(DataError, match=f"the source of an image {reason}"):
        image_sources([user(part)])


def test_images_where_none_belong(chat, tiny_tokenizer):
    with pytest.raises(DataError, match=r"text-only, 2 were given[\s\S]*4B, 12B or 27B"):
        chat.encode([user(IMAGE, IMAGE)])
    with pytest.raises(DataError, match="3 images for 2 image parts"):
        chat.encode([user(IMAGE, IMAGE)], images=ImageTokens((0, 0, 0)))
    with pytest.raises(DataError, match="1 images for 2 image parts"):
        chat.encode([user(IMAGE, IMAGE)], images=ImageTokens((0,)))
    for role in ("system", "assistant"):
        with pytest.raises(DataError, match=f"an image in the {role} message"):
            chat.encode([Message("user", "a"), Message(role, [IMAGE])], images=ImageTokens((0,)))
    with pytest.raises(CheckpointError, match="no image tokens"):
        ChatFormat(tiny_tokenizer).encode([user(IMAGE)], images=ImageTokens((0,)))


def test_a_path_is_no_string():
    assert image_sources([user({"type": "image", "path": Path("a.png")})]) == [Path("a.png")]
