"""Speed and memory of fine-tuning on one or several CUDA devices; writes docs/performance.md.

Random weights in the real shapes, rows of one document of 4,096 tokens, all of them learned:
right for speed and memory, no statement about quality.

    python benchmarks/sft.py [--sizes 270m:8 1b:4 4b:2] [--precision rounded] [--long 4b:131072]
    python benchmarks/sft.py --sizes 4b:2:4 --precision master --moments int8 [--rule muon]
    torchrun --nproc-per-node 2 benchmarks/sft.py --sizes 1b:4 [--tensor-parallel 2]

`--tiny` runs toy shapes on any machine, to try the script; `--profile` prints the kernels' times.
The peer's figures beside ours are TRL's with Liger's kernels on an H100 (no other figure is known
where it does not install).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from device import BF16, DEVICE, randomise, write_section
from gpu_family import matmul_peak

from singalaut.data.batches import Micro
from singalaut.model.config import SIZES, Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.lora import add_adapter
from singalaut.model.training import checkpoint_layers, compile_layers
from singalaut.train.config import ALL_PROJECTIONS
from singalaut.train.optim import adamw, muon
from singalaut.train.parallel import World, join_world, shard
from singalaut.train.plan import GIB, memory_plan, step_flops
from singalaut.train.step import train_step

TINY = Gemma3Config(32, 64, 6, 4, 2, 16, 16.0, 8, 512, 512, 8.0)
PEERS = {"270m": (91_836, 21.9), "1b": (44_551, 35.6)}  # tokens/s and GiB, one H100
SETTLE, MEASURED = 3, 8


@dataclass(frozen=True)
class Case:
    """What is measured: rows of `length` tokens, `rows` at once, `micros` times in a step."""

    name: str
    config: Gemma3Config
    rows: int
    length: int = 4096
    micros: int = 1
    keep: str = "all"
    precision: str = "rounded"
    adapter: bool = False
    rule: str = "adamw"
    moments: str = "full"


@dataclass(frozen=True)
class Result:
    tokens_per_second: float
    flops_per_second: float
    peak_gib: float
    compile_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="*", default=["270m:8", "1b:4", "4b:2:4"])
    parser.add_argument("--long", nargs="*", default=[])
    parser.add_argument("--precision", default="rounded")
    parser.add_argument("--keep", default="all")
    parser.add_argument("--rule", default="adamw", help="or muon")
    parser.add_argument("--moments", default="full", help="or int8")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    world = join_world(options.replicas, options.tensor_parallel)
    cases = []
    for each in options.sizes:
        size, rows, *more = each.split(":")
        config = replace(SIZES[size], vision=None)
        micros = int(more[0]) if more else 1
        case = Case(size, config, int(rows), micros=micros, precision=options.precision)
        settled = {"keep": options.keep, "rule": options.rule, "moments": options.moments}
        cases.append(replace(case, **settled))
    for each in options.long:
        size, _, length = each.partition(":")
        config = replace(SIZES[size], vision=None)
        cases.append(Case(size, config, 1, int(length), 1, "inputs", "rounded", adapter=True))
    if options.tiny:
        cases = [Case("tiny", TINY, 2, 64), Case("tiny", TINY, 1, 64, 2, "inputs", adapter=True)]
    peak = matmul_peak() if DEVICE == "cuda" else 1.0
    lines = [f"bf16 matrix product, 8192³: {peak:.0f} TFLOP/s.", ""]
    lines += [
        "| what | tokens/s | beside TRL + Liger | MFU | peak memory | planned |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        result = measure(case, world, options.profile)
        lines.append(row(case, result, peak, world))
        if world.is_first:
            print(lines[-1], f"(compiling took {result.compile_seconds:.0f} s)", flush=True)
    if world.is_first and DEVICE == "cuda":
        write_section("sft" if world.size == 1 else f"sft {world.size}", lines)


def row(case: Case, result: Result, peak: float, world: World) -> str:
    tokens = case.rows * case.length
    what = f"{case.name}, {'LoRA' if case.adapter else case.precision}, {case.micros} × {tokens:,}"
    if world.size > 1:
        what += f", {world.size} GPUs"
    if world.replicas > 1:
        what += f" in {world.replicas} replicas"
    if world.tensor > 1:
        what += f", tensor-parallel by {world.tensor}"
    if case.rule != "adamw" or case.moments != "full":
        what += f", {case.rule} with {case.moments} moments"
    beside = "—"
    if case.name in PEERS and not case.adapter and world.size == 1:
        speed, gib = PEERS[case.name]
        beside = f"{result.tokens_per_second / speed:.2f}× ({gib} GiB)"
    mfu = result.flops_per_second / peak / 1e12 / world.size
    return (
        f"| {what} tokens, keeps {case.keep} | {result.tokens_per_second:,.0f} | {beside} | "
        f"{mfu:.1%} | {result.peak_gib:.1f} GiB | {planned(case, world):.1f} GiB |"
    )


def planned(case: Case, world: World) -> float:
    plan = memory_plan(
        case.config,
        case.rows * case.length,
        precision=case.precision,
        keep=case.keep,
        accumulates=case.micros > 1,
        learned=0 if case.adapter else None,
        processes=world.size,
        rule=case.rule,
        moments=case.moments,
        replicas=world.replicas,
        tensor=world.tensor,
    )
    return sum(plan.values()) / GIB


def measure(case: Case, world: World, profile: bool = False) -> Result:
    """The median step of a few, after compilation; every step does the whole of its work."""
    model = network(case, world)
    make = muon if case.rule == "muon" else adamw
    optimizer = make(model, 1e-5, 0.0, case.precision, 0, case.moments, world)
    micros = [micro(case, number) for number in range(case.micros * world.data_size)]
    begin = time.perf_counter()
    for _ in range(SETTLE):
        train_step(model, optimizer, micros, 1e-5, 1.0, world)
    compiling = time.perf_counter() - begin
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(MEASURED):
        begin = time.perf_counter()
        train_step(model, optimizer, micros, 1e-5, 1.0, world)
        times.append(time.perf_counter() - begin)
    median = sorted(times)[len(times) // 2]
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
    tokens = case.rows * case.length * len(micros)
    flops = step_flops(case.config, [n for m in micros for n in m.lengths], case.adapter)
    if profile:
        show_kernels(lambda: train_step(model, optimizer, micros, 1e-5, 1.0, world))
    del model, optimizer
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    return Result(tokens / median, flops / median, peak, compiling)


def network(case: Case, world: World) -> Gemma3:
    torch.set_default_dtype(BF16 if DEVICE == "cuda" else torch.float32)
    with torch.device(world.device):
        model = Gemma3(case.config)
    torch.set_default_dtype(torch.float32)
    randomise(model)
    model.train().requires_grad_(True)
    if case.adapter:
        add_adapter(model, 16, 32.0, ALL_PROJECTIONS, seed=0)
    if case.keep != "all":
        checkpoint_layers(model, case.keep)
    torch._dynamo.reset()
    compile_layers(model, "inductor" if DEVICE == "cuda" else "eager")
    return shard(model, world)


def micro(case: Case, number: int) -> Micro:
    generator = torch.Generator().manual_seed(number)
    shape = (1, case.rows * case.length)
    tokens = torch.randint(5, case.config.vocab_size - 64, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:, :: case.length] = False
    return Micro(tokens, mask, (case.length,) * case.rows)


def show_kernels(run) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    print(
        found.key_averages().table(
            sort_by="cuda_time_total", row_limit=28, max_name_column_width=70
        )
    )


if __name__ == "__main__":
    main()
