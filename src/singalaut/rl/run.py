"""The stage of online reinforcement learning: ask, score, learn, again.

The model answers prompts through a Sampler that reads the very weights that are trained; a Reward
scores the answers; the policy moves towards those that are better than the others of their prompt
(Dr. GRPO, arXiv 2503.20783). What a step asked and got is on disk before anything learns from it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from singalaut.artifact import Work
from singalaut.contracts import (
    Completion,
    Message,
    Request,
    Reward,
    Sample,
    Sampler,
    SamplingParams,
    derive,
)
from singalaut.errors import DataError
from singalaut.loss.dr_grpo import Baseline, advantages
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import copy_companions, load_model
from singalaut.progress import progress
from singalaut.rl.config import RlConfig
from singalaut.rl.plan import rl_estimate
from singalaut.rl.policy import Known, PolicyMeters, answer_logprobs, policy_step, rows_of
from singalaut.rl.rollouts import Rollout, Rollouts, load_rollouts, save_rollouts
from singalaut.train.checkpoint import Checkpoints
from singalaut.train.estimate import tell_expected
from singalaut.train.meters import memory_gib
from singalaut.train.optim import adamw
from singalaut.train.parallel import World, join_world
from singalaut.train.watching import Asked, watch_stage
from singalaut.train.weights import stop_asked, trainable, write_model

log = logging.getLogger("singalaut")
BASELINES: dict[str, Baseline] = {
    "dr_grpo": "mean",
    "rloo": "leave_one_out",
}
ALARM_STEPS = 10  # whose mean length an alarm compares with


@dataclass(frozen=True)
class Task:
    """A sample, its prompt as tokens, and its place among all that are drawn."""

    sample: Sample
    prompt: tuple[int, ...]


def run_rl(
    config: RlConfig,
    *,
    model: Path,
    end_of_turn: int,
    draw: Callable[[int, int], Sequence[tuple[int, Task]]],
    held_out: Sequence[Task],
    sampler_of: Callable[[Gemma3], Sampler],
    reward: Reward,
    work: Work,
    seed: int,
    questions: Sequence[Sequence[Message]] = (),
) -> None:
    """Let `model` learn from its own answers; a rerun goes on from the last checkpoint.

    `draw(first, count)` gives the tasks at places `first` … of an order without end; `sampler_of`
    an engine over the network's own weights, which answers `questions` now and then, too. Writes
    `rollouts/`, `model/`, with an adapter `adapter/`, and the page `report/report.html`. Raises:
    DataError where nothing can be learned for long; SystemExit 0, with a checkpoint, on SIGTERM.
    """
    world = join_world()
    if world.size > 1:
        raise DataError(
            f"reinforcement learning runs in one process, {world.size} were started",
            hint="start it without `torchrun`",
        )
    network = trainable(config, model, end_of_turn, seed, world)
    reference = _reference(config, model, world)
    optimizer = adamw(network, config.learning_rate, 0.0, config.precision, derive(seed, "adamw"))
    sampler = sampler_of(network)
    checkpoints = Checkpoints(work.scratch, network, optimizer, world, base=model)
    start = checkpoints.load()
    work.rewind(start)
    done = [line for line in work.metrics() if "next_place" in line]
    place = done[-1]["next_place"] if done else 0
    lengths = [line["mean_length"] for line in done[:ALARM_STEPS]]
    flat = 0
    if start:
        sampler.weights_changed()
    folder = work.path / "rollouts"
    own = Asked(questions, lambda _: sampler, sleeps=False)
    tell_expected(lambda on: rl_estimate(config, network.config, on), world)
    watch = watch_stage(
        config, network, model, own, work, seed, world, steps=config.steps, start=start
    )
    with progress("rl", config.steps, "step") as bar, stop_asked() as stop:
        bar.advance(start)
        for step in range(start, config.steps):
            watch.begin_step(step)
            if step == start == 0 or (step and step % config.evaluate_every == 0):
                _evaluate(config, sampler, reward, held_out, step, work)
            rollouts = load_rollouts(folder, step)
            if rollouts is None:
                rollouts = _roll_out(config, sampler, reward, draw, place, step, seed)
                save_rollouts(folder, step, rollouts)
            place = rollouts.next_place
            begin = time.monotonic()
            meters = _learn(config, network, reference, optimizer, rollouts, step)
            sampler.weights_changed()
            seconds = rollouts.seconds | {"learn": time.monotonic() - begin}
            figures = _figures(rollouts, meters, seconds)
            work.log(step=step, **figures, memory_gib=memory_gib(world), next_place=place)
            lengths = lengths if len(lengths) >= ALARM_STEPS else [*lengths, figures["mean_length"]]
            _alarm(figures, lengths, step)
            flat = 0 if meters is not None else flat + 1
            if config.stop_after_flat_steps and flat >= config.stop_after_flat_steps:
                raise DataError(
                    f"in {flat} steps in a row no prompt had answers of different reward",
                    where=work.path,
                    hint="take easier or harder prompts, or look at the reasons in `rollouts/`",
                )
            bar.advance(reward=f"{figures['reward']:.3f}", length=f"{figures['mean_length']:.0f}")
            ends = stop.is_set()
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps or ends:
                checkpoints.save(step + 1)
                watch.saved()
            if ends and step + 1 < config.steps:
                checkpoints.finish()
                log.info("stopped as asked, after step %d; run again to go on", step)
                raise SystemExit(0)
    checkpoints.finish()
    _evaluate(config, sampler, reward, held_out, config.steps, work)
    watch.finish()
    write_model(network, config.adapter, model, work, seed, world)
    copy_companions(model, work.path / "model")


def _roll_out(
    config: RlConfig,
    sampler: Sampler,
    reward: Reward,
    draw: Callable[[int, int], Sequence[tuple[int, Task]]],
    place: int,
    step: int,
    seed: int,
) -> Rollouts:
    """Answers to as many prompts as a step has, without those that teach nothing."""
    wanted, spent = config.prompts_per_step, 0
    kept: list[list[Rollout]] = []
    flat: list[list[Rollout]] = []
    seconds = {"generate": 0.0, "score": 0.0}
    while len(kept) < wanted and spent < wanted * (1 + config.refill):
        count = min(wanted - len(kept), wanted * (1 + config.refill) - spent)
        tasks = draw(place, count)
        place, spent = place + count, spent + count
        begin = time.monotonic()
        answers = _answers(config, sampler, tasks, seed)
        between = time.monotonic()
        groups = [
            _scored(config, reward, at, task, group)
            for (at, task), group in zip(tasks, answers, strict=True)
        ]
        seconds["generate"] += between - begin
        seconds["score"] += time.monotonic() - between
        for group in groups:
            (flat if _is_flat(group) else kept).append(group)
    found = kept[:wanted] or flat[:wanted]  # a step that teaches nothing is written down, too
    rollouts = Rollouts(
        tuple(answer for group in found for answer in group), len(found), len(flat), place, seconds
    )
    rewards = torch.from_numpy(rollouts.rewards)
    worth = advantages(rewards, BASELINES.get(config.method, "standardised"))
    return rollouts.with_advantages(worth.flatten().tolist())


def _answers(
    config: RlConfig, sampler: Sampler, tasks: Sequence[tuple[int, Task]], seed: int
) -> list[list[Completion]]:
    """The answers to each task, in order; their seeds come from the task's place."""
    requests = [
        Request(
            task.prompt,
            SamplingParams(
                n=config.samples,
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                seed=derive(seed, "rollout", at) & 0x7FFFFFFF,
                logprobs=True,
            ),
            id=str(number),
        )
        for number, (at, task) in enumerate(tasks)
    ]
    found: dict[tuple[int, int], Completion] = {}
    for completion in sampler.sample(requests):
        if completion.finish_reason == "error":
            raise DataError(f"a prompt could not be answered: {completion.error}")
        found[int(completion.request_id), completion.index] = completion
    return [
        [found[number, index] for index in range(config.samples)] for number in range(len(tasks))
    ]


