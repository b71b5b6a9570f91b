"""The inference engine on CUDA devices; writes its table into docs/performance.md.

Random weights in the real shapes: right for speed and memory, no statement about quality. Tokens
a second count generated tokens, from the first request handed over to the last answer.

    python benchmarks/engine.py [--sizes 270m 1b 4b]
        [--only batch 64 rollout single parity refresh invariant int8 fp8 start]
    python benchmarks/engine.py --soak 20000        # small model, also without a GPU
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from device import wait
from gpu_family import build, seconds, write_table
from soak import soak

from singalaut.contracts import Request, SamplingParams
from singalaut.generate.engine import Engine, EngineSettings
from singalaut.generate.weights import EngineWeights
from singalaut.model.config import SIZES, Gemma3Config
from singalaut.model.hf import save_model

BF16 = torch.bfloat16
# vLLM 0.26 on one H100 with the same shapes, prompts and lengths (FlashAttention 3, CUDA graphs)
VLLM = {
    ("270m", "batch"): 16_569, ("1b", "batch"): 13_762, ("4b", "batch"): 15_213,
    ("270m", "rollout"): 17_012, ("1b", "rollout"): 13_939, ("4b", "rollout"): 15_865,
    ("270m", "single"): 391, ("1b", "single"): 376, ("4b", "single"): 229,
    ("270m", "64"): 12_793, ("1b", "64"): 8_879, ("4b", "64"): 10_133,
}  # fmt: skip


class Pieces:
    """A vocabulary of made-up pieces: as much work for detokenising as a real one."""

    vocab_size = 262_144
    image_ids = None
    end_of_turn_id = 106

    def __init__(self) -> None:
        self._pieces = [b"%x" % i for i in range(self.vocab_size)]

    def bytes_of(self, ids, *, skip_control: bool = True) -> bytes:
        return b"".join(self._pieces[i] for i in ids)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="*", default=["270m", "1b", "4b"])
    parser.add_argument("--only", nargs="*", default=["batch", "64", "rollout", "single", "parity"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--profile", nargs="*", type=int, default=[], metavar="ROWS")
    parser.add_argument("--soak", type=int, metavar="REQUESTS")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return first_token(Path(options.child))
    if options.soak:
        return print(": ".join(soak(options.soak)))
    copy = copy_bandwidth()
    rows = [("copy bandwidth, bytes read and written", f"{copy / 1e12:.2f} TB/s")]
    for size in options.sizes:
        model = build(SIZES[size])
        engine = open_engine(model)
        if "batch" in options.only:
            rows.append(throughput(engine, size, "batch", 256, 1, 128, 256, options.repeats))
        if "64" in options.only:
            rows.append(throughput(engine, size, "64", 64, 1, 128, 256, options.repeats))
        if "rollout" in options.only:
            rows.append(throughput(engine, size, "rollout", 64, 8, 256, 512, options.repeats))
        if "single" in options.only:
            rows.append(single(engine, size, copy, options.repeats))
        if "parity" in options.only:
            rows.append(parity(engine, size))
        if "refresh" in options.only:
            rows.append(refresh(size))
        for count in options.profile:
            profile(engine, size, count)
        del engine
        for kind in ("invariant", "int8", "fp8"):
            if kind in options.only:
                torch.cuda.empty_cache()
                rows += other_ways(model, size, kind, copy, options.repeats)
        del model
        torch.cuda.empty_cache()
    if "start" in options.only:
        rows += start_up("1b")
    write_table(rows, "engine")


def open_engine(model: torch.nn.Module, **settings: object) -> Engine:
    settings = {"batch_size": 512, "context_tokens": 4096, **settings}
    return Engine(model, Pieces(), None, "random", EngineSettings(**settings))


def copy_bandwidth() -> float:
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    seconds(lambda: target.copy_(source), 2)
    return 2 * source.numel() / statistics.median(seconds(lambda: target.copy_(source), 8))


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(200, 260_000, (count, length), generator=generator).tolist()


def throughput(
    engine: Engine, size: str, what: str, count: int, n: int, length: int, new: int, repeats: int
) -> tuple[str, str]:
    """Tokens a second with sampling at temperature 1; every run has prompts of its own."""
    params = SamplingParams(n=n, max_tokens=new, temperature=1.0, ignore_eos=True, logprobs=True)
    rates = []
    for run in range(repeats + 1):
        requests = [Request(p, params, str(i)) for i, p in enumerate(prompts(count, length, run))]
        wait()
        begin = time.perf_counter()
        done = sum(len(c.token_ids) for c in engine.sample(requests))
        taken = time.perf_counter() - begin
        assert done == count * n * new
        if run:
            rates.append(done / taken)
    peer = VLLM.get((size, what))
    name = f"{count} prompts × {n}" if n > 1 else f"{count} requests"
    ratio = f"; vLLM 0.26: {peer:,}; {statistics.median(rates) / peer:.1f}×" if peer else ""
    spread = f"({min(rates):,.0f}–{max(rates):,.0f})"
    return (
        f"{size}, {name}, {length} → {new} tokens",
        f"{statistics.median(rates):,.0f} {spread} tokens/s{ratio}",
    )


def single(
    engine: Engine, size: str, copy: float, repeats: int, weight_bytes: int = 2
) -> tuple[str, str]:
    """One answer, against the time that reading weights and cache takes at copy speed."""
    config, new = SIZES[size], 512

    def run(tokens: int, seed: int) -> float:
        params = SamplingParams(max_tokens=tokens, temperature=1.0, ignore_eos=True)
        request = Request(prompts(1, 128, seed)[0], params)
        wait()
        begin = time.perf_counter()
        list(engine.sample([request]))
        return time.perf_counter() - begin

    run(8, 0)
    taken = [run(new, 1 + 2 * i) - run(1, 2 + 2 * i) for i in range(repeats + 1)]
    rate = (new - 1) / statistics.median(taken)
    limit = copy / bytes_read(config, 128 + new // 2, weight_bytes)
    peer = VLLM.get((size, "single"))
    ratio = f"; vLLM 0.26: {peer}; {rate / peer:.1f}×" if peer else ""
    return (
        f"{size}, batch 1",
        f"{rate:,.0f} tokens/s, {100 * rate / limit:.0f} % of the bandwidth limit{ratio}",
    )


def bytes_read(config: Gemma3Config, context: int, weight_bytes: int) -> int:
    """Bytes of weights and of keys and values that one token needs."""
    kept = sum(
        context if config.is_global(i) else min(context, config.window)
        for i in range(config.num_layers)
    )
    return weight_bytes * config.num_parameters + 4 * config.num_kv_heads * config.head_dim * kept


def parity(engine: Engine, size: str) -> tuple[str, str]:
    """The engine's log-probabilities of its tokens against those of a plain forward pass."""
    params = SamplingParams(max_tokens=128, temperature=1.0, ignore_eos=True, logprobs=True)
    asked = prompts(64, 200, 99)
    differences = []
    model = engine.model
    for answer in engine.sample([Request(p, params, str(i)) for i, p in enumerate(asked)]):
        row = torch.tensor([[*asked[int(answer.request_id)], *answer.token_ids]], device="cuda")
        with torch.inference_mode():
            hidden = model(row)[0, 199:-1]
            logits = torch.mm(hidden, model.embedding.weight.T, out_dtype=torch.float32)
            theirs = logits.log_softmax(-1).gather(1, row[0, 200:, None])[:, 0]
        differences.append((theirs - torch.tensor(answer.logprobs, device="cuda")).abs())
    found = torch.cat(differences)
    return (
        f"{size}, log-probabilities of engine and plain pass, bf16",
        f"mean difference {found.mean():.4f}, largest {found.max():.3f} ({len(found):,} tokens)",
    )


