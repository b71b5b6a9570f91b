"""Rows a second from files to packed tokens; writes its table into docs/performance.md.

Rows of 300 tokens in eleven languages are put together from sentences of real conversations
(`--texts`, a folder of JSON lines; without it, what this repository holds), with one word in fifty
replaced by letters that have never been seen, so that the tokenizer meets as many new words as in a
large corpus. The peer is the tokenizer library's own `encode_batch` with all its threads on the
same texts, already in memory, in the same run; ours begins with the file and ends with rows of
4,096 packed tokens as tensors.

    python benchmarks/data.py [--texts FOLDER] [--rows 1000000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
ROW_TOKENS = 300
PACKED_TOKENS = 4096
SAMPLE_ROWS = 100_000  # of the paired runs
FRESH_WORDS = 50  # one word in so many is new
TEN_MILLION = 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=Path, help="folder of conversations as JSON lines")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where files are made; else a temporary folder")
    options = parser.parse_args()
    from singalaut.checkpoint.resolve import resolve_model

    model = resolve_model("demo:gemma-3-270m", base_folder=ROOT)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        texts = read_texts(options.texts)
        compared = compare_with_reference(model, texts)
        sample, many = work / "sample.jsonl", work / "many.jsonl"
        write_rows(model, texts, sample, SAMPLE_ROWS, seed=1)
        paired = paired_rows(model, sample, work, options.repeats)
        cleaned = clean_rows(model, sample, work)
        write_rows(model, texts, many, options.rows, seed=2)
        large = large_run(model, many, work, options.rows)
    rows = [compared, *paired, cleaned, *large, *ten_million(large)]
    write_table(rows)


def read_texts(folder: Path | None) -> list[list[dict[str, str]]]:
    """The turns of all conversations in a folder."""
    packs = ROOT / "src" / "singalaut" / "evals" / "packs"
    files = [ROOT / "recipes" / "data" / "quickstart.jsonl", *sorted(packs.rglob("*.jsonl"))]
    if folder is not None:
        files = sorted(folder.glob("*.jsonl"))
    found = []
    for file in files:
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            turns = row.get("messages") or [*row.get("prompt", []), *row.get("chosen", [])]
            if not turns:
                text = " ".join(v for v in row.values() if isinstance(v, str))
                turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
            found.append(turns)
    return found


def compare_with_reference(model: Path, conversations: list[list[dict]]) -> tuple[str, ...]:
    """How many conversations have the ids and masks of `ChatFormat.encode_with_mask`."""
    from singalaut.contracts import Message
    from singalaut.errors import DataError
    from singalaut.text.bulk import IDS, BulkEncoder
    from singalaut.text.chat import ChatFormat
    from singalaut.text.conversations import ConversationEncoder, is_learned, token_ids
    from singalaut.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model)
    chat = ChatFormat.load(model, tokenizer)
    encoder = ConversationEncoder(chat, BulkEncoder(tokenizer))
    rows = [
        [Message(t["role"], t.get("content") or "", t.get("tool_calls")) for t in turns]
        for turns in conversations
    ]
    same = 0
    for row, found in zip(rows, encoder.encode(rows), strict=True):
        try:
            expected = chat.encode_with_mask(row)
        except DataError as error:
            same += isinstance(found, DataError) and found.what == error.what
            continue
        if isinstance(found, bytes):
            words = np.frombuffer(found, IDS)
            same += (token_ids(words).tolist(), is_learned(words).tolist()) == expected
    what = "conversations with the ids and mask of the reference, one by one"
    return (what, "rows", f"{same:,} of {len(rows):,}", "", "", "")


def write_rows(
    model: Path, conversations: list[list[dict]], file: Path, count: int, seed: int
) -> None:
    """Conversations of about ROW_TOKENS tokens: sentences of one source put together anew."""
    from singalaut.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model)
    chance = random.Random(seed)
    texts = [t["content"] for turns in conversations for t in turns if t.get("content")]
    sentences = [s for t in texts for s in re.split(r"(?<=[.!?。။។\n])\s*", t) if s.strip()]
    sizes = [len(ids) for ids in tokenizer.encode_batch(sentences)]
    with file.open("w", encoding="utf-8") as out:
        for _ in range(count):
            place = chance.randrange(len(sentences))
            wanted = ROW_TOKENS - 15
            parts: list[list[str]] = [[], []]
            while wanted > 0:
                size = sizes[place % len(sizes)]
                if size <= wanted + 40:
                    parts[wanted < ROW_TOKENS * 0.6].append(sentences[place % len(sizes)])
                    wanted -= size
                # mostly on through the same source, now and then to another place in it
                place += 1 if chance.random() < 0.7 else chance.randrange(1, 200)
            question, answer = (freshened(" ".join(part), chance) for part in parts)
            turns = [
                {"role": "user", "content": question or "?"},
                {"role": "assistant", "content": answer or "!"},
            ]
            out.write(
                json.dumps({"messages": turns, "source": "benchmark"}, ensure_ascii=False) + "\n"
            )


def freshened(text: str, chance: random.Random) -> str:
    """The text with new words among its own: letters of the text in an order never seen."""
    words = text.split(" ")
    for _ in range(max(1, len(text) // (6 * FRESH_WORDS))):
        letters = "".join(chance.choices(text.replace(" ", "") or "x", k=7))
        words.insert(chance.randrange(len(words) + 1), letters)
    return " ".join(words)


def run_stage(model: Path, file: Path, out: Path, **clean: object) -> float:
    """Seconds from the file to the last packed row; a fresh folder and fresh processes."""
    from singalaut.artifact import Work
    from singalaut.data.batches import PackedBatches
    from singalaut.data.config import PrepareConfig
    from singalaut.data.mix import mixture
    from singalaut.data.prepare import run_prepare
    from singalaut.data.store import Store

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    values = {"data": [{"path": str(file)}], "max_tokens": PACKED_TOKENS, "clean": clean}
    begin = time.perf_counter()
    packs = (
        [ROOT / "src" / "singalaut" / "evals" / "packs" / "demo"]
        if clean.get("evaluations")
        else []
    )
    run_prepare(
        PrepareConfig.model_validate(values),
        model=model,
        data=[file],
        packs=packs,
        work=Work(out),
        identify=None,
        sight=None,
    )
    store = Store.open(out / "data")
    mixed = mixture(store, 0, weights=[1.0], limits=[None])
    batches = PackedBatches(store, mixed, row_tokens=PACKED_TOKENS, rows_in_batch=16)
    tokens = 0
    while batches.state()["pass"] == 0:
        tokens += sum(row.tokens.numel() for row in next(batches))
    return time.perf_counter() - begin


def paired_rows(model: Path, file: Path, work: Path, repeats: int) -> list[tuple[str, ...]]:
    """The whole path and the library's threads on the same rows, in turn."""
    from singalaut.text.tokenizer import Tokenizer

    backend = Tokenizer.load(model).backend
    texts = [
        turn["content"]
        for line in file.read_text("utf-8").splitlines()
        for turn in json.loads(line)["messages"]
    ]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    ours, peer, our_work, peer_work = [], [], [], []
    for _ in range(repeats):
        begin, busy = time.perf_counter(), processor_seconds()
        tokens = 0
        for start in range(0, len(texts), 4000):
            encoded = backend.encode_batch(texts[start : start + 4000], add_special_tokens=False)
            tokens += sum(len(encoding.ids) for encoding in encoded)
        peer.append(SAMPLE_ROWS / (time.perf_counter() - begin))
        peer_work.append((processor_seconds() - busy) / SAMPLE_ROWS * 1e6)
        busy = processor_seconds()
        ours.append(SAMPLE_ROWS / run_stage(model, file, work / "out", duplicates=True))
        our_work.append((processor_seconds() - busy) / SAMPLE_ROWS * 1e6)
        print(f"ours {ours[-1]:.0f}, library {peer[-1]:.0f} rows/s", file=sys.stderr, flush=True)
    name = "`tokenizers`, `encode_batch` alone"
    what = f"{SAMPLE_ROWS:,} rows of {tokens / SAMPLE_ROWS + 13:.0f} tokens, file to packed tensors"
    speed = [a / b for a, b in zip(ours, peer, strict=True)]
    effort = [b / a for a, b in zip(our_work, peer_work, strict=True)]
    return [
        (what, "rows/s", spread(ours), spread(peer), name, f"{spread(speed, 2)}×"),
        (
            "processor time of that, start of the processes included",
            "µs a row",
            spread(our_work),
            spread(peer_work),
            name,
            f"{spread(effort, 2)}×",
        ),
    ]