def _scored(
    config: RlConfig, reward: Reward, place: int, task: Task, group: Sequence[Completion]
) -> list[Rollout]:
    sample = task.sample
    scores = reward.score(sample.messages, group, sample)
    rollouts = []
    for completion, score in zip(group, scores, strict=True):
        if completion.finish_reason == "length" and config.truncated == "zero":
            score = type(score)(0.0, score.parts, (*score.reasons, "cut off: 0"))
        assert completion.logprobs is not None
        rollouts.append(
            Rollout(
                sample.id,
                place,
                sample.language or "unknown",
                sample.source or "unknown",
                task.prompt,
                completion.token_ids,
                completion.logprobs,
                completion.text,
                completion.finish_reason,
                score,
                question="\n\n".join(str(message.content) for message in sample.messages),
            )
        )
    return rollouts


def _is_flat(group: Sequence[Rollout]) -> bool:
    """Whether all scored answers have the same reward, so that nothing can be learned."""
    rewards = [answer.reward for answer in group if answer.score.value is not None]
    return len(rewards) < 2 or max(rewards) - min(rewards) < 1e-6


def _learn(
    config: RlConfig,
    network: Gemma3,
    reference: Gemma3 | None,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    step: int,
) -> PolicyMeters | None:
    """The updates of a step; None where there was nothing to learn."""
    if not any(answer.advantage for answer in rollouts.answers):
        return None
    known = None
    if config.updates > 1 or config.kl:
        known = _known(config, network, reference, rollouts)
    rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    meters = None
    for _ in range(config.updates):
        meters = policy_step(network, optimizer, rollouts, config, rate, known)
        if not meters.is_finite:
            log.warning("step %d left out: loss %s", step, meters.loss)
    return meters


