from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.errors import CheckpointError, DataError
from singalaut.text.languages import SCRIPT_RANGES
from singalaut.text.tokenizer import StreamDecoder, Tokenizer

SPACE = "\u2581"
EVERY_SCRIPT = st.one_of(
    *(
        st.text(st.one_of(*(st.characters(min_codepoint=a, max_codepoint=b) for a, b in ranges)))
        for ranges in SCRIPT_RANGES.values()
    )
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SPACE))
FRAGMENTS = st.sampled_from(
    ["<bos>", "<", ">", "<start_of_turn>", "<end_of", "_turn>", "<pad>", "\n", " ", "ก", "<table>"]
)


@pytest.fixture(scope="module")
def saved(tiny_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    tiny_tokenizer.save(directory)
    return directory


def test_control_tokens_have_the_ids_of_gemma(tiny_tokenizer):
    t = tiny_tokenizer
    assert (t.pad_id, t.eos_id, t.bos_id, t.unk_id) == (0, 1, 2, 3)
    assert (t.start_of_turn_id, t.end_of_turn_id, t.vocab_size) == (105, 106, 512)
    assert t.control_ids == frozenset(range(109))
    assert t.token(105) == "<start_of_turn>"


@given(text=st.one_of(EVERY_SCRIPT, ANY_TEXT))
def test_text_survives_encode_and_decode(tiny_tokenizer, text):
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == text.replace(SPACE, " ")


@given(text=st.lists(st.one_of(FRAGMENTS, ANY_TEXT)).map("".join))
def test_no_text_becomes_a_control_token(tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text)
    assert tiny_tokenizer.control_ids.isdisjoint(ids)
    assert tiny_tokenizer.decode(ids) == text
    controls = tiny_tokenizer.encode(text, control=True)
    assert tiny_tokenizer.decode(controls, skip_control=False) == text


def test_control_tokens_are_read_on_request(tiny_tokenizer):
    text = "<bos>a<<start_of_turn>b<table><c> <unused99><bos"
    ids = tiny_tokenizer.encode(text, control=True)
    found = [tiny_tokenizer.token(i) for i in ids if i in tiny_tokenizer.control_ids]
    assert found == ["<bos>", "<start_of_turn>", "<unused99>"]
    assert tiny_tokenizer.decode(ids) == "a<b<table><c> <bos"
    batch = tiny_tokenizer.encode_batch([text, "", "a"], control=True)
    assert batch == [ids, [], tiny_tokenizer.encode("a")]


def test_encoding_is_the_same_from_many_threads(tiny_tokenizer):
    text = "<bos>the <end_of_turn> man" * 20
    expected = [tiny_tokenizer.encode(text), tiny_tokenizer.encode(text, control=True)]
    wrong = []

    def work():
        for _ in range(50):
            got = [tiny_tokenizer.encode(text), tiny_tokenizer.encode(text, control=True)]
            wrong.extend([got] * (got != expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(data=st.data(), ids=st.lists(st.integers(0, 511)), skip=st.booleans())
def test_a_stream_equals_decoding_at_once(tiny_tokenizer, data, ids, skip):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    stream = StreamDecoder(tiny_tokenizer, skip_control=skip)
    pieces = [stream.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    text = "".join([*pieces, stream.finish()])
    assert text == tiny_tokenizer.decode(ids, skip_control=skip)


@given(text=EVERY_SCRIPT)
def test_a_stream_never_shows_half_a_character(tiny_tokenizer, text):
    stream = StreamDecoder(tiny_tokenizer)
    shown = [stream.push([i]) for i in tiny_tokenizer.encode(text)]
    assert "\ufffd" not in "".join(shown)
    assert stream.finish() == ""


def test_a_stream_cut_inside_a_character_says_so(tiny_tokenizer):
    stream = StreamDecoder(tiny_tokenizer)
    ids = tiny_tokenizer.encode("ກ")
    assert len(ids) == 3
    assert stream.push(ids[:2]) == ""
    assert stream.finish() == "\ufffd"


def test_a_saved_directory_loads_as_the_same_tokenizer(tiny_tokenizer, saved, lines, smuggled):
    loaded = Tokenizer.load(saved)
    assert loaded.identity == tiny_tokenizer.identity
    assert loaded.control_ids == tiny_tokenizer.control_ids
    for control in (False, True):
        expected = tiny_tokenizer.encode_batch(lines + smuggled, control=control)
        assert loaded.encode_batch(lines + smuggled, control=control) == expected


def test_transformers_loads_a_saved_directory(tiny_tokenizer, saved, lines, smuggled):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    texts = lines[:300] + smuggled
    expected = [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert tiny_tokenizer.encode_batch(texts, control=True) == expected
    assert len(theirs) == 512
    assert theirs("the").input_ids == [2, *tiny_tokenizer.encode("the")]
    assert (theirs.boi_token, theirs.eoi_token) == ("<start_of_image>", "<end_of_image>")
    assert theirs.decode(expected[0]) == tiny_tokenizer.decode(expected[0])


def test_identity_changes_with_the_vocabulary(tiny_tokenizer, saved, tmp_path):
    tiny_tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    data = json.loads(file.read_bytes())
    data["model"]["merges"].pop()
    file.write_text(json.dumps(data))
    assert Tokenizer.load(tmp_path).identity != tiny_tokenizer.identity


def rewritten(saved, folder, change):
    """A copy of a saved tokenizer.json after `change(data)`."""
    data = json.loads((saved / "tokenizer.json").read_bytes())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read[\s\S]*tokenizer.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, tmp_path, share):
    data = (saved / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["not JSON", "{}", "[1, 2]", '{"model": {"type": "Nope"}}'])
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_without_the_chat_tokens_is_refused(saved, tmp_path):
    def change(data):
        data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "<end_of_turn>"]
        vocabulary = data["model"]["vocab"]
        vocabulary["<other>"] = vocabulary.pop("<end_of_turn>")

    with pytest.raises(CheckpointError, match="lacks the control tokens <end_of_turn>"):
        Tokenizer.load(rewritten(saved, tmp_path, change))


def test_a_tokenizer_without_byte_fallback_is_refused(saved, tmp_path):
    def change(data):
        data["model"]["byte_fallback"] = False

    with pytest.raises(CheckpointError, match="without byte fallback"):
        Tokenizer.load(rewritten(saved, tmp_path, change))


def test_merges_that_forge_a_control_token_are_refused(saved, tmp_path):
    def change(data):
        data["model"]["vocab"] |= {"<b": 512, "os>": 513, "os": 514}
        data["model"]["merges"] += [["<", "b"], ["o", "s"], ["os", ">"], ["<b", "os>"]]

    with pytest.raises(CheckpointError, match="spell out the control token `<bos>`"):
        Tokenizer.load(rewritten(saved, tmp_path, change))


def test_control_tokens_registered_as_plain_ones_are_still_control(saved, tmp_path):
    def change(data):
        for token in data["added_tokens"]:
            token["special"] = token["special"] and token["id"] not in (105, 107)

    tokenizer = Tokenizer.load(rewritten(saved, tmp_path, change))
    assert tokenizer.control_ids == frozenset(range(109))
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode("<start_of_turn><start_of_image>"))
    assert tokenizer.encode("<start_of_turn>", control=True) == [105]


def test_names_come_from_the_configuration(saved, tmp_path):
    rewritten(saved, tmp_path, lambda data: None)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<end_of_turn>"}, "pad_token": None}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (106, 0)
    config.write_text("{")
    with pytest.raises(CheckpointError, match=r"settings cannot be read[\s\S]*tokenizer_config"):
        Tokenizer.load(tmp_path)


def test_arrays_of_different_length_are_refused(tiny_vocabulary):
    tokens, scores, types = tiny_vocabulary
    with pytest.raises(CheckpointError, match="512 tokens, 511 scores and 512 token types"):
        Tokenizer.from_vocabulary(tokens, scores[:-1], types)
    with pytest.raises(CheckpointError, match="a token comes twice"):
        Tokenizer.from_vocabulary([*tokens[:-1], "a"], scores, types)


def test_turn_tokens_that_a_file_calls_normal_are_control(tiny_vocabulary):
    tokens, scores, types = tiny_vocabulary
    tokenizer = Tokenizer.from_vocabulary(tokens, scores, [1 if t == 3 else t for t in types])
    assert {0, 1, 2, 3, 105, 106, 107, 108} == tokenizer.control_ids


def test_scores_decide_the_merges(tiny_tokenizer, tiny_vocabulary):
    tokens, scores, types = tiny_vocabulary
    ids = {token: index for index, token in enumerate(tokens)}
    assert tiny_tokenizer.encode("then") == [ids["th"], ids["e"], ids["n"]]
    scores = list(scores)
    scores[ids["th"]] = -900.0
    changed = Tokenizer.from_vocabulary(tokens, scores, types)
    assert changed.encode("then") == [ids["t"], ids["he"], ids["n"]]
    assert changed.identity != tiny_tokenizer.identity


def test_half_a_surrogate_pair_is_refused(tiny_tokenizer):
    for control in (False, True):
        with pytest.raises(DataError, match=r"not valid Unicode: '\\ud800' at character 2"):
            tiny_tokenizer.encode_batch(["fine", "ab\ud800c"], control=control)


@pytest.mark.parametrize("unknown", [-1, 512, 2**40])
def test_an_unknown_id_is_refused(tiny_tokenizer, unknown):
    with pytest.raises(DataError, match="is not in the vocabulary"):
        tiny_tokenizer.decode([5, unknown], skip_control=False)
