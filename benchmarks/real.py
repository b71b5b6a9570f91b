"""A real model through the whole recipe, and selection against chance, on one GPU.

    python benchmarks/real.py write --data DIR --pack DIR --to WORK    the rows and two recipes
    singalaut run WORK/recipe.toml                                     tune, reinforce, align, judge
    python benchmarks/real.py table --to WORK                          what that run found
    python benchmarks/real.py selection --to WORK [--seeds 1 2 3]      5 % chosen, 5 % drawn, all
    python benchmarks/real.py held --to WORK     prompts composed anew, asked of every model of runs

DIR has JSON lines named `conversation.*`, `translation.*` and `math.*`: `messages`, `language`, and
`answer` for mathematics. The pack is SEA-HELM's or one of ours. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch

from singalaut.checkpoint.resolve import resolve_model
from singalaut.contracts import Request, SamplingParams, derive
from singalaut.data.batches import micro_batches
from singalaut.data.cache import cached_store
from singalaut.data.config import DataSource
from singalaut.generate.engine import open_engine
from singalaut.model.hf import load_model
from singalaut.rewards.compose import ComposedReward
from singalaut.rewards.config import RewardConfig, RewardPart
from singalaut.rewards.samples import make_samples
from singalaut.text.languages import LANGUAGES
from singalaut.train.step import validate

HELD_PROMPTS = 880
TARGETS = ("th", "ta")  # what selection shall help
TARGET_ROWS, MEASURED_ROWS = 48, 250  # of each target: to choose by, to measure on
DRAWN = 80  # conversations of each file and language that may stand in a mixed pool
ASKED = {  # one short line in front of a problem, so that its answer can be found
    "en": "Solve the problem. End with a line in this format:\nAnswer: (a number)",
    "th": "จงแก้โจทย์ต่อไปนี้ จบด้วยบรรทัดรูปแบบนี้:\nคำตอบ: (ตัวเลข)",
    "zh": "请解答下面的问题。最后一行用这个格式：\n答案：（一个数）",
}
RECIPE = """
name = "real"
seed = {seed}
output = "runs"

[model]
base = "{model}"

[[stage]]
kind = "sft"
data = [{{ path = "data/conversations.jsonl" }}]
epochs = 2
batch_size = 64
max_tokens = 1024
micro_tokens = 16384
learning_rate = 5e-5
warmup_steps = 30
precision = "master"
compile = true
held_out = 20
validate_every = 400
save_every = 200

[[stage]]
kind = "rl"
model = "sft"
prompts = [
  {{ path = "data/problems.jsonl" }},
  {{ generate = 1600, languages = [{languages}] }},
]
reward = {{ parts = [
  {{ kind = "maths" }},
  {{ kind = "constraints" }},
  {{ kind = "language", weight = 0.2 }},
] }}
steps = 200
prompts_per_step = 48
samples = 8
max_tokens = 160
held_out = 600
evaluate_every = 100
micro_tokens = 16384
learning_rate = 4e-6
warmup_steps = 5
truncated = "zero"
precision = "master"
save_every = 20
replay = {{ data = [{{ path = "data/conversations.jsonl" }}], rows = 32, weight = 0.05 }}

[[stage]]
kind = "merge"
models = [{{ from = "sft", weight = 0.5 }}, {{ from = "rl", weight = 0.5 }}]
method = "linear"

[[stage]]
kind = "pairs"
name = "pairs-by-rules"
model = "sft"
prompts = [{{ generate = 3300, languages = [{languages}] }}]
method = "fix"
samples = 6
sampling = {{ max_tokens = 256 }}
filters = {{ max_length = 1.5 }}

[[stage]]
kind = "pairs"
name = "pairs-own"
model = "sft"
prompts = [{{ generate = 3300, languages = [{languages}] }}]
method = "sample"
samples = 8
sampling = {{ max_tokens = 256 }}
filters = {{ constraints = "more", max_length = 1.5 }}

