"""The stage of alignment: a model and pairs of answers in, a model that prefers the chosen one out.

Losses are those of `loss/apo.py`. The reference's log-probabilities are computed once
(`reference.py`). Source of APO: arXiv 2408.06266.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from singalaut.artifact import Work, write_json
from singalaut.contracts import derive
from singalaut.data.pair_batches import PairOrder, hold_out_pairs, pack_pairs
from singalaut.data.preference import Pairs, make_pairs
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import copy_companions, load_model, read_config
from singalaut.progress import progress
from singalaut.train.checkpoint import Checkpoints
from singalaut.train.config import ApoConfig
from singalaut.train.estimate import Estimate, Fleet, apo_estimate, tell_expected
from singalaut.train.loop import no_progress, why_left_out
from singalaut.train.meters import step_figures
from singalaut.train.optim import open_optimizer, scheduled_rate
from singalaut.train.pairs import MEASURED, PairLosses, PairStep, measure_pairs, pair_step
from singalaut.train.parallel import World, join_world, shard
from singalaut.train.reference import reference_table
from singalaut.train.replay import Replay, open_replay
from singalaut.train.watching import Asked, watch_stage
from singalaut.train.weights import check_device, stop_asked, trainable, write_model

log = logging.getLogger("singalaut")
LONGER = 1.25  # mean length of chosen answers over that of rejected ones, from which it is told


def run_apo(
    config: ApoConfig,
    *,
    model: Path,
    data: Sequence[Path | None],
    work: Work,
    seed: int,
    reference: Path | None = None,
    asked: Asked | None = None,
    replayed: Sequence[Path | None] = (),
) -> None:
    """Align `model` with the pairs of `data`; a rerun goes on from the last checkpoint.

    `data` has the file or folder of each source, None for those of the hub. `reference` is the
    model that the loss compares with, `model` at its start where None. `asked` has questions that
    the model answers now and then; `replayed` has the file or folder of each source that is learned
    again.

    Writes `model/` (merged, in the dtype of the input), with an adapter `adapter/`,
    `report/pairs.json` and the page `report/report.html`.
    Raises: DataError where no pair can be used, or steps in a row are bad; SystemExit 0, with a
    checkpoint, on SIGTERM.
    """
    world = join_world(config.replicas, config.tensor_parallel)
    material = _open_material(config, model, data, replayed, work, seed, world)
    pairs, steps = material.pairs, material.steps
    network = trainable(config, model, pairs.about["end_of_turn"], seed, world)
    longest = max(config.micro_tokens, 2 * config.max_tokens)
    if config.replay is not None:
        longest = max(longest, config.replay.max_tokens)
    check_device(network, config, model, world, longest)
    scored = _reference(config, network, reference, material, work, world)
    optimizer = open_optimizer(config, network, derive(seed, "adamw"), world)
    checkpoints = Checkpoints(
        work.scratch, network, optimizer, world, config.keep_checkpoints, base=model
    )
    start = checkpoints.load()
    if world.is_first:
        work.rewind(start)
    tell_expected(lambda on: _expected(config, network.config, material, on), world)
    watch = watch_stage(config, network, model, asked, work, seed, world, steps=steps, start=start)
    loss = PairLosses(config.loss, config.beta, config.gamma or 0.0)
    bad: list[int] = []
    with progress("apo", steps, "step") as bar, stop_asked() as stop:
        bar.advance(start)
        for step in range(start, steps):
            watch.begin_step(step)
            if step == start == 0 or (step and step % config.validate_every == 0):
                _validate(network, material, scored, config, loss, step, work, world)
            found, meters = _learn(
                network, optimizer, material, scored, config, loss, step, work, world
            )
            if found.taken:
                bad = []
            else:
                bad.append(step)
                log.warning("step %d left out: %s", step, why_left_out(found.fault, None))
            if len(bad) >= config.max_bad_steps:
                checkpoints.finish()
                raise no_progress(bad, found.fault, checkpoints, work)
            bar.advance(loss=f"{meters['loss']:.3f}", margin=f"{meters['margin']:.3f}")
            ends = world.any(stop.is_set())
            if (step + 1) % config.save_every == 0 or step + 1 == steps or ends:
                checkpoints.save(step + 1)
                watch.saved()
            if ends and step + 1 < steps:
                checkpoints.finish()
                log.info("stopped as asked, after step %d; run again to go on", step)
                raise SystemExit(0)
    checkpoints.finish()
    _validate(network, material, scored, config, loss, steps, work, world)
    watch.finish()
    write_model(network, config.adapter, model, work, seed, world)
    if world.is_first:
        copy_companions(model, work.path / "model")
    world.wait()


def _expected(
    config: ApoConfig, shape: Gemma3Config, material: _Material, fleet: Fleet
) -> Estimate:
    pairs = material.pairs
    return apo_estimate(config, shape, pairs.computed(), len(pairs), material.steps, fleet)


def _learn(
    network: Gemma3,
    optimizer: torch.optim.Optimizer,
    material: _Material,
    scored: np.ndarray,
    config: ApoConfig,
    loss: PairLosses,
    step: int,
    work: Work,
    world: World,
) -> tuple[PairStep, dict[str, Any]]:
    """One step, logged; what it found, and the means over its pairs."""
    begin = time.monotonic()
    first = step * config.batch_size
    chosen = material.order.pairs(first, first + config.batch_size)
    rate = scheduled_rate(
        step,
        material.steps,
        config.warmup_steps,
        config.learning_rate,
        config.final_learning_rate,
    )
    rows = pack_pairs(material.pairs, chosen, config.micro_tokens)
    replay = material.replay
    replayed = [] if replay is None else replay.micros(step, config.micro_tokens)
    found = pair_step(
        network,
        optimizer,
        rows,
        material.answers[chosen],
        scored[chosen],
        loss,
        rate,
        config.max_gradient_norm,
        world,
        replayed,
        1.0 if replay is None else replay.config.weight,
    )
    meters = _meters(found.table, material.pairs, chosen)
    if world.is_first:
        lengths = [length for row in rows for length in row.lengths]
        lengths += [length for micro in replayed for length in micro.lengths]
        seconds = time.monotonic() - begin
        adapted = config.adapter is not None
        work.log(
            step=step,
            **meters,
            gradient_norm=found.gradient_norm,
            learning_rate=rate,
            tokens=found.tokens,
            **({} if found.replay_loss is None else {"replay_loss": found.replay_loss}),
            **step_figures(network.config, lengths, seconds, world, adapted),
            **({} if found.taken else {"left_out": True}),
        )
    return found, meters


@dataclass(frozen=True)
class _Material:
    """The pairs, their order, those that are measured on, and tokens of both answers, [P, 2]."""

    pairs: Pairs
    order: PairOrder
    held_out: np.ndarray
    answers: np.ndarray
    steps: int
    used: np.ndarray
    replay: Replay | None


def _open_material(
    config: ApoConfig,
    model: Path,
    data: Sequence[Path | None],
    replayed: Sequence[Path | None],
    work: Work,
    seed: int,
    world: World,
) -> _Material:
    folder = work.scratch / "pairs"
    longest = min(config.max_tokens, read_config(model).max_positions)
    if world.is_first:
        make_pairs(config.sources(), data, model, longest, folder)
    world.wait()
    pairs = Pairs.open(folder)
    learned, held_out = hold_out_pairs(pairs, config.held_out, seed)
    steps = config.steps or math.ceil((config.epochs or 1) * len(learned) / config.batch_size)
    order = PairOrder(learned, seed)
    records = pairs.records
    answers = np.stack([records["chosen_answer"], records["rejected_answer"]], 1).astype(np.int64)
    taken = np.unique(order.pairs(0, min(steps * config.batch_size, len(learned))))
    used = np.union1d(taken, held_out)
    report = {**pairs.about, "pairs": len(pairs), "lengths": _lengths(pairs, answers)}
    if world.is_first:
        (work.path / "report").mkdir(exist_ok=True)
        write_json(work.path / "report" / "pairs.json", report)
        _tell(report, len(held_out))
        _check_policy(data, model)
    work.facts["pairs"] = {key: report[key] for key in ("pairs", "sources", "refused", "lengths")}
    replay = open_replay(config.replay, model, replayed, seed)
    return _Material(pairs, order, held_out, answers, steps, used, replay)


def _lengths(pairs: Pairs, answers: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean tokens of both answers, and how often the chosen one is longer, by language."""
    found = {}
    for number, name in enumerate(pairs.languages):
        own = answers[pairs.records["language"] == number]
        found[name] = {
            "pairs": len(own),
            "chosen_tokens": float(own[:, 0].mean()),
            "rejected_tokens": float(own[:, 1].mean()),
            "chosen_is_longer": float((own[:, 0] > own[:, 1]).mean()),
        }
    return found


