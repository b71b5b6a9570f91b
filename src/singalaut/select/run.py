"""The stage of selection: a pool and targets in, the rows that help most out, as prepared data.

With gradients: an adapter is warmed up on random rows of the pool, and at some of its steps the
gradients of all rows and targets are taken (`gradients.py`, `features.py`). What they say is
`scores.py`'s business, who is chosen `choose.py`'s. Source: arXiv 2402.04333, with the warm-up
measured in steps, not in passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from singalaut.artifact import Work
from singalaut.contracts import derive
from singalaut.data.batches import micro_batches
from singalaut.data.mix import shuffled
from singalaut.data.subset import write_subset
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model
from singalaut.model.lora import add_adapter
from singalaut.progress import Bar, progress
from singalaut.select.choose import best, facility_location, k_centre, quota_counts
from singalaut.select.config import SelectConfig
from singalaut.select.features import Features, Precondition, adam_steps, joined, measure
from singalaut.select.gradients import SampleGradients, error_norms, sample_gradients
from singalaut.select.material import Material, Rows, open_material
from singalaut.select.project import Sketch
from singalaut.select.report import write_report
from singalaut.select.scores import bm25, influence, unit
from singalaut.train.checkpoint import Checkpoints
from singalaut.train.optim import adamw
from singalaut.train.parallel import World
from singalaut.train.step import train_step

log = logging.getLogger("singalaut")


@dataclass(frozen=True)
class Measured:
    """Features of the pool at each checkpoint, and of each target at each of them."""

    pool: list[Features]
    targets: list[list[Features]]


def run_select(
    config: SelectConfig,
    *,
    model: Path,
    data: Sequence[Path | None],
    targets: Sequence[Path | None],
    work: Work,
    seed: int,
    prepared: Path | None = None,
) -> None:
    """Choose rows of the pool; a rerun goes on at the block of gradients where it was.

    Writes `data/` (a token store of the chosen rows) and `report/`. Raises: DataError, RecipeError
    for a pool, target or quota that cannot be used.
    """
    material = open_material(config, model, data, targets, prepared)
    pool = material.pool
    measured = None
    if config.takes_gradients or config.method == "loss":
        measured = _measure(config, model, material, work, seed)
    scores = _scores(config, model, material, measured, seed)
    value = scores.max(1) if scores.ndim == 2 else scores
    chosen = _choose(config, pool, value, measured)
    write_subset(pool.store, pool.documents[chosen].tolist(), work.path / "data")
    features = None if measured is None else measured.pool
    facts = write_report(work.path, config, material, scores, chosen, features)
    work.facts["data"] = facts.pop("provenance")
    work.facts["selection"] = facts
    log.info("%d of %d rows chosen by %s", len(chosen), len(pool.documents), config.method)


def _measure(
    config: SelectConfig, model: Path, material: Material, work: Work, seed: int
) -> Measured:
    """Warm up an adapter, and take all gradients at each checkpoint."""
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    network = load_model(model, torch.float32, world.device, vision=False).train()
    adapter = config.adapter
    add_adapter(network, adapter.rank, adapter.alpha, adapter.targets, derive(seed, "adapter"))
    optimizer = adamw(network, config.learning_rate, 0.0)
    checkpoints = Checkpoints(work.scratch, network, optimizer, world)
    done = checkpoints.load()
    sketch = Sketch(config.dimensions, derive(seed, "projection"), world.device)
    sets = [material.pool, *material.targets]
    ends = config.measured_after()
    found: list[list[Features]] = [[] for _ in sets]
    total = config.checkpoints * sum(len(rows.documents) for rows in sets)
    with progress("gradients", total, "gradient") as bar:
        for number, end in enumerate(ends):
            if done < end:
                _warm_up(network, optimizer, config, material.pool, done, end, seed, work)
                checkpoints.save(end)
                checkpoints.finish()
                done = end
            for index, (rows, features) in enumerate(zip(sets, found, strict=True)):
                place = work.scratch / "features" / f"{number}-{index}"
                steps = adam_steps(network, optimizer) if index == 0 else None
                features.append(_features(network, rows, config, sketch, steps, place, bar))
    return Measured(found[0], found[1:])


def _features(
    network: Gemma3,
    rows: Rows,
    config: SelectConfig,
    sketch: Sketch,
    steps: Precondition | None,
    place: Path,
    bar: Bar,
) -> Features:
    documents = rows.documents

    def gradients_of(places: np.ndarray) -> Iterator[tuple[np.ndarray, SampleGradients]]:
        place_of = {int(documents[at]): at for at in places}
        for micro in micro_batches(rows.store, documents[places], config.micro_tokens):
            at = np.array([place_of[document] for document in micro.documents])
            yield at, sample_gradients(network, micro)

    tokens = rows.store.documents["tokens"][documents]
    return measure(tokens, gradients_of, sketch, steps, place, bar)


def _warm_up(
    network: Gemma3,
    optimizer: torch.optim.Optimizer,
    config: SelectConfig,
    pool: Rows,
    first: int,
    last: int,
    seed: int,
    work: Work,
) -> None:
    work.rewind(first)
    for step in range(first, last):
        order = shuffled(pool.documents, seed, "warm-up", step)
        micros = micro_batches(pool.store, order[: config.batch_size], config.micro_tokens)
        meters = train_step(network, optimizer, micros, config.rate(step), 1.0)
        work.log(step=step, loss=meters.loss, gradient_norm=meters.gradient_norm)


def _scores(
    config: SelectConfig, model: Path, material: Material, measured: Measured | None, seed: int
) -> np.ndarray:
    """What each row of the pool is worth, [M], or for each target, [M, K]."""
    pool = material.pool
    if config.method == "influence":
        assert measured is not None
        rates = [config.rate(end - 1) for end in config.measured_after()]
        return influence(measured.pool, measured.targets, rates)
    if config.method == "gradient-norm":
        assert measured is not None
        return joined(measured.pool).mean(1)
    if config.method == "loss":
        assert measured is not None
        return np.stack([features.losses for features in measured.pool], 1).mean(1)
    if config.method == "el2n":
        return _el2n(config, model, pool)
    if config.method == "bm25":
        targets = [(rows.store, rows.documents) for rows in material.targets]
        return bm25(pool.store, pool.documents, targets)
    if config.method == "length":
        return pool.store.documents["learned"][pool.documents].astype(np.float64)
    order = shuffled(pool.documents, seed, "random")
    ranks = np.empty(len(order))
    ranks[np.searchsorted(pool.documents, order)] = np.arange(len(order), 0, -1)
    return ranks


def _el2n(config: SelectConfig, model: Path, pool: Rows) -> np.ndarray:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_model(model, torch.float32, device, vision=False)
    place_of = {int(document): place for place, document in enumerate(pool.documents)}
    norms = np.zeros(len(pool.documents))
    with progress("errors", len(norms), "row") as bar:
        for micro in micro_batches(pool.store, pool.documents, config.micro_tokens):
            at = [place_of[document] for document in micro.documents]
            norms[at] = error_norms(network, micro).cpu().numpy()
            bar.advance(len(at))
    return norms


def _choose(
    config: SelectConfig, pool: Rows, value: np.ndarray, measured: Measured | None
) -> np.ndarray:
    """Places in the pool of the chosen rows, the best first."""
    count = config.count or max(1, round((config.share or 0) * len(value)))
    records = pool.store.documents[pool.documents]
    if config.quota_by == "nothing":
        groups, counts = np.zeros(len(value), dtype=np.int64), {0: min(count, len(value))}
    else:
        groups = records[config.quota_by].astype(np.int64)
        languages, sources = pool.store.languages, [s.name for s in pool.store.sources]
        names = languages if config.quota_by == "language" else sources
        counts = quota_counts(groups, names, config.quotas, count)
    chosen = [np.empty(0, dtype=np.int64)]
    for group, number in counts.items():
        members = np.flatnonzero(groups == group)
        wide = number if config.diversity == "none" else round(config.diversity_pool * number)
        candidates = members[best(value[members], wide)]
        if config.diversity != "none" and number:
            assert measured is not None
            vectors = unit(measured.pool[-1].vectors[candidates])
            varied = k_centre if config.diversity == "k-centre" else facility_location
            candidates = candidates[varied(vectors, number)]
        chosen.append(candidates)
    picked = np.concatenate(chosen)
    return picked[best(value[picked], len(picked))]