def processor_seconds() -> float:
    """Processor time of this process and of those that it has started and that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def clean_rows(model: Path, file: Path, work: Path) -> tuple[str, ...]:
    clean = {
        "duplicates": True,
        "near_duplicates": 0.8,
        "max_repetition": 0.5,
        "evaluations": ["demo"],
    }
    seconds = run_stage(model, file, work / "out", **clean)
    what = "the same with near-duplicates, repetition and decontamination"
    return (what, "rows/s", f"{SAMPLE_ROWS / seconds:,.0f}", "", "", "")


def large_run(model: Path, file: Path, work: Path, rows: int) -> list[tuple[str, ...]]:
    """One run in a process of its own, with the memory of it and its workers."""
    places = [str(model), str(file), str(work / "out")]
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from data import run_stage; from pathlib import Path;"
        f"print(run_stage(*map(Path, {places!r}), duplicates=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        whole, own = peak_memory(run)
        assert run.stdout is not None
        seconds = float(run.stdout.read().split()[-1])
    size = file.stat().st_size / 1e9
    tree = "peak memory of that, all processes together"
    return [
        (f"{rows:,} rows, {size:.1f} GB of JSON", "rows/s", f"{rows / seconds:,.0f}", "", "", ""),
        ("time of that", "s", f"{seconds:.0f}", "", "", ""),
        (f"{tree}, mapped files counted", "GB", f"{whole / 1e9:.2f}", "", "", ""),
        (f"{tree}, without mapped files", "GB", f"{own / 1e9:.2f}", "", "", ""),
    ]


def peak_memory(run: subprocess.Popen) -> tuple[int, int]:
    """The largest resident memory of a process and its children, and that of their own."""
    import psutil

    whole, own, this = 0, 0, psutil.Process(run.pid)
    while run.poll() is None:
        total = mapped = 0
        for process in (this, *this.children(recursive=True)):
            with suppress(psutil.Error):
                memory = process.memory_info()
                total, mapped = total + memory.rss, mapped + memory.shared
        whole, own = max(whole, total), max(own, total - mapped)
        time.sleep(0.2)
    return whole, own


def ten_million(large: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """What grows otherwise than linearly is measured at ten million; the rest is multiplied."""
    from singalaut.data.mix import Mixture
    from singalaut.data.pack import best_fit

    lengths = np.random.default_rng(0).lognormal(5.5, 0.6, TEN_MILLION).astype(np.uint32)
    lengths = np.clip(lengths, 16, PACKED_TOKENS)
    begin = time.perf_counter()
    order = Mixture((np.arange(TEN_MILLION),), (float(TEN_MILLION),), 0).order(0)
    ordered = time.perf_counter() - begin
    packing = best_fit(lengths[order], PACKED_TOKENS)
    packed = time.perf_counter() - begin - ordered
    fill = lengths.sum(dtype=np.int64) / (packing.num_rows * PACKED_TOKENS)
    rate = float(large[0][2].replace(",", ""))
    return [
        ("order of a pass over 10,000,000 documents", "s", f"{ordered:.1f}", "", "", ""),
        (f"best-fit packing of them, {100 * fill:.2f} % full", "s", f"{packed:.1f}", "", "", ""),
        (
            "10,000,000 rows at the rate of the large run, extrapolated",
            "min",
            f"{TEN_MILLION / rate / 60:.0f}",
            "",
            "",
            "",
        ),
    ]


def spread(values: list[float], digits: int = 0) -> str:
    middle = statistics.median(values)
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def write_table(rows: list[tuple[str, ...]]) -> None:
    """Replace the part of docs/performance.md that belongs to this script."""
    from singalaut.artifact import hardware, package_versions

    machine, versions = hardware(), package_versions()
    head = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; tokenizers "
        f"{versions['tokenizers']}; measured {time.strftime('%Y-%m-%d')} by "
        "`python benchmarks/data.py`."
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
    begin, end = "<!-- data -->", "<!-- /data -->"
    pattern = re.compile(f"{begin}.*{end}", re.S)
    file.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", file.read_text()))


if __name__ == "__main__":
    main()