[[stage]]
kind = "apo"
name = "apo-by-rules"
model = "sft"
pairs = ["pairs-by-rules", "pairs-own"]
epochs = 1
beta = 0.5
learning_rate = 5e-6
batch_size = 32
micro_tokens = 16384
precision = "master"
held_out = 5
replay = {{ data = [{{ path = "data/conversations.jsonl" }}], rows = 32, weight = 0.5 }}

[[stage]]
kind = "merge"
name = "half-by-rules"
models = [{{ from = "sft", weight = 0.5 }}, {{ from = "apo-by-rules", weight = 0.5 }}]
method = "linear"

[[stage]]
kind = "pairs"
name = "pairs-by-rewriter"
model = "sft"
prompts = [{{ generate = 3300, languages = [{languages}] }}]
method = "rewrite"
rewriter.model = "rl"
rewriter.candidates = 6
rewriter.edit = "anew"
rewriter.sampling = {{ max_tokens = 256, temperature = 0.8 }}
samples = 6
sampling = {{ max_tokens = 256 }}
filters = {{ constraints = "more", max_length = 1.5 }}

[[stage]]
kind = "apo"
name = "apo-by-rewriter"
model = "sft"
pairs = "pairs-by-rewriter"
epochs = 1
beta = 0.5
learning_rate = 5e-6
batch_size = 32
micro_tokens = 16384
precision = "master"
held_out = 5
replay = {{ data = [{{ path = "data/conversations.jsonl" }}], rows = 32, weight = 0.5 }}

[[stage]]
kind = "merge"
name = "half-by-rewriter"
models = [{{ from = "sft", weight = 0.5 }}, {{ from = "apo-by-rewriter", weight = 0.5 }}]
method = "linear"

[[stage]]
kind = "evaluate"
models = [
  "base", "sft", "rl", "merge",
  "apo-by-rules", "half-by-rules", "apo-by-rewriter", "half-by-rewriter",
]
pack = "{pack}"
limit = 100
protocol = {{ seeds = 1 }}
"""
CHOICE = """
name = "choice"
seed = {seed}
output = "choice"

[model]
base = "{model}"
"""
CHOOSING = """
[[stage]]
kind = "select"
name = "{name}"
data = [{{ path = "data/pool.jsonl" }}]
targets = [{targets}]
method = "{name}"
share = 0.05
warmup_steps = 60
batch_size = 32
max_tokens = 512
micro_tokens = 8192
"""
LEARNING = """
[[stage]]
kind = "sft"
name = "{name}"
{data}
epochs = {epochs}
batch_size = 16
max_tokens = 512
micro_tokens = 8192
learning_rate = 1e-4
warmup_steps = 10
adapter = {{ rank = 16 }}
save_every = 1000
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "table", "selection", "held"))
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pack", default="demo")
    parser.add_argument("--model", default="demo:gemma-3-270m")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    options = parser.parse_args()
    if options.what == "write":
        if options.data is None:
            parser.error("give `--data`")
        write(options.data, options.to, options.model, options.pack)
    elif options.what == "table":
        print("\n".join(table(options.to)))
    elif options.what == "held":
        held(options.to)
    else:
        print("\n".join(selection(options.to, options.model, options.seeds)))


def write(data: Path, to: Path, model: str, pack: str) -> None:
    """The rows of all stages, none in two places, and the recipe."""
    chance = random.Random(0)
    rows = [row for file in sorted(data.glob("*.jsonl")) for row in read(file)]
    chance.shuffle(rows)
    problems = [row for row in rows if "answer" in row and row["source"].startswith("math")]
    talks = [row for row in rows if row["messages"][-1]["role"] == "assistant"]
    learned = problems[::2]
    store(to / "data/conversations.jsonl", talks + [solved(row) for row in learned])
    store(to / "data/problems.jsonl", [asked(row) for row in problems[1::2]])
    pool, taken = [], dict.fromkeys(TARGETS, 0)
    parts: dict[str, list[Any]] = {f"{n}-{part}": [] for n in TARGETS for part in ("by", "on")}
    seen: dict[tuple[str, str], int] = {}
    for row in talks:
        language = row["language"]
        if language in taken and taken[language] < TARGET_ROWS + MEASURED_ROWS:
            part = "by" if taken[language] < TARGET_ROWS else "on"
            parts[f"{language}-{part}"].append(row)
            taken[language] += 1
            continue
        place = row["source"], language
        seen[place] = seen.get(place, 0) + 1
        if seen[place] <= DRAWN:
            pool.append(row)
    store(to / "data/pool.jsonl", pool)
    for name, some in parts.items():
        store(to / f"data/{name}.jsonl", some)
    languages = ", ".join(f'"{code}"' for code in sorted(LANGUAGES))
    filled = RECIPE.format(seed=17, model=model, pack=pack, languages=languages)
    (to / "recipe.toml").write_text(filled.lstrip())


