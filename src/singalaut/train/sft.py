"""The stage of supervised fine-tuning: a model and conversations in, a better model out.

One process trains on a CPU or a GPU; started by `torchrun`, as many share the work (`parallel.py`).
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

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
from singalaut.train.checkpoint import Checkpoints
from singalaut.train.config import SftConfig
from singalaut.train.estimate import sft_estimate, tell_expected
from singalaut.train.loop import no_progress
from singalaut.train.material import Material, open_material
from singalaut.train.meters import step_figures
from singalaut.train.optim import adamw, scheduled_rate
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
    world = join_world()
    material = open_material(config, model, data, seed, prepared)
    store, steps = material.store, material.steps
    work.facts["data"] = store.about["provenance"]
    network = trainable(config, model, store.about["end_of_turn"], seed, world)
    check_device(network, config, model, world, max(config.micro_tokens, config.max_tokens))
    optimizer = adamw(
        network, config.learning_rate, config.weight_decay, config.precision, derive(seed, "adamw")
    )
    checkpoints = Checkpoints(work.scratch, network, optimizer, world, config.keep_checkpoints)
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
                _measure(network, material, config, step, work, world)
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
            else:
                bad.append(step)
                log.warning("step %d left out: loss %s, gradient norm %s", step, *meters.fault)
            if len(bad) >= config.max_bad_steps:
                checkpoints.finish()
                raise no_progress(bad, meters.fault, checkpoints, work)
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
    _measure(network, material, config, steps, work, world)
    watch.finish()
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
    network: Gemma3, material: Material, config: SftConfig, step: int, work: Work, world: World
) -> None:
    """The loss on what is held out, logged as it is before step `step`."""
    if not len(material.held_out):
        return
    micros = micro_batches(material.store, material.held_out, config.micro_tokens)
    losses = validate(network.eval(), micros, world)
    network.train()
    total, count = losses.sum((0, 1))
    if world.is_first:
        found = {
            f"validation_{name}": value for name, value in _by_name(losses, material.store).items()
        }
        work.log(step=step, validation_loss=float(total / max(1, count)), **found)
        log.info("step %d: validation loss %.4f", step, total / max(1, count))
