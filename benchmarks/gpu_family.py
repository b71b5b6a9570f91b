"""The Gemma 3 family on one CUDA device; writes its table into docs/performance.md.

Random weights in the real shapes: right for speed, memory and agreement between
implementations, no statement about quality.

    python benchmarks/gpu_family.py [--long 4b:131072 27b:32768] [--parity 1b 4b] [--disk 27b]
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from singalaut.model.cache import Cache
from singalaut.model.config import SIZES, Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import config_to_hf, hf_name, save_model

ROOT = Path(__file__).parents[1]
NEW_TOKENS = 64
BF16 = torch.bfloat16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", nargs="*", default=["4b:131072"])
    parser.add_argument("--parity", nargs="*", default=["1b", "4b"])
    parser.add_argument("--disk", nargs="*", default=[])
    options = parser.parse_args()
    peak = matmul_peak()
    rows = [("bf16 matrix product, 8192³", f"{peak:.0f} TFLOP/s")]
    rows += [parity(size) for size in options.parity]
    for each in options.long:
        size, _, length = each.partition(":")
        rows += long_context(size, int(length), peak)
    rows += [loading(size) for size in options.disk]
    write_table(rows)


def build(config: Gemma3Config) -> Gemma3:
    """A network on the device with random weights."""
    torch.manual_seed(0)
    torch.set_default_dtype(BF16)
    with torch.device("cuda"):
        model = Gemma3(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.1 if name.endswith("norm.weight") else weight.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return found


def matmul_peak() -> float:
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=BF16).unbind(0)
    seconds(lambda: a @ b, 3)
    return 2 * 8192**3 / statistics.median(seconds(lambda: a @ b, 10)) / 1e12


def parity(size: str) -> tuple[str, str]:
    """Mean absolute difference of log-probabilities in nats, between us and `transformers`."""
    config = SIZES[size]
    ours = build(config)
    generator = torch.Generator("cuda").manual_seed(1)
    tokens = torch.randint(5, 262_000, (1, 2600), device="cuda", generator=generator)
    places = torch.arange(0, 2600, 13, device="cuda")
    with torch.inference_mode():
        found = {"ours": ours.logits(ours(tokens)[:, places]).float().log_softmax(-1)}
        for kind in ("eager", "sdpa"):
            theirs = library_model(ours, kind)
            hidden = theirs.model(tokens).last_hidden_state[:, places]
            found[kind] = theirs.lm_head(hidden).float().log_softmax(-1)
            del theirs
            torch.cuda.empty_cache()

    def difference(one: str, other: str) -> float:
        return (found[one] - found[other]).abs().mean().item()

    return (
        f"{size}, 2,600 tokens: mean absolute difference of log-probabilities, bf16",
        f"ours to SDPA {difference('ours', 'sdpa'):.4f}, ours to eager "
        f"{difference('ours', 'eager'):.4f}; the library's eager to its SDPA "
        f"{difference('eager', 'sdpa'):.4f}",
    )


def library_model(ours: Gemma3, attention: str) -> torch.nn.Module:
    """`transformers`' network around copies of our weights."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig.from_dict(config_to_hf(ours.config, BF16))
    config._attn_implementation = attention
    torch.set_default_dtype(BF16)
    with torch.device("cuda"):
        theirs = Gemma3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    state = {hf_name(name): weight for name, weight in ours.named_parameters()}
    theirs.load_state_dict(state, strict=False)
    theirs.tie_weights()
    return theirs.eval()


