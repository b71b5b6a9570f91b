"""The stage of supervised fine-tuning: a model and conversations in, a better model out.

One process trains on a CPU or a GPU; started by `torchrun`, as many share the work (`parallel.py`).
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from singalaut.artifact import Work
from singalaut.contracts import derive
from singalaut.data.batches import micro_batches
from singalaut.data.store import Store
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import (
    copy_companions,
)
from singalaut.progress import progress
from singalaut.train.average import Average
from singalaut.train.checkpoint import Checkpoints
from singalaut.train.config import SftConfig
from singalaut.train.estimate import sft_estimate, tell_expected
from singalaut.train.loop import no_progress, why_left_out
from singalaut.train.material import Material, open_material
from singalaut.train.meters import step_figures
from singalaut.train.optim import open_optimizer, scheduled_rate
from singalaut.train.parallel import World, join_world
from singalaut.train.step import Meters, train_step, validate
from singalaut.train.watching import Asked, watch_stage
from singalaut.train.weights import check_device, stop_asked, trainable, write_model

log = logging.getLogger("singalaut")
REMEMBERED = 50  # steps whose median norm says what a spike is


def run_sft(
    config: SftConfig,
    *,
    model: Path,
    data: Sequence[Path | None],
    work: Work,
    seed: int,
    prepared: Path | None = None,
    asked: Asked | None = None,
) -> None:
    """Tune `model` on the assistant's turns of `data`; a rerun goes on from the last checkpoint.

    `data` has the file or folder of each source, None for those of the hub, or one folder of a
    stage `prepare`; `prepared` is a token store that is used instead. `asked` has questions that
    the model answers now and then.

    Writes `model/` (merged, in the dtype of the input), with an adapter `adapter/`, and the page
    `report/report.html`.
    Raises: DataError when steps in a row are bad; SystemExit 0, with a checkpoint, on SIGTERM.
    """
    world = join_world(config.replicas, config.tensor_parallel)
    material = open_material(config, model, data, seed, prepared)
    store, steps = material.store, material.steps
    work.facts["data"] = store.about["provenance"]
    network = trainable(config, model, store.about["end_of_turn"], seed, world)
    row_tokens = max(config.micro_tokens, config.max_tokens)
    check_device(network, config, model, world, row_tokens, config.ema is not None)
    optimizer = open_optimizer(config, network, derive(seed, "adamw"), world)
    average = None if config.ema is None else Average(network, optimizer, config.ema)
    checkpoints = Checkpoints(
        work.scratch, network, optimizer, world, config.keep_checkpoints, average, model
    )
    start = checkpoints.load()
    if world.is_first:
        work.rewind(start)
    lengths = store.documents["tokens"]
    tell_expected(lambda on: sft_estimate(config, network.config, lengths, steps, on), world)
    watch = watch_stage(config, network, model, asked, work, seed, world, steps=steps, start=start)
    bad: list[int] = []
    norms: list[float] = []
    with progress("sft", steps, "step") as bar, stop_asked() as stop:
        bar.advance(start)
        for step in range(start, steps):
            watch.begin_step(step)
            if step == start == 0 or (step and step % config.validate_every == 0):
                _measure(network, material, config, step, work, world, average)
            begin = time.monotonic()
            first = step * config.batch_size
            chosen = material.mixture.documents(first, first + config.batch_size)
            micros = micro_batches(store, chosen, config.micro_tokens)
            rate = scheduled_rate(
                step,
                steps,
                config.warmup_steps,
                config.learning_rate,
                config.final_learning_rate,
            )
            limit = config.spike * statistics.median(norms) if config.spike and norms else None
            meters = train_step(
                network, optimizer, micros, rate, config.max_gradient_norm, world, limit
            )
            seconds = time.monotonic() - begin
            if world.is_first:
                own = [length for micro in micros for length in micro.lengths]
                adapted = config.adapter is not None
                figures = step_figures(network.config, own, seconds, world, adapted)
                _log_step(work, store, step, meters, rate, figures)
            if meters.taken:
                bad, norms = [], [*norms[1 - REMEMBERED :], meters.gradient_norm]
                if average is not None:
                    average.follow(step)
            else:
                bad.append(step)
                log.warning("step %d left out: %s", step, why_left_out(meters.fault, limit))
            if len(bad) >= config.max_bad_steps:
                checkpoints.finish()
                raise no_progress(bad, meters.fault, checkpoints, work, limit)
            speed = f"{meters.tokens / seconds:,.0f} tok/s"
            bar.advance(loss=f"{meters.loss:.3f}", speed=speed)
            ends = world.any(stop.is_set())
            if (step + 1) % config.save_every == 0 or step + 1 == steps or ends:
                checkpoints.save(step + 1)
                watch.saved()
            if ends and step + 1 < steps:
                checkpoints.finish()
                log.info("stopped as asked, after step %d; run again to go on", step)
                raise SystemExit(0)
    checkpoints.finish()
    _measure(network, material, config, steps, work, world, average)
    watch.finish()
    with nullcontext() if average is None else average.in_place():
        write_model(network, config.adapter, model, work, seed, world)
    if world.is_first:
        copy_companions(model, work.path / "model")
    world.wait()


def _log_step(
    work: Work,
    store: Store,
    step: int,
    meters: Meters,
    rate: float,
    figures: dict[str, float],
) -> None:
    work.log(
        step=step,
        loss=meters.loss,
        gradient_norm=meters.gradient_norm,
        learning_rate=rate,
        tokens=meters.tokens,
        learned_tokens=meters.learned_tokens,
        **figures,
        **_by_name(meters.losses, store),
        **({} if meters.taken else {"left_out": True}),
    )


def _by_name(losses: np.ndarray, store: Store) -> dict[str, dict[str, float]]:
    """Mean losses of the languages and sources that had learned tokens."""
    names = {
        "loss_by_language": (store.languages, losses.sum(0)),
        "loss_by_source": ([source.name for source in store.sources], losses.sum(1)),
    }
    return {
        key: {
            name: float(total / count)
            for name, (total, count) in zip(labels, sums, strict=False)
            if count
        }
        for key, (labels, sums) in names.items()
    }


def _measure(
    network: Gemma3,
    material: Material,
    config: SftConfig,
    step: int,
    work: Work,
    world: World,
    average: Average | None,
) -> None:
    """The loss on what is held out, logged as it is before step `step`; of the average, too."""
    if not len(material.held_out):
        return
    micros = micro_batches(material.store, material.held_out, config.micro_tokens)
    found = _validation("validation", validate(network.eval(), micros, world), material.store)
    if average is not None:
        with average.in_place():
            losses = validate(network, micros, world)
        found |= _validation("average_validation", losses, material.store)
    network.train()
    if world.is_first:
        work.log(step=step, **found)
        log.info("step %d: validation loss %.4f", step, found["validation_loss"])


def _validation(label: str, losses: np.ndarray, store: Store) -> dict[str, Any]:
    total, count = losses.sum((0, 1))
    by_name = {f"{label}_{name}": value for name, value in _by_name(losses, store).items()}
    return {f"{label}_loss": float(total / max(1, count)), **by_name}