@torch.no_grad()
def _known(
    config: RlConfig, network: Gemma3, reference: Gemma3 | None, rollouts: Rollouts
) -> list[Known]:
    """Log-probabilities of all answers before the update, and those of the reference."""
    found: dict[int, Known] = {}
    for row in rows_of(rollouts.answers, config.micro_tokens):
        chosen = [rollouts.answers[number] for number in row]
        old, _ = answer_logprobs(network, chosen, config.temperature)
        theirs: Sequence[torch.Tensor | None] = [None] * len(row)
        if reference is not None:
            theirs, _ = answer_logprobs(reference, chosen, config.temperature)
        for number, mine, other in zip(row, old, theirs, strict=True):
            found[number] = Known(mine, other)
    return [found[number] for number in range(len(rollouts.answers))]


def _reference(config: RlConfig, model: Path, world: World) -> Gemma3 | None:
    """The starting model, where the distance to it counts."""
    if not config.kl:
        return None
    dtype = torch.float32 if config.precision == "float32" else torch.bfloat16
    return load_model(model, dtype, world.device).requires_grad_(False)


def _figures(
    rollouts: Rollouts, meters: PolicyMeters | None, seconds: dict[str, float]
) -> dict[str, object]:
    """What a step's line of metrics says."""
    answers, rewards = rollouts.answers, rollouts.rewards
    solved = np.nan_to_num(rewards) >= 1
    tokens = sum(len(a.tokens) for a in answers)
    drawn = rollouts.groups + rollouts.flat_groups
    figures: dict[str, object] = {
        "reward": _mean(rewards.ravel()),
        "reward_by_language": _by(answers, lambda a: a.language),
        "reward_by_source": _by(answers, lambda a: a.source),
        "reward_parts": _parts(answers),
        "pass_at_1": float(solved.mean()),
        f"pass_at_{rewards.shape[1]}": float(solved.any(1).mean()),
        "flat_groups": rollouts.flat_groups / max(1, drawn),
        "unscored": float(np.isnan(rewards).mean()),
        "mean_length": tokens / len(answers),
        "truncated": sum(a.is_truncated for a in answers) / len(answers),
        "tokens": tokens,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    if meters is not None:
        figures |= {
            "loss": meters.loss,
            "gradient_norm": meters.gradient_norm,
            "entropy": meters.entropy,
            "clipped_low": meters.clipped_low,
            "clipped_high": meters.clipped_high,
            "kl": meters.kl,
            "learned_tokens": meters.tokens,
        }
        if not math.isnan(meters.mismatch):
            figures["mismatch"] = meters.mismatch
            figures["largest_mismatch"] = meters.largest_mismatch
    return figures


def _evaluate(
    config: RlConfig,
    sampler: Sampler,
    reward: Reward,
    held_out: Sequence[Task],
    step: int,
    work: Work,
) -> None:
    """The reward of greedy answers to prompts that are never learned from."""
    if not held_out:
        return
    params = SamplingParams(max_tokens=config.max_tokens, temperature=0.0)
    requests = [
        Request(task.prompt, params, id=str(number)) for number, task in enumerate(held_out)
    ]
    values = []
    for completion in sampler.sample(requests):
        sample = held_out[int(completion.request_id)].sample
        values.append((sample, reward.score(sample.messages, [completion], sample)[0].value))
    rewards = np.array([np.nan if value is None else value for _, value in values])
    by_language: dict[str, list[float]] = {}
    by_source: dict[str, list[float]] = {}
    for sample, value in values:
        if value is not None:
            by_language.setdefault(sample.language or "unknown", []).append(value)
            by_source.setdefault(sample.source or "unknown", []).append(value)
    mean, count = _mean(rewards), int(np.isfinite(rewards).sum())
    spread = float(np.nanstd(rewards) / math.sqrt(count)) if count > 1 else 0.0
    work.log(
        step=step,
        held_out_reward=mean,
        held_out_standard_error=spread,
        held_out_by_language={k: sum(v) / len(v) for k, v in sorted(by_language.items())},
        held_out_by_source={k: sum(v) / len(v) for k, v in sorted(by_source.items())},
    )
    log.info("step %d: held-out reward %.3f ± %.3f", step, mean, spread)


def _alarm(figures: dict[str, object], lengths: Sequence[float], step: int) -> None:
    """Say what looks like a reward that is being tricked."""
    mean = figures["mean_length"]
    assert isinstance(mean, float)
    if len(lengths) >= ALARM_STEPS and lengths[0]:
        usual = sum(lengths) / len(lengths)
        if mean > 2 * usual or mean < usual / 3:
            log.warning(
                "step %d: answers have %.0f tokens, at the beginning %.0f", step, mean, usual
            )
    if figures["flat_groups"] == 1:
        log.warning("step %d: no prompt had answers of different reward", step)


def _by(answers: Sequence[Rollout], label: Callable[[Rollout], str]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for answer in answers:
        found.setdefault(label(answer), []).append(answer.reward)
    return {name: _mean(np.array(values)) for name, values in sorted(found.items())}


def _parts(answers: Sequence[Rollout]) -> dict[str, float]:
    """The mean of each part of the reward, over the answers that it applied to."""
    found: dict[str, list[float]] = {}
    for answer in answers:
        for name, value in answer.score.parts.items():
            found.setdefault(name, []).append(value)
    return {name: _mean(np.array(values)) for name, values in sorted(found.items())}


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