def refresh(size: str) -> tuple[str, str]:
    """Taking over float32 weights that a trainer has changed."""
    model = build(SIZES[size]).float()
    weights = EngineWeights(model, BF16)
    taken = seconds(weights.refresh, 6)[1:]
    return (
        f"{size}, refresh of {weights.copied_bytes / 2**30:.1f} GiB of copies of float32 weights",
        f"{1000 * statistics.median(taken):.1f} ms",
    )


def other_ways(
    model: torch.nn.Module, size: str, kind: str, copy: float, repeats: int
) -> list[tuple[str, str]]:
    """Batch-invariant, or with weights in eight bits."""
    ways = {"batch_invariant": True} if kind == "invariant" else {"weights": kind}
    engine = open_engine(model, **ways)
    name = f"{size}, {kind}"
    rows = [throughput(engine, size, "batch", 256, 1, 128, 256, repeats)]
    rows.append(single(engine, size, copy, repeats, 2 if kind == "invariant" else 1))
    rows.append(parity(engine, size))
    return [(what.replace(size, name, 1), figure) for what, figure in rows]


def profile(engine: Engine, size: str, rows: int) -> None:
    """Print where a decoding step of so many rows spends its time on the device."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    params = SamplingParams(max_tokens=60, temperature=1.0, ignore_eos=True, logprobs=True)
    asked = [Request(p, params, str(i)) for i, p in enumerate(prompts(rows, 200, 5))]
    list(engine.sample(asked))
    answers = engine.sample(asked)
    with watch(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        list(answers)
    kernels: dict[str, list[float]] = {}
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels.setdefault(event.name[:60], []).append(event.device_time)
    print(f"{size}, {rows} rows, 60 steps and a prefill: microseconds a step, count, median")
    for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:16]:
        print(f"{sum(times) / 60:9.1f} {len(times):6} {statistics.median(times):8.2f}  {name}")


def start_up(size: str) -> list[tuple[str, str]]:
    """From the start of a process to its first token: without compiled kernels, and with."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save_model(build(SIZES[size]), folder, BF16)
        torch.cuda.empty_cache()
        environment = {**os.environ, "TRITON_CACHE_DIR": f"{place}/triton"}
        taken = []
        for _ in range(3):
            begin = time.perf_counter()
            command = [sys.executable, __file__, "--child", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(done.stderr)
            taken.append((time.perf_counter() - begin, json.loads(done.stdout.splitlines()[-1])))
    what = ("no kernel compiled before", "kernels compiled before")
    return [
        (f"{size}, start of a process to its first token, {name}", f"{first:.1f} s ({parts})")
        for name, (_, parts) in zip(what, (taken[0], taken[2]), strict=True)
        for first in [parts["first token"]]
    ]


def first_token(folder: Path) -> None:
    """What a new process does until it has its first token; times since its start on stdout."""
    import psutil

    from singalaut.model.hf import load_model

    began = psutil.Process().create_time()
    parts = {"imported": time.time() - began}
    model = load_model(folder, BF16, "cuda")
    parts["loaded"] = time.time() - began
    engine = open_engine(model, batch_size=64)
    parts["opened"] = time.time() - began
    params = SamplingParams(max_tokens=1, temperature=1.0, ignore_eos=True)
    list(engine.sample([Request(prompts(1, 128, 0)[0], params)]))
    parts["first token"] = time.time() - began
    params = SamplingParams(max_tokens=8, temperature=1.0, ignore_eos=True)
    list(engine.sample([Request(p, params) for p in prompts(8, 128, 1)]))
    parts["8 requests of 8 tokens"] = time.time() - began
    print(json.dumps({name: round(value, 1) for name, value in parts.items()}))


if __name__ == "__main__":
    main()
