"""The stage of online reinforcement learning: ask, score, learn, again.

The model answers prompts through a Sampler; a Reward scores the answers; the policy moves towards
those that are better than the others of their prompt (Dr. GRPO, arXiv 2503.20783). What a step
asked and got is on disk before anything learns from it. With `overlap` a thread answers the next
step's prompts meanwhile: step k learns from answers of the weights before step k − 1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from singalaut.artifact import Work
from singalaut.contracts import Message, Reward, Sampler, derive
from singalaut.errors import DataError
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import copy_companions
from singalaut.progress import progress
from singalaut.rl.ahead import Ahead
from singalaut.rl.alarms import Watch, why_flat
from singalaut.rl.ask import Asking, Task, roll_out
from singalaut.rl.config import RlConfig
from singalaut.rl.curriculum import Order, Rated, choose
from singalaut.rl.difficulty import Trial
from singalaut.rl.figures import figures_of, measure
from singalaut.rl.learn import learn, reference_of
from singalaut.rl.plan import rl_estimate
from singalaut.rl.rollouts import Rollouts, load_rollouts, save_rollouts
from singalaut.rl.team import Team, form_team
from singalaut.rl.voices import Voice, voice_of
from singalaut.train.checkpoint import Checkpoints
from singalaut.train.estimate import tell_expected
from singalaut.train.meters import memory_gib
from singalaut.train.optim import adamw
from singalaut.train.replay import open_replay
from singalaut.train.watching import Asked, watch_stage
from singalaut.train.weights import stop_asked, trainable, write_model

log = logging.getLogger("singalaut")


def run_rl(
    config: RlConfig,
    *,
    model: Path,
    end_of_turn: int,
    tasks: Sequence[Task],
    held_out: Sequence[Task],
    engine_over: Callable[[Gemma3], Sampler],
    reward: Reward,
    work: Work,
    seed: int,
    content: str = "",
    store: Path | None = None,
    questions: Sequence[Sequence[Message]] = (),
    replayed: Sequence[Path | None] = (),
) -> None:
    """Let `model` learn from its own answers to `tasks`; a rerun goes on from the last checkpoint.

    `engine_over` makes an engine over the weights of a network. `content` identifies model and
    reward where rewards are kept from run to run, in the file `store`; `questions` are answered now
    and then, too; `replayed` has the file or folder of each source that is learned again. Writes
    `rollouts/`, `model/`, with an adapter `adapter/`, and the page
    `report/report.html`. Raises: DataError where nothing can be learned for too long;
    SystemExit 0, with a checkpoint, on SIGTERM.
    """
    team = form_team(config.sharded)
    network = trainable(config, model, end_of_turn, seed, team.cut)
    reference = reference_of(config, model, team)
    replay = open_replay(config.replay, model, replayed, seed)
    optimizer = adamw(network, config.learning_rate, 0.0, config.precision, derive(seed, "adamw"))
    voice = voice_of(config, network, model, engine_over, team)
    trial_store = store or work.scratch / "difficulty.sqlite"
    rated = _rated(config, tasks, voice, reward, content, trial_store, work, team)
    order = Order(rated, seed, config)
    asking = Asking(config, voice.sampler, reward, order.draw, seed, work.scratch, team)
    checkpoints = Checkpoints(work.scratch, network, optimizer, team.cut, base=model)
    start = checkpoints.load()
    done = [line for line in work.metrics() if "next_place" in line and line["step"] < start]
    team.world.wait()  # all have read before the first one writes
    if team.is_first:
        work.rewind(start)
    place = done[-1]["next_place"] if done else 0
    watch = Watch(done)
    voice.renew()
    own = Asked(questions if team.is_first else (), lambda _: voice.sampler, sleeps=False)
    tell_expected(lambda on: rl_estimate(config, network.config, on), team.world)
    shown = watch_stage(
        config, network, model, own, work, seed, team.world, steps=config.steps, start=start
    )
    saves = team.is_first or config.sharded
    with (
        progress("rl", config.steps, "step") as bar,
        stop_asked() as stop,
        Ahead(partial(_answers, asking, work), team.world.device) as ahead,
    ):
        bar.advance(start)
        for step in range(start, config.steps):
            shown.begin_step(step)  # the engine has nothing else to do now
            if step == start == 0 or (step and step % config.evaluate_every == 0):
                _measure(asking, held_out, step, work)
            rollouts = ahead.take(step, place)
            place = rollouts.next_place
            if config.overlap and step + 1 < config.steps:
                ahead.begin(step + 1, place)
            begin = time.monotonic()
            meters = learn(config, network, reference, optimizer, rollouts, step, team, replay)
            learned = time.monotonic()
            ahead.wait()  # before the checkpoint, which has not the weights they come from
            seconds = rollouts.seconds | {"learn": learned - begin}
            if config.overlap:
                seconds["wait"] = time.monotonic() - learned
            voice.renew()
            figures = figures_of(rollouts, meters, seconds)
            if team.is_first:
                memory = memory_gib(team.world)
                work.log(step=step, **figures, memory_gib=memory, next_place=place)
            watch.see(figures, step)
            if config.stop_after_flat_steps and watch.flat_steps >= config.stop_after_flat_steps:
                why, hint = why_flat(figures)
                what = f"in {watch.flat_steps} steps in a row {why}"
                raise DataError(what, where=work.path, hint=hint)
            bar.advance(reward=f"{figures['reward']:.3f}", length=f"{figures['mean_length']:.0f}")
            ends = team.world.any(stop.is_set())
            is_last = step + 1 == config.steps
            if saves and ((step + 1) % config.save_every == 0 or is_last or ends):
                checkpoints.save(step + 1)
                shown.saved()
            if ends and not is_last:
                checkpoints.finish()
                log.info("stopped as asked, after step %d; run again to go on", step)
                raise SystemExit(0)
    checkpoints.finish()
    _measure(asking, held_out, config.steps, work)
    shown.finish()
    work.facts["sampler"] = voice.sampler.statistics()
    if saves:
        write_model(network, config.adapter, model, work, seed, team.cut)
    if team.is_first:
        copy_companions(model, work.path / "model")
    team.world.wait()


def _answers(asking: Asking, work: Work, step: int, place: int) -> Rollouts:
    """What a step learns from: as it was stored, or asked for now and stored."""
    folder = work.path / "rollouts"
    rollouts = load_rollouts(folder, step)
    if rollouts is None:
        rollouts = roll_out(asking, place, step)
        if asking.team.is_first:
            save_rollouts(folder, step, rollouts)
    return rollouts


def _rated(
    config: RlConfig,
    tasks: Sequence[Task],
    voice: Voice,
    reward: Reward,
    content: str,
    store: Path,
    work: Work,
    team: Team,
) -> list[Rated]:
    """The prompts that are asked, chosen by their difficulty if that is wanted."""
    if config.difficulty is None:
        return [Rated(task, None) for task in tasks]
    voice.renew()
    trial = Trial(config, config.difficulty, voice.sampler, reward, content, store, team)
    rated, report = choose(trial, tasks, work.path)
    work.facts["difficulty"] = report
    return rated


def _measure(asking: Asking, held_out: Sequence[Task], step: int, work: Work) -> None:
    """Log the reward on what is held out, as it is before step `step`."""
    figures = measure(asking, held_out)
    if figures is not None and asking.team.is_first:
        work.log(step=step, **figures)
        parts = figures["held_out_by_part"]
        log.info(
            "step %d: held-out reward %.3f ± %.3f%s",
            step,
            figures["held_out_reward"],
            figures["held_out_standard_error"],
            f" ({', '.join(f'{name} {value:.3f}' for name, value in parts.items())})"
            if len(parts) > 1
            else "",
        )
