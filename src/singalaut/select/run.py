"""The stage of selection: a pool and targets in, the rows that help most out, as prepared data.

With gradients: an adapter is warmed up on random rows of the pool, and at some of its steps the
gradients of all rows and targets are taken (`gradients.py`, `features.py`). What they say is
`scores.py`'s business, who is chosen `choose.py`'s. Source: arXiv 2402.04333, with the warm-up
measured in steps, not in passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
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
from singalaut.progress import progress
from singalaut.select.choose import best, facility_location, k_centre, quota_counts
from singalaut.select.config import SelectConfig
from singalaut.select.features import Features, joined
from singalaut.select.gradients import SampleGradients, error_norms, sample_gradients
from singalaut.select.material import Material, Rows, open_material
from singalaut.select.report import write_report
from singalaut.select.scores import bm25, influence, unit, worth
from singalaut.select.warmup import SampleSet, measure_sets
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
    places = _places(config, pool)  # a quota that cannot be met is told before the work
    measured = None
    if config.takes_gradients or config.method == "loss":
        measured = _measure(config, model, material, work, seed)
    scores = _scores(config, model, material, measured, seed)
    chosen = _choose(config, places, worth(scores), measured)
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
    rows = [material.pool, *material.targets]
    pool = material.pool

    def warm_step(step: int, optimizer: torch.optim.Optimizer, rate: float) -> tuple[float, float]:
        order = shuffled(pool.documents, seed, "warm-up", step)
        micros = micro_batches(pool.store, order[: config.batch_size], config.micro_tokens)
        meters = train_step(network, optimizer, micros, rate, 1.0)
        return meters.loss, meters.gradient_norm

    sets = [
        SampleSet(
            each.store.documents["tokens"][each.documents],
            _gradients_of(network, each, config.micro_tokens),
        )
        for each in rows
    ]
    found = measure_sets(config, network, warm_step, sets, work, seed, world)
    return Measured(found[0], found[1:])


def _gradients_of(
    network: Gemma3, rows: Rows, micro_tokens: int
) -> Callable[[np.ndarray], Iterator[tuple[np.ndarray, SampleGradients]]]:
    documents = rows.documents

    def gradients_of(places: np.ndarray) -> Iterator[tuple[np.ndarray, SampleGradients]]:
        place_of = {int(documents[at]): at for at in places}
        for micro in micro_batches(rows.store, documents[places], micro_tokens):
            at = np.array([place_of[document] for document in micro.documents])
            yield at, sample_gradients(network, micro)

    return gradients_of


def _scores(
    config: SelectConfig, model: Path, material: Material, measured: Measured | None, seed: int
) -> np.ndarray:
    """What each row of the pool is worth, [M], or for each target, [M, K]."""
    pool = material.pool
    if config.method == "influence":
        assert measured is not None
        rates = [config.rate(end - 1) for end in config.measured_after()]
        learned = [rows.store.documents["learned"][rows.documents] for rows in material.targets]
        return influence(measured.pool, measured.targets, rates, learned)
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


def _places(config: SelectConfig, pool: Rows) -> list[tuple[np.ndarray, int]]:
    """The rows of each group that has its own quota, and how many of them are chosen."""
    total = len(pool.documents)
    count = config.count or max(1, round((config.share or 0) * total))
    if config.quota_by == "nothing":
        return [(np.arange(total), min(count, total))]
    groups = pool.store.documents[pool.documents][config.quota_by].astype(np.int64)
    languages, sources = pool.store.languages, [s.name for s in pool.store.sources]
    names = languages if config.quota_by == "language" else sources
    counts = quota_counts(groups, names, config.quotas, count)
    return [(np.flatnonzero(groups == group), number) for group, number in counts.items()]


def _choose(
    config: SelectConfig,
    places: Sequence[tuple[np.ndarray, int]],
    value: np.ndarray,
    measured: Measured | None,
) -> np.ndarray:
    """Places in the pool of the chosen rows, the best first."""
    chosen = [np.empty(0, dtype=np.int64)]
    for members, number in places:
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