def long_context(size: str, length: int, peak: float) -> list[tuple[str, str]]:
    """Prefill and decode at one length, eager, then with the elementwise parts compiled."""
    from singalaut.model import gemma3

    config = SIZES[size]
    model = build(config)
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tokens = torch.randint(5, 262_000, (1, length), device="cuda")
    work = flops(config, length)
    rows = []
    with torch.inference_mode():
        for compiled in (False, True):
            if compiled:
                gemma3.Mlp.forward = torch.compile(gemma3.Mlp.forward, dynamic=True)
                gemma3.RmsNorm.forward = torch.compile(gemma3.RmsNorm.forward, dynamic=True)
                gemma3.rotate = torch.compile(gemma3.rotate, dynamic=True)
            model(tokens[:, :4096])
            taken = []
            for _ in range(2):
                cache = Cache(config, 1, BF16, "cuda")
                cache.reserve(length + NEW_TOKENS)
                taken += seconds(lambda c=cache: model(tokens, plan=c.prefill()), 1)
            rate = work / min(taken) / 1e12
            what = "compiled elementwise parts" if compiled else "eager"
            rows.append(
                (
                    f"{size}, prefill of {length:,} tokens, {what}",
                    f"{min(taken):.2f} s, {rate:.0f} TFLOP/s, {100 * rate / peak:.1f} % of peak",
                )
            )
            if not compiled:
                rows.append(decode(model, cache, length, weights))
    del model, cache
    torch.cuda.empty_cache()
    return rows


def decode(model: Gemma3, cache: Cache, length: int, weights: int) -> tuple[str, str]:
    """New tokens after the prefill, and memory against the hybrid formula."""
    config = model.config
    token = torch.tensor([7], device="cuda")

    def run() -> None:
        for _ in range(NEW_TOKENS):
            plan = cache.decode()
            model.logits(model(token[:, None], plan.positions[:, None], plan)[:, -1])

    taken = seconds(run, 1)[0] / NEW_TOKENS
    layers = [config.is_global(i) for i in range(config.num_layers)]
    kept = sum(layers) * (length + NEW_TOKENS) + (len(layers) - sum(layers)) * config.window
    formula = 4 * config.num_kv_heads * config.head_dim * kept
    over = 100 * (cache.memory_bytes() / formula - 1)
    return (
        f"{config.size_name}, {NEW_TOKENS} tokens after that",
        f"{1e3 * taken:.1f} ms a token; cache {cache.memory_bytes() / 2**20:.0f} MiB, formula "
        f"{over:+.2f} %; weights {weights / 2**30:.1f} GiB, peak "
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB",
    )


def flops(config: Gemma3Config, length: int) -> float:
    """Floating-point operations of a prefill: matrix products of the blocks, and attention."""
    linear = 2 * (config.num_parameters - config.vocab_size * config.hidden_size) * length
    pairs = sum(
        length**2 / 2 if config.is_global(i) else length * config.window - config.window**2 / 2
        for i in range(config.num_layers)
    )
    return linear + 4 * config.num_heads * config.head_dim * pairs


LOAD = """
import resource, time, torch
from pathlib import Path
from singalaut.model.hf import load_model
torch.zeros(1, device="cuda")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
load_model(Path({folder!r}), torch.bfloat16, "cuda")
torch.cuda.synchronize()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - begin, (peak - before) / 1e6)
"""


def loading(size: str) -> tuple[str, str]:
    """A checkpoint from the page cache to the device, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save_model(build(SIZES[size]), folder, BF16)
        torch.cuda.empty_cache()
        gigabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
        code = LOAD.format(folder=str(folder))
        for _ in range(2):  # the second time all shards are in the page cache
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        taken, memory = map(float, done.stdout.split())
        shutil.rmtree(folder)
    return (
        f"{size}, {gigabytes:.1f} GB in shards to the device",
        f"{taken:.1f} s, {gigabytes / taken:.1f} GB/s, {memory:.1f} GB of host memory at the peak",
    )


def write_table(rows: list[tuple[str, str]]) -> None:
    """Replace the part of docs/performance.md that belongs to this device."""
    device = torch.cuda.get_device_name()
    head = f"{device}; torch {torch.__version__}; {time.strftime('%Y-%m-%d')}."
    lines = [head, "", "| what | figure |", "|---|---|"]
    text = "\n".join([*lines, *(f"| {what} | {figure} |" for what, figure in rows)])
    print(text)
    file = ROOT / "docs" / "performance.md"
    name = re.sub(r"\W+", "-", device.lower())
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{begin}.*{end}", re.S)
    if pattern.search(file.read_text()):
        file.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", file.read_text()))


if __name__ == "__main__":
    main()
