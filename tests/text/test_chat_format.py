from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.contracts import Message
from singalaut.errors import CheckpointError, DataError
from singalaut.text.chat import GEMMA_TEMPLATE, ChatFormat, normalise_turns
from singalaut.text.template import read_template


def system(text):
    return Message("system", text)


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def tool(text):
    return Message("tool", text)


WORDS = st.text(st.sampled_from("abc ก ข\n<>"), max_size=12)
TOKENS = st.sampled_from(["<bos>", "<end_of_turn>", "<start_of_turn>model\n", "\ue0000.0\ue001"])
TEXT = st.lists(st.one_of(WORDS, TOKENS), min_size=1, max_size=4).map("".join)
SAID = TEXT.filter(str.strip)


@st.composite
def conversations(draw):
    messages = [system(draw(SAID))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [user(draw(SAID)), assistant(draw(SAID))]
    return messages


def by_hand(messages, generation_prompt):
    """The format written out without a template."""
    out, prefix = "<bos>", ""
    for message in messages:
        if message.role == "system":
            prefix = message.content.strip() + "\n\n"
            continue
        name = "model" if message.role == "assistant" else "user"
        out += f"<start_of_turn>{name}\n{prefix}{message.content.strip()}<end_of_turn>\n"
        prefix = ""
    return out + "<start_of_turn>model\n" * generation_prompt


@pytest.fixture(scope="module")
def chat(tiny_tokenizer):
    return ChatFormat(tiny_tokenizer)


@given(messages=conversations(), prompt=st.booleans())
def test_rendering(chat, messages, prompt):
    assert chat.render(messages, generation_prompt=prompt) == by_hand(messages, prompt)


@given(messages=conversations())
def test_message_text_holds_no_control_tokens(chat, tiny_tokenizer, messages):
    ids = chat.encode(messages, generation_prompt=False)
    turns = sum(message.role != "system" for message in messages)
    assert sum(i in tiny_tokenizer.control_ids for i in ids) == 1 + 2 * turns
    text = tiny_tokenizer.decode(ids, skip_control=False)
    assert text == by_hand(messages, False)


@given(messages=conversations())
def test_the_mask_covers_what_the_assistant_says(chat, tiny_tokenizer, messages):
    ids, mask = chat.encode_with_mask(messages)
    assert len(ids) == len(mask)
    assert ids == chat.encode(messages, generation_prompt=False)
    learnt = tiny_tokenizer.decode(
        [i for i, flag in zip(ids, mask, strict=True) if flag], skip_control=False
    )
    said = [m.content.strip() + "<end_of_turn>" for m in messages if m.role == "assistant"]
    assert learnt == "".join(said)
    prompt = chat.encode(messages[:-1])
    assert ids[: len(prompt)] == prompt
    assert mask[len(prompt)] and not mask[len(prompt) - 1] and not mask[-1]


def test_transformers_renders_the_same(tiny_tokenizer, chat, tmp_path, lines):
    transformers = pytest.importorskip("transformers")
    tiny_tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [line for line in lines[:60] if line.strip()]
    for a, b, c in zip(texts[::3], texts[1::3], texts[2::3], strict=False):
        messages = [system(a), user(b), assistant(c), user(a)]
        plain = [{"role": m.role, "content": m.content} for m in messages]
        for prompt in (False, True):
            text = theirs.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt)
            assert text == chat.render(messages, generation_prompt=prompt)
            ids = theirs.apply_chat_template(plain, add_generation_prompt=prompt, return_dict=False)
            assert ids == chat.encode(messages, generation_prompt=prompt)