def _tell(report: dict[str, Any], held_out: int) -> None:
    for source in report["sources"]:
        log.info("%s: %s of %s rows are pairs", source["name"], source["pairs"], source["rows"])
    for refused in report["refused"]:
        examples = "; ".join(refused["examples"][:2])
        log.warning("%d rows left out: %s (%s)", refused["rows"], refused["reason"], examples)
    for name, lengths in report["lengths"].items():
        ratio = lengths["chosen_tokens"] / lengths["rejected_tokens"]
        if ratio > LONGER or ratio < 1 / LONGER:
            log.warning("%s: chosen answers are %.2f× as long, which is learned too", name, ratio)
    if held_out:
        log.info("%d pairs are held out", held_out)


def _check_policy(data: Sequence[Path | None], model: Path) -> None:
    """Say if rejected answers were written by another model than the one that is aligned."""
    from singalaut.artifact import content_hash

    for place in data:
        folders = () if place is None else (place, *list(place.parents)[:2])
        for file in (folder / "report" / "pairs.json" for folder in folders):
            if not file.is_file():
                continue
            policy = json.loads(file.read_bytes()).get("policy")
            if policy is not None and policy != content_hash(model):
                log.warning("the rejected answers were written by another model than is aligned")


def _reference(
    config: ApoConfig,
    network: Gemma3,
    reference: Path | None,
    material: _Material,
    work: Work,
    world: World,
) -> np.ndarray:
    """Log-probabilities of both answers under the reference, [P, 2]; zeros where it has none."""
    if config.loss == "simpo":
        return np.zeros((len(material.pairs), 2), dtype=np.float32)

    def open_reference() -> Gemma3:
        if reference is None:
            return network
        return shard(load_model(reference, network.embedding.weight.dtype, world.device), world)

    folder = work.scratch / "reference"
    return reference_table(
        open_reference, material.pairs, material.used, config.micro_tokens, folder, world
    )