def read(file: Path) -> Iterator[dict[str, Any]]:
    """Conversations and problems of a file, with the file's name as their source."""
    for row in rows_in(file):
        if not row.get("messages") or any("tool_calls" in turn for turn in row["messages"]):
            continue
        kept = {
            key: row[key] for key in ("messages", "language", "answer", "solution") if key in row
        }
        yield kept | {
            "source": file.name.removesuffix(".jsonl").removesuffix(f".{row['language']}")
        }


def rows_in(file: Path) -> Iterator[dict[str, Any]]:
    yield from (json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip())


def asked(row: dict[str, Any]) -> dict[str, Any]:
    problem = row["messages"][0]["content"]
    messages = [{"role": "user", "content": f"{ASKED[row['language']]}\n\n{problem}"}]
    return {key: row[key] for key in ("language", "source", "answer")} | {"messages": messages}


def solved(row: dict[str, Any]) -> dict[str, Any]:
    """A problem with what is known of its solution, and its answer as it is asked for."""
    answer = f"{LANGUAGES[row['language']].answer_tag} {row['answer']}"
    lines = [line for line in (row.get("solution"), answer) if line]
    messages = [*asked(row)["messages"], {"role": "assistant", "content": "\n".join(lines)}]
    return {"messages": messages, "language": row["language"], "source": row["source"]}


