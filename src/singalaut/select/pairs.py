"""The stage that chooses pairs, by gradients of the loss of alignment that help the targets most.

The same path as for conversations (`run.py`): an adapter is warmed up on random pairs of the pool,
and the gradients of all pairs, with both answers and the reference, are taken at some of its steps.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from singalaut.artifact import Work, write_atomic, write_json
from singalaut.contracts import Message, Sample, derive
from singalaut.data.config import DataSource
from singalaut.data.mix import shuffled
from singalaut.data.pair_batches import pack_pairs
from singalaut.data.pair_rows import Refused, read_samples
from singalaut.data.preference import Pairs, make_pairs
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model, read_config
from singalaut.model.lora import add_adapter
from singalaut.select.choose import best_of_each, quota_counts
from singalaut.select.config import SelectPairsConfig
from singalaut.select.gradients import SampleGradients, pair_gradients
from singalaut.select.report import scored_row, write_choice
from singalaut.select.scores import drawn, influence, served, worth
from singalaut.select.warmup import SampleSet, measure_sets
from singalaut.train.pairs import PairLosses, pair_step
from singalaut.train.parallel import World
from singalaut.train.reference import reference_table

log = logging.getLogger("singalaut")


@dataclass(frozen=True)
class _Set:
    """Pairs with the tokens of both answers and what the reference says of them, [P, 2] each."""

    name: str
    pairs: Pairs
    answers: np.ndarray
    reference: np.ndarray


def run_select_pairs(
    config: SelectPairsConfig,
    *,
    model: Path,
    data: Sequence[Path | None],
    targets: Sequence[Path | None],
    work: Work,
    seed: int,
) -> None:
    """Choose pairs of the pool; a rerun goes on at the block of gradients where it was.

    Writes `data/pairs.jsonl`, which `apo` takes, and `report/`. Raises: DataError, RecipeError for
    a pool, target or quota that cannot be used.
    """
    sources = config.data or (config.source_of_stage(),)
    longest = min(config.max_tokens, read_config(model).max_positions)
    pool = make_pairs(sources, data, model, longest, work.scratch / "pool")
    _tell(pool)
    wanted = [
        (target.name, make_pairs((target.data,), [place], model, longest, _folder(work, number)))
        for number, (target, place) in enumerate(zip(config.targets, targets, strict=True))
    ]
    places = _places(config, pool)  # a quota that cannot be met is told before the work
    scores = _scores(config, model, [("pool", pool), *wanted], work, seed)
    chosen = best_of_each(places, worth(scores))
    _write(config, sources, data, pool, chosen, work)
    _report(config, pool, scores, chosen, data, work)
    log.info("%d of %d pairs chosen by %s", len(chosen), len(pool), config.method)


def _folder(work: Work, number: int) -> Path:
    return work.scratch / f"target-{number}"


def _tell(pairs: Pairs) -> None:
    for refused in pairs.about["refused"]:
        example = refused["examples"][0]
        log.warning("%d rows left out: %s (%s)", refused["rows"], refused["reason"], example)


def _scores(
    config: SelectPairsConfig,
    model: Path,
    named: Sequence[tuple[str, Pairs]],
    work: Work,
    seed: int,
) -> np.ndarray:
    """What each pair of the pool is worth, [M], or for each target, [M, K]."""
    pool = named[0][1]
    if config.method == "random":
        return drawn(len(pool), seed)
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    network = load_model(model, torch.float32, world.device, vision=False).train()
    adapter = config.adapter
    add_adapter(network, adapter.rank, adapter.alpha, adapter.targets, derive(seed, "adapter"))
    sets = [
        _with_reference(config, name, pairs, network, work.scratch / f"reference-{number}", world)
        for number, (name, pairs) in enumerate(named)  # before anything is learned
    ]
    loss = PairLosses(config.loss, config.beta, 0.0)

    def warm_step(step: int, optimizer: torch.optim.Optimizer, rate: float) -> tuple[float, float]:
        own = sets[0]
        order = shuffled(np.arange(len(pool)), seed, "warm-up", step)[: config.batch_size]
        rows = pack_pairs(pool, order, config.micro_tokens)
        answers, reference = own.answers[order], own.reference[order]
        found = pair_step(network, optimizer, rows, answers, reference, loss, rate, 1.0)
        return found.loss, found.gradient_norm

    samples = [
        SampleSet(each.pairs.tokens(), _gradients_of(network, each, loss, config.micro_tokens))
        for each in sets
    ]
    measured = measure_sets(config, network, warm_step, samples, work, seed, world)
    if config.method == "gradient-norm":
        return np.stack([features.norms for features in measured[0]], 1).mean(1)
    rates = [config.rate(end - 1) for end in config.measured_after()]
    return influence(measured[0], measured[1:], rates)


def _with_reference(
    config: SelectPairsConfig,
    name: str,
    pairs: Pairs,
    network: Gemma3,
    folder: Path,
    world: World,
) -> _Set:
    records = pairs.records
    answers = np.stack([records["chosen_answer"], records["rejected_answer"]], 1).astype(np.int64)
    everything = np.arange(len(pairs))
    table = reference_table(lambda: network, pairs, everything, config.micro_tokens, folder, world)
    return _Set(name, pairs, answers, table)


def _gradients_of(
    network: Gemma3, each: _Set, loss: PairLosses, micro_tokens: int
) -> Callable[[np.ndarray], Iterator[tuple[np.ndarray, SampleGradients]]]:
    def gradients_of(places: np.ndarray) -> Iterator[tuple[np.ndarray, SampleGradients]]:
        answers, reference = each.answers[places], each.reference[places]
        for row in pack_pairs(each.pairs, places, micro_tokens):
            yield places[row.places], pair_gradients(network, row, answers, reference, loss)

    return gradients_of


def _places(config: SelectPairsConfig, pool: Pairs) -> list[tuple[np.ndarray, int]]:
    """The pairs of each language that has its own quota, and how many of them are chosen."""
    count = config.count or max(1, round((config.share or 0) * len(pool)))
    if config.quota_by == "nothing":
        return [(np.arange(len(pool)), min(count, len(pool)))]
    groups = pool.records["language"].astype(np.int64)
    counts = quota_counts(groups, pool.languages, config.quotas, count)
    return [(np.flatnonzero(groups == group), number) for group, number in counts.items()]


def _write(
    config: SelectPairsConfig,
    sources: Sequence[DataSource],
    data: Sequence[Path | None],
    pool: Pairs,
    chosen: np.ndarray,
    work: Work,
) -> None:
    """The chosen pairs as rows, in the order of the pool, as they were read."""
    records = pool.records[np.sort(chosen)]
    lines = []
    for number, (source, place) in enumerate(zip(sources, data, strict=True)):
        wanted = set(records["row"][records["source"] == number].tolist())
        for row, sample in read_samples(source, place, Refused()):
            if sample is not None and row in wanted:
                lines.append(json.dumps(_as_row(sample, source.label), ensure_ascii=False))
    assert len(lines) == len(chosen)
    (work.path / "data").mkdir(exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    write_atomic(work.path / "data" / "pairs.jsonl", text.encode("utf-8", "replace"))


def _as_row(sample: Sample, source: str) -> dict[str, Any]:
    def turn(message: Message) -> dict[str, Any]:
        return {"role": message.role, "content": message.content}

    return {
        "id": sample.id,
        "prompt": [turn(message) for message in sample.messages[:-1]],
        "chosen": sample.messages[-1].content,
        "rejected": sample.rejected[-1].content,
        **({"rejected_is_cut": True} if sample.meta.get("rejected_is_cut") else {}),
        "language": sample.language,
        "source": source,
    }


def _rows(config: SelectPairsConfig, pool: Pairs, scores: np.ndarray) -> list[dict[str, Any]]:
    """What the report says of every pair of the pool."""
    serves = served(scores) if scores.ndim == 2 else None
    names = [target.name for target in config.targets]
    return [
        {
            "source": pool.about["sources"][int(record["source"])]["name"],
            "row": int(record["row"]),
            "language": pool.languages[int(record["language"])],
            "tokens": int(record["chosen"]) + int(record["rejected"]),
            **scored_row(scores, serves, names, place),
        }
        for place, record in enumerate(pool.records)
    ]


def _report(
    config: SelectPairsConfig,
    pool: Pairs,
    scores: np.ndarray,
    chosen: np.ndarray,
    data: Sequence[Path | None],
    work: Work,
) -> None:
    folder = work.path / "report"
    about = {"method": config.method, "loss": config.loss}
    names = [target.name for target in config.targets]
    report = write_choice(folder, about, _rows(config, pool, scores), scores, chosen, names)
    write_json(folder / "pairs.json", {"pairs": len(chosen), "policy": _policy(data)})
    told = ("method", "pool", "chosen", "languages", "targets")
    work.facts["selection"] = {name: report[name] for name in told}


def _policy(data: Sequence[Path | None]) -> str | None:
    """Whose the rejected answers are, where the pool was made by a stage that says so."""
    for place in data:
        for folder in () if place is None else (place, *list(place.parents)[:2]):
            file = folder / "report" / "pairs.json"
            if file.is_file():
                return json.loads(file.read_bytes()).get("policy")
    return None
