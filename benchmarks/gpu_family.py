"""The Gemma 3 family on one CUDA device; writes its table into docs/performance.md.

Random weights in the real shapes: right for speed, memory and agreement between
implementations, no statement about quality.

    python benchmarks/gpu_family.py [--long 4b:131072 27b:32768] [--parity 1b 4b] [--disk 27b]
                                    [--vision 4b]

`--tiny` runs most parts in toy shapes on any machine, to try the script.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from device import BF16, DEVICE, allocated, build, randomise, seconds, write_section

from singalaut.model.config import SIZES, Gemma3Config, VisionConfig
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import config_to_hf, hf_name, save_model
from singalaut.model.paged import PAGE_TOKENS, Kind, PagedCache, PagedPlan, Span
from singalaut.model.vision import Vision

ROOT = Path(__file__).parents[1]
NEW_TOKENS = 64
TINY = Gemma3Config(
    32, 64, 6, 4, 2, 16, 16.0, 8, 512, 512, 8.0, vision=VisionConfig(24, 32, 2, 2, 28, 7, 4)
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", nargs="*", default=["4b:131072"])
    parser.add_argument("--parity", nargs="*", default=["1b", "4b"])
    parser.add_argument("--disk", nargs="*", default=[])
    parser.add_argument("--vision", nargs="*", default=["4b"])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        for what, figure in [*long_context(TINY, 200, 1.0), *vision(TINY, None)]:
            print(f"{what}: {figure}")
        return
    peak = matmul_peak()
    rows = [("bf16 matrix product, 8192³", f"{peak:.0f} TFLOP/s")]
    rows += [parity(size) for size in options.parity]
    for each in options.long:
        size, _, length = each.partition(":")
        rows += long_context(SIZES[size], int(length), peak)
    for size in options.vision:
        rows += vision(replace(SIZES[size], vision=VisionConfig()), peak)
    rows += [loading(size) for size in options.disk]
    write_table(rows)


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


def long_context(config: Gemma3Config, length: int, peak: float) -> list[tuple[str, str]]:
    """Prefill and decode at one length, eager, then with the elementwise parts compiled."""
    from singalaut.model import gemma3

    name = config.size_name
    model = build(config)
    weights = allocated()
    tokens = torch.randint(5, config.vocab_size - 64, (1, length), device=DEVICE)
    work = flops(config, length)
    rows = []
    with torch.inference_mode():
        for compiled in (False, True) if DEVICE == "cuda" else (False,):
            if compiled:
                gemma3.Mlp.forward = torch.compile(gemma3.Mlp.forward, dynamic=True)
                gemma3.RmsNorm.forward = torch.compile(gemma3.RmsNorm.forward, dynamic=True)
                gemma3.rotate = torch.compile(gemma3.rotate, dynamic=True)
            model(tokens[:, :4096])
            taken = []
            for _ in range(2):
                cache, tables = one_sequence(config, length + NEW_TOKENS)
                plan = PagedPlan(cache, [Span(tables, 0, length)])
                taken += seconds(lambda p=plan: model(tokens, p.positions, p), 1)
            rate = work / min(taken) / 1e12
            what = "compiled elementwise parts" if compiled else "eager"
            rows.append(
                (
                    f"{name}, prefill of {length:,} tokens, {what}",
                    f"{min(taken):.2f} s, {rate:.0f} TFLOP/s, {100 * rate / peak:.1f} % of peak",
                )
            )
            if not compiled:
                rows.append(decode(model, cache, tables, length, weights))
    del model, cache, plan
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    return rows


def one_sequence(config: Gemma3Config, tokens: int) -> tuple[PagedCache, dict[Kind, np.ndarray]]:
    """Pages of one sequence: all of global layers, the last ones of window layers.

    What a window layer's keys would fill before that goes to page 0, which nobody reads.
    """
    total = -(-tokens // PAGE_TOKENS)
    kept = min(total, (config.window + NEW_TOKENS) // PAGE_TOKENS + 2)
    cache = PagedCache(config, {"global": total + 1, "window": kept + 1}, BF16, DEVICE)
    tables: dict[Kind, np.ndarray] = {
        "global": np.arange(1, total + 1, dtype=np.int32),
        "window": np.arange(1 - (total - kept), kept + 1, dtype=np.int32).clip(0),
    }
    return cache, tables


def decode(
    model: Gemma3, cache: PagedCache, tables: dict[Kind, np.ndarray], length: int, weights: int
) -> tuple[str, str]:
    """New tokens after the prefill, and memory against the hybrid formula."""
    config = model.config
    token = torch.tensor([[7]], device=DEVICE)

    def run() -> None:
        for place in range(length, length + NEW_TOKENS):
            plan = PagedPlan(cache, [Span(tables, place, 1)])
            model.logits(model(token, plan.positions, plan)[:, -1])

    taken = seconds(run, 1)[0] / NEW_TOKENS
    layers = [config.is_global(i) for i in range(config.num_layers)]
    kept = sum(layers) * (length + NEW_TOKENS) + (len(layers) - sum(layers)) * config.window
    formula = 4 * config.num_kv_heads * config.head_dim * kept
    over = 100 * (cache.memory_bytes() / formula - 1)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
    return (
        f"{config.size_name}, {NEW_TOKENS} tokens after that",
        f"{1e3 * taken:.1f} ms a token; cache {cache.memory_bytes() / 2**20:.0f} MiB, formula "
        f"{over:+.2f} %; weights {weights / 2**30:.1f} GiB, peak {peak / 2**30:.1f} GiB",
    )


def flops(config: Gemma3Config, length: int) -> float:
    """Floating-point operations of a prefill: matrix products of the blocks, and attention."""
    linear = 2 * (config.num_parameters - config.vocab_size * config.hidden_size) * length
    pairs = sum(
        length**2 / 2 if config.is_global(i) else length * config.window - config.window**2 / 2
        for i in range(config.num_layers)
    )
    return linear + 4 * config.num_heads * config.head_dim * pairs


def vision(config: Gemma3Config, peak: float | None) -> list[tuple[str, str]]:
    """Images to embeddings: time, and agreement with the library's tower and projector.

    The cosine is between embeddings of one image token, the smallest of all.
    """
    assert config.vision is not None
    torch.set_default_dtype(BF16)
    with torch.device(DEVICE):
        ours = Vision(config.vision, config.hidden_size)
    torch.set_default_dtype(torch.float32)
    randomise(ours).eval()
    side, name = config.vision.image_size, config.size_name
    pixels = torch.rand(8, 3, side, side, device=DEVICE) * 2 - 1
    work = vision_flops(config.vision)
    rows = []
    with torch.inference_mode():
        for batch in (1, 8):
            seconds(lambda b=batch: ours(pixels[:b]), 2)
            taken = [t / batch for t in seconds(lambda b=batch: ours(pixels[:b]), 5)]
            rate = work / statistics.median(taken) / 1e12
            share = (
                "" if peak is None else f", {rate:.0f} TFLOP/s, {100 * rate / peak:.1f} % of peak"
            )
            low, middle, high = (1e3 * f(taken) for f in (min, statistics.median, max))
            rows.append(
                (
                    f"{name}, vision part, {batch} image{'s' if batch > 1 else ''} of {side}²",
                    f"{middle:.1f} ms an image ({low:.1f}–{high:.1f}), {rate:.3g} TFLOP/s{share}",
                )
            )
        theirs = library_vision(ours, config)
        found, wanted = ours(pixels[:2]), theirs(pixels[:2].to(BF16))
        exact = ours.float()(pixels[:2])

    def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
        return torch.nn.functional.cosine_similarity(one.float(), other.float(), -1).min().item()

    rows.append(
        (
            f"{name}, vision part, smallest cosine of an embedding, bf16",
            f"ours to the library's {agreement(found, wanted):.6f}; to float32: ours "
            f"{agreement(found, exact):.6f}, the library's {agreement(wanted, exact):.6f}",
        )
    )
    return rows


def library_vision(ours: Vision, config: Gemma3Config) -> Callable[[torch.Tensor], torch.Tensor]:
    """`transformers`' tower and projector around copies of our weights."""
    from transformers import Gemma3Config as TheirConfig
    from transformers import Gemma3Model

    small = replace(config, num_layers=1, vocab_size=512, intermediate_size=64)
    torch.set_default_dtype(BF16)
    with torch.device(DEVICE):
        theirs = Gemma3Model(TheirConfig.from_dict(config_to_hf(small, BF16)))
    torch.set_default_dtype(torch.float32)
    state = {
        hf_name(f"vision.{name}").replace("vision_tower.vision_model.", "vision_tower."): weight
        for name, weight in ours.named_parameters()
    }
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and not any("vision" in name or "projector" in name for name in missing)
    theirs.eval()

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        found = theirs.get_image_features(pixels)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    return embed


def vision_flops(config: VisionConfig) -> float:
    """Floating-point operations of one image: matrix products of the tower, and attention."""
    width, patches = config.hidden_size, config.num_patches
    layer = 4 * width * width + 2 * width * config.intermediate_size
    linear = 2 * patches * (config.num_layers * layer + 3 * config.patch_size**2 * width)
    return linear + config.num_layers * 4 * patches**2 * width


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


def write_table(rows: list[tuple[str, str]], part: str = "") -> None:
    """Replace the part of docs/performance.md that belongs to this device."""
    figures = (f"| {what} | {figure} |" for what, figure in rows)
    write_section(part, ["| what | figure |", "|---|---|", *figures])


if __name__ == "__main__":
    main()