def store(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def table(to: Path) -> list[str]:
    """What the stages of a run have measured before their first and after their last step."""
    lines = ["| measured | before | after |", "|---|---|---|"]
    for metrics in sorted((to / "runs/real").glob("*/metrics.jsonl")):
        logged = list(rows_in(metrics))
        measured = [m for m in logged if any(k.startswith(("validation", "held_out")) for k in m)]
        stage = metrics.parent.name.rsplit("-", 1)[0]
        lines += [f"| {stage}: {k} | {a} | {b} |" for k, a, b in ends(measured)]
    return lines


def ends(measured: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    if measured:
        for key, first in measured[0].items():
            last = measured[-1].get(key)
            if isinstance(first, dict):
                for name, value in sorted(first.items()):
                    if isinstance(value, float) and name in last:
                        yield f"{key} {name}", f"{value:.3f}", f"{last[name]:.3f}"
            elif isinstance(first, float) and isinstance(last, float):
                yield key, f"{first:.4f}", f"{last:.4f}"


def held(to: Path) -> None:
    """Constraints kept, and answers in the language asked for, with 95 % intervals.

    Changes are from the first model, `sft`, prompt by prompt. The prompts are composed with a seed
    that no stage has, without those that a pair was made of or that were answered in learning, each
    once; greedy answers of at most 256 tokens.
    """
    parts = tuple(RewardPart.model_validate({"kind": kind}) for kind in ("constraints", "language"))
    reward = ComposedReward(RewardConfig(parts=parts))
    params = SamplingParams(max_tokens=256, temperature=0.0)
    made = make_samples(sorted(LANGUAGES), HELD_PROMPTS, derive(0, "held"))
    known = asked_before(to / "runs/real")
    by_text = {sample.messages[0].content: sample for sample in made}
    samples = [sample for text, sample in by_text.items() if text not in known]
    print(f"{len(samples)} prompts\n")
    print("| model | constraints kept | change | in the language | change | tokens |")
    print("|---|---|---|---|---|---|")
    first = None
    for model in sorted((to / "runs/real").glob("*/model"), key=lambda f: f.stat().st_mtime):
        engine = open_engine(model)
        requests = [
            Request(tuple(engine.chat.encode(sample.messages)), params, str(number))
            for number, sample in enumerate(samples)
        ]
        scores, tokens = np.zeros((len(samples), len(parts))), 0
        for answer in engine.sample(requests):
            if answer.finish_reason == "error":
                raise SystemExit(f"{model.parent.name}: {answer.error}")
            number = int(answer.request_id)
            sample = samples[number]
            found = reward.score(sample.messages, [answer], sample)[0].parts
            scores[number] = [found[part.kind] for part in parts]
            tokens += len(answer.token_ids)
        first = scores if first is None else first
        columns = np.stack([scores, scores - first], 2).reshape(len(scores), -1).T
        shown = [interval(column) for column in columns]
        name = model.parent.name.rsplit("-", 1)[0]
        print(f"| {name} | {' | '.join(shown)} | {tokens / len(scores):.0f} |", flush=True)
        engine.close()


def interval(values: np.ndarray) -> str:
    """A mean and its 95 % interval."""
    return f"{values.mean():.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}"


def asked_before(runs: Path) -> set[str]:
    """The prompts of pairs and of stored answers."""
    known: set[str] = set()
    for file in [*runs.glob("*/data/pairs.jsonl"), *runs.glob("*/report/refused.jsonl")]:
        known.update(row["prompt"][-1]["content"] for row in rows_in(file))
    for file in runs.glob("*/rollouts/*.parquet"):
        known.update(pyarrow.parquet.read_table(file, columns=["question"])["question"].to_pylist())
    return known


def selection(to: Path, model: str, seeds: list[int]) -> list[str]:
    """Loss on the targets after learning from chosen, drawn and all rows; means over seeds."""
    found: dict[str, list[float]] = {}
    started = time.monotonic()
    for seed in seeds:
        recipe = to / f"choice-{seed}.toml"
        targets = ", ".join(
            f'{{ name = "{n}", data = {{ path = "data/{n}-by.jsonl" }} }}' for n in TARGETS
        )
        text = CHOICE.format(seed=seed, model=model)
        for name in ("influence", "bm25", "random"):
            text += CHOOSING.format(name=name, targets=targets)
            data = f'prepared = "{name}"'
            text += LEARNING.format(name=f"from-{name}", data=data, epochs=3)
        everything = 'data = [{ path = "data/pool.jsonl" }]'
        text += LEARNING.format(name="from-all", data=everything, epochs=1)
        recipe.write_text(text.lstrip())
        subprocess.run([sys.executable, "-m", "singalaut", "run", str(recipe)], check=True)
        folders = sorted(
            (to / "choice/choice").glob("from-*/model"), key=lambda f: f.stat().st_mtime
        )
        newest = {f.parent.name.rsplit("-", 1)[0]: f for f in folders}
        places = {"untrained": resolve_model(model, base_folder=to)} | newest
        for name, place in places.items():
            for target in TARGETS:
                loss = measured_loss(place, to / f"data/{target}-on.jsonl")
                found.setdefault(f"{name} {target}", []).append(loss)
                print(f"seed {seed} {name} {target}: {loss:.4f}", flush=True)
    lines = [
        f"{time.monotonic() - started:.0f} s",
        "| learned from | target | loss | of each seed |",
    ]
    lines.append("|---|---|---|---|")
    for name, losses in found.items():
        source, target = name.split()
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        lines.append(f"| {source} | {target} | {statistics.mean(losses):.4f} | {each} |")
    for target in TARGETS:
        gains = np.subtract(found[f"from-random {target}"], found[f"from-influence {target}"])
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        lines.append(f"| random − influence | {target} | {gains.mean():.4f} ± {error:.4f} | |")
    return lines


def measured_loss(model: Path, rows: Path) -> float:
    """Nats a learned token."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held = cached_store((DataSource(path=str(rows)),), [rows], model, 512)
    network = load_model(model, torch.float32, device, vision=False).eval()
    documents = np.flatnonzero(held.documents["tokens"] <= 512)
    losses = validate(network, micro_batches(held, documents, 4096))
    return float(losses[..., 0].sum() / losses[..., 1].sum())


if __name__ == "__main__":
    main()