def _meters(table: np.ndarray, pairs: Pairs, chosen: np.ndarray) -> dict[str, Any]:
    """Means over the pairs of a table as `PairStep` has it, and the same by language."""
    languages = pairs.records["language"][chosen]
    by_language = {
        pairs.languages[number]: {
            "pairs": int((languages == number).sum()),
            **_means(table[languages == number]),
        }
        for number in np.unique(languages)
    }
    return {**_means(table), "by_language": by_language}


def _means(table: np.ndarray) -> dict[str, float]:
    margins = table[:, 1] - table[:, 2]
    means = dict(zip(MEASURED, table.mean(0).tolist(), strict=True))
    return {**means, "margin": float(margins.mean()), "accuracy": float((margins > 0).mean())}


def _validate(
    network: Gemma3,
    material: _Material,
    scored: np.ndarray,
    config: ApoConfig,
    loss: PairLosses,
    step: int,
    work: Work,
    world: World,
) -> None:
    """The same numbers on what is held out, logged as they are before step `step`."""
    held_out = material.held_out
    if not len(held_out):
        return
    rows = pack_pairs(material.pairs, held_out, config.micro_tokens)
    table = measure_pairs(network, rows, material.answers[held_out], scored[held_out], loss, world)
    found = _meters(table, material.pairs, held_out)
    if world.is_first:
        work.log(step=step, **{f"validation_{name}": value for name, value in found.items()})
        log.info(
            "step %d, held out: loss %.4f, accuracy %.3f", step, found["loss"], found["accuracy"]
        )
