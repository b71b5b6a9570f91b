"""Asks models the questions of a pack, saves every answer, and writes the results.

The unit of work is a task in all its languages, asked in one stream so that batches are full. Its
answers are written when all are there, a file for each language; a later run asks a task again as
a whole where a file is missing, in the same batches, so that it gets the same answers.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from singalaut.artifact import Work, write_atomic
from singalaut.contracts import Message, Request, Sampler, SamplingParams, derive
from singalaut.errors import RequestError
from singalaut.evals.config import EvaluateConfig
from singalaut.evals.extraction import echoes, extract_label, extract_text, nfc
from singalaut.evals.results import summarise, write_results
from singalaut.evals.tasks import Chunk, chunks, load_pack
from singalaut.progress import Bar, progress

log = logging.getLogger("singalaut")
LONGEST_NAME = 120  # of a folder, well below what file systems allow


def run_evaluate(
    config: EvaluateConfig,
    *,
    models: Mapping[str, Path],
    pack: Path,
    work: Work,
    seed: int,
    open_sampler: Callable[[Path, int], Sampler],
) -> None:
    """Answer and score the pack with each model, in order; `open_sampler(path, batch_size)`.

    Raises: DataError, RecipeError for the pack and its choice, before any model is opened;
    RequestError where a model leaves a question without an answer.
    """
    loaded = load_pack(pack)
    asked = chunks(loaded, config.tasks, config.languages, config.limit)
    answers = {
        name: _answer_all(name, path, asked, config, work, seed, open_sampler)
        for name, path in models.items()
    }
    protocol = {"temperature": config.temperature, "limit": config.limit, "seed": seed, "shots": 0}
    results = summarise(asked, answers, pack=loaded.name, protocol=protocol)
    write_results(work.path / "results", results)
    for name, found in results["models"].items():
        overall = found["overall"]
        log.info(
            "%s: %d answers, %.0f %% extracted, normalised mean %.1f",
            name,
            overall["n"],
            100 * overall["extracted"],
            overall["normalised"],
        )


def judge(chunk: Chunk, responses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add what each response answers, and whether that is right, to its row.

    `responses` has, in the order of the chunk, `response` and `finish_reason`. `correct` is None
    for a text, which only the metric judges.
    """
    task, spec = chunk.task, chunk.language
    echoed = echoes(spec.prompt, spec.tag)
    rows = []
    for example, given in zip(chunk.examples, responses, strict=True):
        text = given["response"]
        labelled = task.metric == "accuracy"
        found = (
            extract_label(text, spec.tag, spec.labels, echoed)
            if labelled
            else extract_text(text, spec.tag, echoed)
        )
        rows.append(
            {
                "id": example.id,
                "prompt": example.prompt,
                "response": text,
                "finish_reason": given["finish_reason"],
                "answer": found.answer,
                "extracted": found.extracted,
                "gold": example.gold if labelled else nfc(example.gold),
                "correct": found.answer == example.gold if labelled else None,
            }
        )
    return rows


def folder_name(model: str) -> str:
    """A visible, safe and distinct folder name for any name of a model."""
    name = quote(model, safe=" +=,@()")
    name = "%2E" + name[1:] if name.startswith(".") else name
    if len(name) <= LONGEST_NAME:
        return name
    return name[: LONGEST_NAME - 17] + "-" + hashlib.sha256(model.encode()).hexdigest()[:16]


def _answer_all(
    model: str,
    path: Path,
    asked: Sequence[Chunk],
    config: EvaluateConfig,
    work: Work,
    seed: int,
    open_sampler: Callable[[Path, int], Sampler],
) -> dict[str, list[dict[str, Any]]]:
    """Judged answers by chunk name; the model is loaded only if some are missing."""
    folder = work.path / "responses" / folder_name(model)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [list(group) for _, group in groupby(asked, key=lambda chunk: chunk.task.name)]
    answers: dict[str, list[dict[str, Any]]] = {}
    missing = []
    for group in tasks:
        saved = {c.name: _saved(folder / f"{c.name}.jsonl", c) for c in group}
        if None in saved.values():
            missing.append(group)
        answers |= {name: rows for name, rows in saved.items() if rows is not None}
    if not missing:
        return answers
    log.info("%s: %d of %d tasks to answer", model, len(missing), len(tasks))
    sampler = open_sampler(path, config.batch_size)
    total = sum(len(chunk.examples) for group in missing for chunk in group)
    with progress(f"evaluate {model}", total, "answer") as bar:
        for group in missing:
            begin = time.monotonic()
            found = _ask(sampler, model, group, config.temperature, seed, bar)
            for chunk in group:
                rows = judge(chunk, [found[f"{chunk.name}/{e.id}"] for e in chunk.examples])
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_atomic(folder / f"{chunk.name}.jsonl", lines.encode())
                answers[chunk.name] = rows
            seconds = round(time.monotonic() - begin, 3)
            work.log(model=model, task=group[0].task.name, seconds=seconds)
    del sampler
    gc.collect()  # the next model needs the memory of this one
    return answers


def _ask(
    sampler: Sampler,
    model: str,
    group: Sequence[Chunk],
    temperature: float,
    seed: int,
    bar: Bar,
) -> dict[str, dict[str, Any]]:
    """The responses to all questions of a task by `<chunk>/<id>`, however they arrive."""
    requests = [
        Request(
            prompt=[Message("user", example.prompt)],
            sampling=SamplingParams(
                max_tokens=chunk.task.max_tokens,
                temperature=temperature,
                seed=derive(seed, "evaluate", chunk.name, example.id),
            ),
            id=f"{chunk.name}/{example.id}",
        )
        for chunk in group
        for example in chunk.examples
    ]
    where = group[0].task.name
    wanted = {request.id for request in requests}
    found: dict[str, dict[str, Any]] = {}
    for completion in sampler.sample(requests):
        name = completion.request_id
        if name not in wanted or name in found:
            state = "a second time" if name in found else "unasked"
            raise RequestError(f"`{model}` answered `{name}` {state}", where=where)
        found[name] = {"response": completion.text, "finish_reason": completion.finish_reason}
        bar.advance(1, at=where)
    if lost := [request.id for request in requests if request.id not in found]:
        raise RequestError(
            f"`{model}` answered {len(found)} of {len(wanted)} questions; "
            f"the first without an answer is `{lost[0]}`",
            where=where,
            hint="run again: finished tasks are kept",
        )
    return found


def _saved(file: Path, chunk: Chunk) -> list[dict[str, Any]] | None:
    """The answers an earlier run saved, judged anew, or None unless they fit the questions."""
    try:
        rows = [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
        same = [(row["id"], row["prompt"]) for row in rows] == [
            (example.id, example.prompt) for example in chunk.examples
        ]
        return judge(chunk, rows) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
