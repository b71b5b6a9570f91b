"""Answers on the terminal, from a Sampler that answers with the prompt in capitals."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from singalaut.cli import talk
from singalaut.contracts import Completion, Delta, Message, Request, SamplingParams, Usage
from singalaut.errors import RequestError


class Shouter:
    """A Sampler that finishes later requests first; `!` in a prompt is Ctrl-C in the answer."""

    def sample(self, requests):
        for request in reversed(requests):
            text = request.prompt[-1].content.upper()
            yield Completion(request.id, 0, (1,), text, "stop", Usage(2, 1))

    async def stream(self, request):
        text = request.prompt[-1].content.upper()
        if "?" in text:
            raise RequestError("no questions")
        for letter in text:
            if letter == "!":
                raise KeyboardInterrupt
            yield Delta(letter, (1,))


def test_one_prompt_is_streamed(capsys):
    talk.answer(Shouter(), ["halo"], SamplingParams(), as_json=False)
    assert capsys.readouterr().out == "HALO\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_prompt_that_cannot_be_answered_costs_no_other_answer(as_json, capsys):
    class Refuser(Shouter):
        def sample(self, requests):
            yield Completion("0", 0, (), "", "error", Usage(0, 0), error="too long")
            yield from super().sample(requests[1:])

    with pytest.raises(RequestError, match="1 of 2 prompts were not answered; number 1: too long"):
        talk.answer(Refuser(), ["one", "two"], SamplingParams(), as_json=as_json)
    lines = capsys.readouterr().out.strip().split("\n")
    if as_json:
        assert [json.loads(line).get("error") for line in lines] == ["too long", None]
    else:
        assert lines == ["> two", "TWO"]


def test_several_prompts_are_printed_in_order(capsys):
    talk.answer(Shouter(), ["one", "two"], SamplingParams(), as_json=False)
    assert capsys.readouterr().out == "> one\nONE\n\n> two\nTWO\n\n"


def test_json_has_one_line_for_each_prompt(capsys):
    talk.answer(Shouter(), ["satu", "สอง"], SamplingParams(), as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompt"], row["text"]) for row in rows] == [("satu", "SATU"), ("สอง", "สอง")]
    assert rows[0]["finish_reason"] == "stop" and rows[0]["completion_tokens"] == 1


def test_no_prompt_is_told(cli):
    result = cli("generate", "--model", "m", input="\n")
    assert result.exit_code == 2 and "no prompt" in result.stderr


@pytest.mark.parametrize("end", ["/quit\nnot read\n", ""])
def test_chat_keeps_what_was_said_and_forgets_what_was_refused(end, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"one\n\nwhy?\ntwo!three\n{end}"))
    messages = talk.converse(Shouter(), SamplingParams())
    assert [(message.role, message.content) for message in messages] == [
        ("user", "one"),
        ("assistant", "ONE"),
        ("user", "two!three"),
        ("assistant", "TWO"),
    ]
    shown = capsys.readouterr()
    assert shown.out == "ONE\nTWO …\n" and "error: no questions" in shown.err


def test_stream_lets_an_interrupt_in_between_pieces(capsys):
    class Endless(Shouter):
        async def stream(self, request):
            while True:
                yield Delta("x", (1,))

    pieces = []

    async def stopped():
        request = Request([Message("user", "a")])
        task = asyncio.ensure_future(talk._stream(Endless(), request, pieces))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped())
    assert pieces


def test_a_prompt_about_an_image(cli, tmp_path, seeing_model, tiny_model):
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    ask = ("generate", "--max-tokens", "2", "--json", "What is this?", "--image")
    seen = cli(*ask, "red.png", "--model", str(seeing_model))
    assert seen.exit_code == 0, seen.stderr
    plain = cli(*ask[:-1], "--model", str(seeing_model))
    assert json.loads(seen.stdout)["prompt_tokens"] > json.loads(plain.stdout)["prompt_tokens"]
    for file, model, message in (
        ("red.png", tiny_model, "text-only"),
        ("cut.png", seeing_model, "image"),
        ("none.png", seeing_model, "none.png"),
    ):
        refused = cli(*ask, file, "--model", str(model))
        assert refused.exit_code != 0 and message in refused.stderr, refused.stderr
        assert "internal error" not in refused.stderr
