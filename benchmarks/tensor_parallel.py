"""One model over several CUDA devices; writes its table into docs/performance.md.

Random weights in the real shapes, made on the devices: every process has the same share, which
changes no time. The limit is what all cards together can read: bytes of weights, keys and values a
token, by the copy bandwidth of one card in the same run.

    python benchmarks/tensor_parallel.py [--over 2] [--sizes 4b 27b] [--alone 4b]
        [--nccl] [--profile 1 64]

`--tiny` runs it in toy shapes on CPUs, to try the script.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from device import BF16, DEVICE, build, wait
from engine import VLLM, Pieces, bytes_read, copy_bandwidth, profile, prompts
from gpu_family import write_table

from singalaut.contracts import Request, SamplingParams
from singalaut.generate.engine import Engine, EngineSettings
from singalaut.generate.follower import begin, follow
from singalaut.generate.ranks import Ranks
from singalaut.model.config import SIZES, Gemma3Config

TINY = Gemma3Config(32, 64, 2, 4, 2, 16, 16.0, 8, 512, 262_208, 8.0, global_every=2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--over", type=int, default=2)
    parser.add_argument("--sizes", nargs="*", default=["4b", "27b"])
    parser.add_argument("--alone", nargs="*", default=["4b"], help="sizes also on one card")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--profile", nargs="*", type=int, default=[], metavar="ROWS")
    parser.add_argument("--nccl", action="store_true", help="all sums through NCCL")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        SIZES.update(dict.fromkeys(SIZES, TINY))
    copy = 2e10 if options.tiny else copy_bandwidth()
    rows = [("copy bandwidth of one card, bytes read and written", f"{copy / 1e12:.2f} TB/s")]
    for size in options.sizes:
        for over in (1, options.over) if size in options.alone else (options.over,):
            began = time.perf_counter()
            ranks = Ranks(0, over, reads_peers=not options.nccl)
            if over > 1:
                ranks.start([sys.executable, __file__, "follow", size, str(int(options.tiny))])
            model = build(ranks.shard.of_config(SIZES[size]))
            engine = open_engine(model, ranks, options.tiny)
            for count, lengths in ((1, (128, 512)), (64, (128, 256)), (256, (128, 256))):
                if options.tiny:
                    count, lengths = min(count, 4), (20, 8)
                rate = measure(engine, count, *lengths, options.repeats)
                rows.append(row(size, over, count, lengths, rate, copy))
                print(*rows[-1], f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
            for count in options.profile:
                profile(engine, f"{size} over {over}", count)
            engine.close()
            del engine, model
            if DEVICE == "cuda":
                torch.cuda.empty_cache()
    if options.tiny:
        print(*rows, sep="\n")
    else:
        write_table(rows, "tensor-parallel")


def open_engine(model: torch.nn.Module, ranks: Ranks, tiny: bool) -> Engine:
    settings = EngineSettings(
        batch_size=256, context_tokens=512 if tiny else 2048, tensor_parallel=ranks.size,
        cache_bytes=1 << 24 if tiny else None,
    )  # fmt: skip
    return Engine(model, Pieces(), None, "random", settings, ranks)


def measure(engine: Engine, count: int, length: int, new: int, repeats: int) -> list[float]:
    """Tokens a second after the first of each answer; every run has prompts of its own."""

    def run(tokens: int, seed: int) -> float:
        params = SamplingParams(max_tokens=tokens, temperature=1.0, ignore_eos=True, logprobs=True)
        asked = [Request(p, params, str(i)) for i, p in enumerate(prompts(count, length, seed))]
        wait()
        begin = time.perf_counter()
        assert sum(len(c.token_ids) for c in engine.sample(asked)) == count * tokens
        return time.perf_counter() - begin

    run(4, 0)
    taken = [run(new, 2 + 2 * i) - run(1, 1 + 2 * i) for i in range(repeats)]
    return [count * (new - 1) / each for each in taken]


def row(
    size: str, over: int, count: int, lengths: tuple[int, int], rates: list[float], copy: float
) -> tuple[str, str]:
    config, context = SIZES[size], lengths[0] + lengths[1] // 2
    weights = 2 * config.num_parameters
    kept = bytes_read(config, context, 2) - weights
    limit = over * copy / (weights / count + kept)
    rate = statistics.median(rates)
    peer = VLLM.get((size, "single")) if count == 1 and over == 1 else None
    ratio = f"; vLLM 0.26: {peer}" if peer else ""
    cards = "1 GPU" if over == 1 else f"{over} GPUs"
    return (
        f"{size} on {cards}, {count} answers together, decoding {lengths[0]} → {sum(lengths)}",
        f"{rate:,.0f} ({min(rates):,.0f}–{max(rates):,.0f}) tokens/s, "
        f"{100 * rate / limit:.0f} % of the bandwidth limit of {cards}{ratio}",
    )


def follower(size: str, tiny: str, rank: str, number: str, folder: str) -> None:
    """Another process: makes the same share, and follows."""
    parent, ranks, device = begin(rank, number)
    config = TINY if tiny == "1" else SIZES[size]
    with torch.device(device):
        model = build(ranks.shard.of_config(config))
    follow(model.to(device, BF16), ranks, folder, parent)


if __name__ == "__main__":
    if sys.argv[1:2] == ["follow"]:
        follower(*sys.argv[2:])
    else:
        main()
