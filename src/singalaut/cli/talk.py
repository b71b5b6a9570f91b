"""Commands that talk with a model: generate and chat."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from singalaut.cli.recipes import JsonOption
from singalaut.cli.stages import NAMED_HELP

if TYPE_CHECKING:
    from singalaut.contracts import Completion, Message, Request, Sampler, SamplingParams

LARGEST_BATCH = 16
WeightKind = Literal["int8", "int4", "fp8"]
ModelOption = Annotated[str, typer.Option(help=NAMED_HELP)]
TokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")]
WeightsOption = Annotated[
    WeightKind | None,
    typer.Option(help="Compute with fewer bits: int8 or int4 on a CPU, int8 or fp8 on a GPU."),
]
ParallelOption = Annotated[
    int,
    typer.Option(
        "--tensor-parallel", min=1, metavar="N", help="GPUs that hold the model together."
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")]


def generate(
    model: ModelOption,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Questions; without any, the lines of stdin."),
    ] = None,
    max_tokens: TokensOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    image: Annotated[
        list[Path], typer.Option(metavar="FILE", help="An image that every prompt is about.")
    ] = [],  # noqa: B006 - typer copies it
    pan_and_scan: Annotated[
        bool, typer.Option("--pan-and-scan", help="Add crops of images that are not nearly square.")
    ] = False,
    weights: WeightsOption = None,
    tensor_parallel: ParallelOption = 1,
    stream: Annotated[
        bool, typer.Option("--stream", help="Show several answers one by one, as they are written.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Answer prompts: one is streamed, several are answered together and printed in order."""
    from singalaut.contracts import SamplingParams
    from singalaut.errors import RequestError

    if not prompts and not sys.stdin.isatty():
        prompts = [line.strip() for line in sys.stdin if line.strip()]
    if not prompts:
        raise RequestError("no prompt is given", hint='as in `singalaut generate --model M "…"`')
    if pan_and_scan and not image:
        raise RequestError(
            "`--pan-and-scan` is about images, but none is given", hint="--image FILE"
        )
    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    ways = {"pan_and_scan": pan_and_scan, "weights": weights, "tensor_parallel": tensor_parallel}
    sampler = _open(model, min(len(prompts), LARGEST_BATCH), **ways)
    if stream and not as_json:
        for prompt in prompts:
            print(f"> {prompt}", flush=True)
            answer(sampler, [prompt], sampling, as_json, image)
    else:
        answer(sampler, prompts, sampling, as_json, image)


def chat(
    model: ModelOption,
    max_tokens: TokensOption = 512,
    temperature: TemperatureOption = 0.7,
    seed: SeedOption = None,
    weights: WeightsOption = None,
    tensor_parallel: ParallelOption = 1,
) -> None:
    """Talk with a model; Ctrl-C ends an answer, `/quit` or Ctrl-D the conversation."""
    from singalaut.contracts import SamplingParams

    sampler = _open(model, 1, weights=weights, tensor_parallel=tensor_parallel)
    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    print("/quit or Ctrl-D leaves, Ctrl-C ends an answer", file=sys.stderr)
    converse(sampler, sampling)


def answer(
    sampler: Sampler,
    prompts: Sequence[str],
    sampling: SamplingParams,
    as_json: bool,
    images: Sequence[Path] = (),
) -> None:
    """Print the answers to the prompts, as text or as one JSON object a line."""
    from singalaut.contracts import Message, Request

    requests = [
        Request([Message("user", _content(prompt, images))], sampling, id=str(number))
        for number, prompt in enumerate(prompts)
    ]
    if len(requests) == 1 and not as_json:
        asyncio.run(_stream(sampler, requests[0], []))
    else:
        _print_all(sampler, requests, prompts, as_json)


def _content(prompt: str, images: Sequence[Path]) -> str | list[dict[str, Any]]:
    """The prompt alone, or behind its images."""
    if not images:
        return prompt
    pictures: list[dict[str, Any]] = [{"type": "image", "image": file} for file in images]
    return [*pictures, {"type": "text", "text": prompt}]


def converse(sampler: Sampler, sampling: SamplingParams) -> list[Message]:
    """Answer what is said on stdin until the user leaves; returns the conversation."""
    messages: list[Message] = []
    while (text := _read_line()) is not None:
        if text:
            _take_turn(sampler, messages, text, sampling)
    return messages


def _open(model: str, batch_size: int, **ways: object) -> Sampler:
    from singalaut.cli.models import open_named
    from singalaut.generate.engine import open_engine

    return open_engine(open_named(model), batch_size, **ways)


async def _stream(sampler: Sampler, request: Request, pieces: list[str]) -> None:
    """Print the answer as it comes and keep it in `pieces`, so that a stop loses nothing."""
    from singalaut.errors import RequestError

    async for delta in sampler.stream(request):
        pieces.append(delta.text)
        print(delta.text, end="", flush=True)
        if delta.error is not None:
            raise RequestError(delta.error)
        await asyncio.sleep(0)  # lets Ctrl-C in: a sampler may never wait
    print()


def _print_all(
    sampler: Sampler, requests: Sequence[Request], prompts: Sequence[str], as_json: bool
) -> None:
    """Print each answer as soon as it and those before it are there.

    Raises: RequestError after the last one, if there were prompts that could not be answered.
    """
    from singalaut.errors import RequestError

    waiting: dict[str, Completion] = {}
    printed = 0
    failed: list[tuple[int, str]] = []
    for completion in sampler.sample(requests):
        waiting[completion.request_id] = completion
        while str(printed) in waiting:
            answer = waiting.pop(str(printed))
            if answer.error is not None:
                failed.append((printed, answer.error))
            if as_json or answer.error is None:
                write = _line if as_json else _block
                print(write(prompts[printed], answer), flush=True)
            printed += 1
    if failed:
        number, first = failed[0]
        raise RequestError(
            f"{len(failed)} of {len(prompts)} prompts were not answered; "
            f"number {number + 1}: {first}"
        )


def _block(prompt: str, answer: Completion) -> str:
    return f"> {prompt}\n{answer.text}\n"


def _line(prompt: str, answer: Completion) -> str:
    import json

    values: dict[str, Any] = {
        "prompt": prompt,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
    }
    if answer.error is not None:
        values["error"] = answer.error
    return json.dumps(values, ensure_ascii=False)


def _read_line() -> str | None:
    """What the user says next; None to leave."""
    try:
        text = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return None
    return None if text == "/quit" else text


def _take_turn(
    sampler: Sampler, messages: list[Message], text: str, sampling: SamplingParams
) -> None:
    """One question and its answer, which join the conversation unless the model refuses it."""
    from singalaut.contracts import Message, Request
    from singalaut.errors import SingalautError

    question = Message("user", text)
    pieces: list[str] = []
    try:
        asyncio.run(_stream(sampler, Request([*messages, question], sampling), pieces))
    except KeyboardInterrupt:
        print(" …")
    except SingalautError as error:
        print(f"error: {error}", file=sys.stderr)
        return
    messages += [question, Message("assistant", "".join(pieces))]