def test_a_conversation_in_parts_reads_like_one_in_strings(chat, tiny_tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tiny_tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    parts = [{"type": "text", "text": " a "}, {"type": "text", "text": "b\n"}]
    expected = theirs.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert chat.render([user(parts)], generation_prompt=False) == expected
    assert expected == "<bos><start_of_turn>user\nab<end_of_turn>\n"


def test_an_empty_message_is_tokenised_as_in_one_piece(chat, tiny_tokenizer):
    messages = [system(" "), user("a"), assistant(""), user("b")]
    text = chat.render(messages, generation_prompt=True)
    assert chat.encode(messages) == tiny_tokenizer.encode(text, control=True)


@pytest.mark.parametrize(
    "messages, expected",
    [
        ([user("a"), user("b")], [user("a\n\nb")]),
        ([system("s"), system("t"), user("a")], [system("s\n\nt"), user("a")]),
        (
            [user("a"), assistant("b"), system("s"), user("c")],
            [user("a"), assistant("b"), user("s\n\nc")],
        ),
        ([user("a"), system("s"), assistant("b")], [user("a\n\ns"), assistant("b")]),
        (
            [user("a"), assistant("f()"), tool("1"), tool("2")],
            [
                user("a"),
                assistant("f()"),
                user(
                    "<tool_response>\n1\n</tool_response>\n\n<tool_response>\n2\n</tool_response>"
                ),
            ],
        ),
        ([user(" a \n"), assistant("b"), assistant("c")], [user("a"), assistant("b\n\nc")]),
        ([user([{"type": "text", "text": "a"}])], [user("a")]),
    ],
)
def test_turns_are_put_in_order(messages, expected):
    assert normalise_turns(messages) == expected
    assert normalise_turns(expected) == expected


@pytest.mark.parametrize(
    "messages, reason",
    [
        ([], "the conversation is empty"),
        ([system("s")], "has no user message"),
        ([assistant("a")], "starts with the assistant"),
        ([system("s"), assistant("a"), user("b")], "starts with the assistant"),
        ([Message("developer", "a")], r"unknown role `developer`\n  where: message 1"),
        ([user("a"), Message("assistant", None)], "the content is NoneType, not text"),
        ([user([{"type": "image_url", "image_url": {}}])], "the source of an image is missing"),
        ([user([{"type": "audio"}])], "a content part of type `audio`"),
        ([user(["a"])], "a content part of type `str`"),
        ([user("a"), Message("assistant", "", tool_calls=[{}])], "tool calls"),
    ],
)
def test_conversations_that_do_not_fit_are_refused(chat, messages, reason):
    for refuses in (normalise_turns, chat.encode, chat.encode_with_mask):
        with pytest.raises(DataError, match=reason):
            refuses(messages)


def test_training_needs_an_answer(chat):
    with pytest.raises(DataError, match="no assistant turn"):
        chat.encode_with_mask([user("a")])
    with pytest.raises(DataError, match="an assistant turn has no text"):
        chat.encode_with_mask([user("a"), assistant(" "), user("b"), assistant("c")])
    for turns in (
        [user(" "), assistant("a")],
        [user("a"), assistant("b"), user(""), assistant("c")],
    ):
        with pytest.raises(DataError, match="a user turn has no text"):
            chat.encode_with_mask(turns)
    chat.encode_with_mask([system("Write a poem."), user(""), assistant("a")])


@pytest.mark.parametrize(
    "template, reason",
    [
        ("a\n{% for x in %}", "line 2"),
        ("{{ bos_token }}\n\n{{ 1 / 0 }}", r"division by zero[\s\S]*line 3"),
        ("{{ unknown() }}", "'unknown' is undefined"),
        ("{% include '/etc/passwd' %}", "the chat template fails"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ bos_token }}", "leaves out"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes"),
    ],
)
def test_a_template_that_fails_is_named(tiny_tokenizer, tmp_path, template, reason):
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=reason) as caught:
        ChatFormat.load(tmp_path, tiny_tokenizer).encode([user("abc")])
    assert "chat_template.jinja" in str(caught.value)


def test_a_template_may_refuse_a_conversation(tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer, "{{ raise_exception('no system message, please') }}")
    with pytest.raises(DataError, match="no system message, please"):
        chat.encode([user("a")])


def test_gemmas_template_refuses_turns_out_of_order(tiny_tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    jinja2 = pytest.importorskip("jinja2")
    tiny_tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for roles in (["assistant"], ["user", "user"], ["user", "system"], ["user", "tool"]):
        with pytest.raises(jinja2.TemplateError, match="take turns"):
            theirs.apply_chat_template([{"role": r, "content": "a"} for r in roles])


def test_training_refuses_a_template_without_end_of_turn(tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer, "{% for m in messages %}{{ m.content }}\n\n{% endfor %}")
    with pytest.raises(CheckpointError, match="does not end assistant turns"):
        chat.encode_with_mask([user("a"), assistant("b")])


def test_where_a_template_is_found(tiny_tokenizer, tmp_path):
    assert ChatFormat.load(tmp_path, tiny_tokenizer).template == GEMMA_TEMPLATE
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}")
    assert ChatFormat.load(tmp_path, tiny_tokenizer).template == GEMMA_TEMPLATE
    config.write_text(json.dumps({"chat_template": "A"}))
    assert ChatFormat.load(tmp_path, tiny_tokenizer).template == "A"
    named = [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "C"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert ChatFormat.load(tmp_path, tiny_tokenizer).template == "C"
    (tmp_path / "chat_template.jinja").write_text("D")
    assert ChatFormat.load(tmp_path, tiny_tokenizer).template == "D"


@pytest.mark.parametrize("text", ["{", "[]", '{"chat_template": 3}', '{"chat_template": [{}]}'])
def test_a_configuration_that_cannot_be_read(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot be read[\s\S]*tokenizer_config.json"):
        read_template(tmp_path)


def test_identity_changes_with_the_template(chat, tiny_tokenizer):
    assert ChatFormat(tiny_tokenizer).identity == chat.identity
    assert ChatFormat(tiny_tokenizer, "other").identity != chat.identity
