"""Decoding on a CPU with weights in fewer bits, against llama.cpp; writes into docs/performance.md.

Both decode one sequence of the real Gemma 3 270M, from the same weights (llama.cpp's are written by
`singalaut convert --quant`), in turn in one process with the same number of threads. `text loss` is
the mean negative log-likelihood of a short text, which shows what the bits cost. With
`--processor-time` the process's own time is counted, for machines that do other work; then use one
thread.

    python benchmarks/quantised.py [--repeats 3] [--threads 2] [--processor-time]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from cpu import ROOT, paired, spread, write_table

from singalaut.checkpoint.convert import convert
from singalaut.checkpoint.resolve import resolve_model
from singalaut.contracts import Request, SamplingParams
from singalaut.generate.engine import Engine, open_engine

NEW_TOKENS = 32
PAIRS = {"int8": "Q8_0", "int4": "Q4_0"}
TEXT = (
    "Indonesia adalah negara kepulauan di Asia Tenggara yang terdiri dari ribuan pulau. Ibu "
    "kotanya adalah Jakarta, dan bahasa resminya bahasa Indonesia. Thailand has a coast on two "
    "seas; its capital is Bangkok, and its language is written in a script of its own. "
    "新加坡是东南亚的一个岛国，官方语言有英语、马来语、华语和泰米尔语。"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    model = resolve_model("demo:gemma-3-270m", base_folder=ROOT)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, quant in PAIRS.items():
            file = Path(folder) / f"{quant}.gguf"
            convert(model, file, quant=quant)
            rows += compared(model, kind, file, options, clock)
    unit = "processor time" if options.processor_time else "wall time"
    command = f"python benchmarks/quantised.py --threads {options.threads}"
    write_table(rows, "cpu-quantised", f"{unit}, `{command}`")


def compared(model: Path, kind: str, file: Path, options, clock) -> list[tuple[str, ...]]:
    import llama_cpp

    engine = open_engine(model, batch_size=16, weights=kind)
    ids = [2, *engine.tokenizer.encode(TEXT)]
    theirs = llama_cpp.Llama(
        str(file), n_ctx=512, n_threads=options.threads, n_threads_batch=options.threads,
        logits_all=True, verbose=False,
    )  # fmt: skip

    def ours(rows: int) -> float:
        taken = [timed(engine, ids[:32], rows, tokens, clock) for tokens in (NEW_TOKENS, 1)]
        return rows * (NEW_TOKENS - 1) / (taken[0] - taken[1])

    def peer() -> float:
        theirs.reset()
        theirs.eval(ids[:32])
        begin = clock()
        for token in ids[32 : 32 + NEW_TOKENS]:
            theirs.eval([token])
        return NEW_TOKENS / (clock() - begin)

    found = paired(options.repeats, ours=lambda: ours(1), peer=peer, ours_16=lambda: ours(16))
    if options.profile:
        profile(engine, ids[:32])
    ratios = [a / b for a, b in zip(found["ours"], found["peer"], strict=True)]
    name = f"llama.cpp {PAIRS[kind]}"
    losses = f"{loss(engine, ids):.3f}", f"{their_loss(theirs, ids):.3f}"
    return [
        (f"decode, batch 1, {kind}", "tokens/s", spread(found["ours"]), spread(found["peer"]),
         name, f"{spread(ratios)}×"),
        (f"decode, batch 16, {kind}", "tokens/s", spread(found["ours_16"]), "", "", ""),
        (f"text loss, {kind}", "nats/token", *losses, name, ""),
    ]  # fmt: skip


def timed(engine: Engine, prompt: list[int], rows: int, tokens: int, clock) -> float:
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, n=rows)
    begin = clock()
    assert len(list(engine.sample([Request(prompt, params)]))) == rows
    return clock() - begin


def loss(engine: Engine, ids: list[int]) -> float:
    params = SamplingParams(max_tokens=0, temperature=0, prompt_logprobs=True)
    [answer] = engine.sample([Request(ids, params)])
    assert answer.prompt_logprobs is not None
    return -sum(value for value in answer.prompt_logprobs if value is not None) / (len(ids) - 1)


def their_loss(theirs, ids: list[int]) -> float:
    theirs.reset()
    theirs.eval(ids)
    logprobs = torch.from_numpy(theirs.scores[: len(ids) - 1]).log_softmax(-1)
    return -logprobs.gather(1, torch.tensor(ids[1:])[:, None]).mean().item()


def profile(engine: Engine, prompt: list[int]) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    with watch(activities=[ProfilerActivity.CPU]) as found:
        timed(engine, prompt, 1, NEW_TOKENS, time.perf_counter)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=14))


if __name__ == "__main__":
    main()
