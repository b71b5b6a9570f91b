"""Overhead of the evaluator with an engine that answers at once, and of its metrics beside peers.

Every question of a pack is prepared, asked eight times, stored, extracted, scored and written, by
an engine whose answers are made beforehand: the gold answer behind its tag, the dearest to score.
Without a pack a synthetic one is used, two thirds choices and one third translations.

    python benchmarks/evals.py [--pack DIR] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from singalaut.artifact import Work, hardware, package_versions
from singalaut.contracts import Completion, Request, Usage
from singalaut.evals.config import EvaluateConfig
from singalaut.evals.evaluate import Subject, read_cells, run_evaluate
from singalaut.evals.pack import load_pack

ROOT = Path(__file__).parents[1]
SYNTHETIC_ROWS = 10_000  # of each of three tasks
TASK = """
name = "{name}"
version = 1
competency = "{name}"
metric = "{metric}"
max_tokens = 32
licence = "CC0-1.0"
[languages.id]
tag = "Jawaban:"
{labels}
prompt = '''Jawablah hanya dengan format "Jawaban: ANSWER".

Kalimat:
{{text}}'''
data = "{name}.jsonl"
"""


class NullEngine:
    """Answers a question by looking it up."""

    identity = "null"

    def __init__(self, answers: dict[str, str]):
        self.answers = answers

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        usage = Usage(1, 1)
        for request in requests:
            text = self.answers[request.prompt[-1].content]  # type: ignore[union-attr,index]
            yield Completion(request.id, 0, (), text, "stop", usage)

    def statistics(self) -> dict[str, float]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pack = options.pack or synthetic_pack(Path(folder) / "synthetic")
        runs = [overhead(pack, Path(folder) / str(turn)) for turn in range(options.repeats)]
        replay = [overhead(pack, Path(folder) / "0") for _ in range(options.repeats)]
    rows = [
        ("questions × 8 runs", "requests", f"{runs[0]['requests']:,}", "", ""),
        ("prepared, stored, scored and written", "requests/s", *rates(runs), ""),
        ("the same, all answers from the store", "requests/s", *rates(replay), ""),
        ("reading the pack", "s", spread([run["reading"] for run in runs]), "", ""),
        *metrics(options.repeats),
    ]
    write_table(rows)


def overhead(pack: Path, folder: Path) -> dict[str, float]:
    """One evaluation: requests, seconds of the clock and of the processor, without the pack."""
    config = EvaluateConfig(models=("null",), pack=str(pack), extras=True)
    begin, before = time.perf_counter(), processor_seconds()
    cells = read_cells(load_pack(pack), config)
    reading, reading_used = time.perf_counter() - begin, processor_seconds() - before
    answers = {}
    for cell in cells:
        for example in cell.examples:
            gold = cell.language.labels.get(example.gold) or next(iter(example.references), "…")
            answers[example.turns[0]] = f"{cell.language.tag} {gold}"
    work = Work(folder)
    folder.mkdir(exist_ok=True)
    warm()
    begin, before = time.perf_counter(), processor_seconds()
    run_evaluate(
        config,
        subjects={"null": Subject("null", lambda: NullEngine(answers))},  # type: ignore[arg-type,return-value]
        pack=pack,
        work=work,
        seed=1,
        store=folder / "store.sqlite",
    )
    seconds = time.perf_counter() - begin - reading
    used = processor_seconds() - before - reading_used
    timing = work.facts["timing"]["null"]
    requests = timing["asked"] + timing["replayed"]
    print(f"{requests} requests, {seconds:.1f} s, {used:.1f} s of processor", file=sys.stderr)
    return {"requests": requests, "seconds": seconds, "processor": used, "reading": reading}


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def warm() -> None:
    """Load the dictionaries and models that texts are cut and told by: that happens once."""
    from singalaut.evals.words import f1_words
    from singalaut.verify.language import identify

    f1_words("th")("ข้าวคืออาหาร")
    identify("Selamat pagi, apa kabar?")


def metrics(repeats: int) -> list[tuple[str, ...]]:
    """chrF++ of one corpus, ours and sacreBLEU's."""
    from sacrebleu.metrics import CHRF

    from singalaut.evals.chrf import corpus_chrf

    generator = random.Random(0)
    words = ["ประเทศ", "Indonesia", "makan", "ข้าว", "sekolah,", "(2024)", "ที่", "pergi", "ไป"]
    texts = [" ".join(generator.choices(words, k=25)) for _ in range(1000)]
    others = [" ".join(generator.choices(words, k=25)) for _ in range(1000)]
    ours, theirs = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        mine = corpus_chrf(texts, [[other] for other in others])
        ours.append(len(texts) / (time.perf_counter() - begin))
        begin = time.perf_counter()
        peer = CHRF(word_order=2).corpus_score(texts, [others]).score
        theirs.append(len(texts) / (time.perf_counter() - begin))
        assert abs(mine - peer) < 1e-9
    ratio = f"{statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.1f}×"
    return [("chrF++, 25 words a sentence", "sentences/s", spread(ours), spread(theirs), ratio)]


def synthetic_pack(folder: Path) -> Path:
    """Two tasks of choices and one of translations, ten thousand rows each."""
    folder.mkdir(parents=True)
    generator = random.Random(0)
    words = "kami pergi ke pasar pagi ini membeli ikan segar dan sayur yang murah".split()  # noqa: SIM905
    for name, metric in (("choices", "accuracy"), ("verdicts", "accuracy"), ("texts", "chrf++")):
        choice = metric == "accuracy"
        labels = 'labels = { a = "A", b = "B", c = "C" }' if choice else ""
        text = TASK.format(name=name, metric=metric, labels=labels)
        (folder / f"{name}.toml").write_text(text, "utf-8")
        rows: list[dict[str, Any]] = []
        for number in range(SYNTHETIC_ROWS):
            row = {"id": f"{name}-{number}", "text": " ".join(generator.choices(words, k=60))}
            gold = {"label": "abc"[number % 3]}
            rows.append(row | (gold if choice else {"reference": row["text"][:150]}))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    return folder


def rates(runs: list[dict[str, float]]) -> tuple[str, str]:
    """Requests a second of the clock, and of the processor."""
    clock = [run["requests"] / run["seconds"] for run in runs]
    processor = [run["requests"] / run["processor"] for run in runs]
    return spread(clock), f"{spread(processor)} a second of processor"


def spread(values: list[float]) -> str:
    form = ",.0f" if max(values) > 100 else ".2f"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def write_table(rows: list[tuple[str, ...]]) -> None:
    """Replace the part of docs/performance.md that belongs to this script."""
    machine, versions = hardware(), package_versions()
    head = (
        f"{machine['cpu']}, {machine['cores']} threads, {machine['memory_gib']} GiB; "
        f"Python {versions['python']}, numpy {versions['numpy']}; measured "
        f"{time.strftime('%Y-%m-%d')} by `python benchmarks/evals.py`."
    )
    lines = [head, "", "| what | unit | Singalaut | peer, or beside it | ratio |"]
    lines += ["|---|---|---|---|---|", *("| " + " | ".join(cells) + " |" for cells in rows)]
    text = "\n".join(lines)
    print(text)
    file = ROOT / "docs" / "performance.md"
    begin, end = "<!-- evals -->", "<!-- /evals -->"
    pattern = re.compile(f"{begin}.*{end}", re.S)
    file.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", file.read_text()))


if __name__ == "__main__":
    main()
