"""The stage that chooses prompts, by gradients of the loss of reinforcement learning.

The model answers every prompt of the pool and of the targets some times, and the answers get their
rewards. A prompt's gradient is that of Dr. GRPO's loss over its answers (arXiv 2503.20783); what
does not depend on that is as for conversations (`run.py`). The adapter is warmed up on these same
answers; where the temperature is 1, at which the engine tells its probabilities, tokens count by
the truncated ratio of those of now to them.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from singalaut.artifact import Work, write_atomic
from singalaut.contracts import Reward, Sample, Sampler, derive
from singalaut.data.mix import shuffled
from singalaut.data.pack import best_fit
from singalaut.errors import DataError
from singalaut.loss.dr_grpo import advantages, policy_loss, truncated_importance
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import load_model
from singalaut.model.lora import add_adapter
from singalaut.progress import progress
from singalaut.rl.ask import Asking, Task, groups_of
from singalaut.rl.config import RlConfig
from singalaut.rl.kept import Kept
from singalaut.rl.policy import answer_logprobs, is_learned, policy_step, row_tokens
from singalaut.rl.rollouts import (
    Rollout,
    Rollouts,
    is_lively,
    load_rollouts,
    save_rollouts,
)
from singalaut.select.choose import best_of_each, check_quotas, quota_counts
from singalaut.select.config import SelectPromptsConfig
from singalaut.select.gradients import SampleGradients, gradients_at_once
from singalaut.select.report import scored_row, write_choice
from singalaut.select.scores import drawn, influence, served, worth
from singalaut.select.warmup import SampleSet, measure_sets
from singalaut.train.parallel import World
from singalaut.train.weights import stop_at

log = logging.getLogger("singalaut")
BLOCK = 64  # prompts that are answered in one call; a killed run asks at most so many again


@dataclass(frozen=True)
class _Answered:
    """The prompts of a set from whose answers something can be learned: [P] places, and answers.

    `left` counts the others by what they lack.
    """

    places: np.ndarray
    groups: list[list[Rollout]]
    left: dict[str, int]

    def rollouts(self, order: Sequence[int]) -> Rollouts:
        """Some of them as the answers of a step."""
        answers = tuple(answer for number in order for answer in self.groups[number])
        return Rollouts(answers, len(order), 0, 0, {})

    def tokens(self) -> np.ndarray:
        return np.array([row_tokens(group) for group in self.groups])


def run_select_prompts(
    config: SelectPromptsConfig,
    *,
    model: Path,
    end_of_turn: int,
    pool: Sequence[Task],
    targets: Sequence[Sequence[Task]],
    engine_over: Callable[[Gemma3], Sampler],
    reward: Reward,
    work: Work,
    seed: int,
) -> None:
    """Choose prompts of the pool; a rerun takes over all answers and blocks of gradients.

    Writes `data/prompts.jsonl`, which `rl` and `pairs` take, `answers/` and `report/`. Raises:
    DataError where no answers differ in reward; RecipeError for a quota that cannot be used.
    """
    if config.quota_by != "nothing":  # of what is not there is told before the work
        check_quotas(sorted(set(_labels(config.quota_by, pool))), config.quotas)
    if config.method == "random":
        candidates, scores, answered = np.arange(len(pool)), drawn(len(pool), seed), None
    else:
        world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        network = load_model(model, torch.float32, world.device, vision=False).train()
        stop_at(network, end_of_turn)
        named = [("pool", pool)]
        if config.method == "influence":
            names = [target.name for target in config.targets]
            named += list(zip(names, targets, strict=True))
        sets = _answer_all(config, named, engine_over(network), reward, work, seed)
        answered = sets[0]
        candidates = answered.places
        scores = _scores(config, network, sets, work, seed, world)
    chosen = best_of_each(_quotas(config, pool, candidates), worth(scores))
    _write(pool, np.sort(candidates[chosen]), work)
    _report(config, pool, candidates, answered, scores, chosen, work)
    if len(chosen) < min(wanted := _wanted(config, pool), len(pool)):
        log.warning("%d were wanted; there is nothing to learn from the others", wanted)
    log.info("%d of %d prompts chosen by %s", len(chosen), len(pool), config.method)


def _answer_all(
    config: SelectPromptsConfig,
    named: Sequence[tuple[str, Sequence[Task]]],
    sampler: Sampler,
    reward: Reward,
    work: Work,
    seed: int,
) -> list[_Answered]:
    """The answers of all sets, scored. Raises: DataError for a set that nothing is learned from."""
    learner = _learner(config)
    found = []
    with progress("answers", sum(len(tasks) for _, tasks in named), "prompt") as bar:
        for number, (name, tasks) in enumerate(named):
            scratch = work.scratch / f"answers-{number}"
            asking = Asking(learner, sampler, reward, lambda *_: (), derive(seed, name), scratch)
            lively: list[tuple[int, list[Rollout]]] = []
            left, failures = Counter[str](), Counter[str]()
            for begin in range(0, len(tasks), BLOCK):
                block = list(enumerate(tasks[begin : begin + BLOCK], start=begin))
                rollouts = _ask_block(asking, work.path / "answers" / str(number), begin, block)
                for group in _groups(rollouts, config.samples):
                    if (lack := _lack(group, learner)) is None:
                        lively.append((group[0].place, group))
                    else:
                        left[lack] += 1
                failures.update(rollouts.failures)
                bar.advance(len(block))
            left["failed"] = failures.total()
            for reason, count in failures.items():
                log.warning("%s: %d prompts left out: %s", name, count, reason)
            log.info("%s: the answers to %d of %d prompts differ", name, len(lively), len(tasks))
            if not lively:
                raise _nothing_to_learn(name, left, failures, work.path / "answers" / str(number))
            places, groups = zip(*lively, strict=True)
            counts = {lack: left[lack] for lack in ("flat", "cut_off", "failed")}
            found.append(_Answered(np.array(places), list(groups), counts))
    sampler.sleep()
    return found


def _nothing_to_learn(
    name: str, left: Counter[str], failures: Counter[str], where: Path
) -> DataError:
    if left["flat"] + left["cut_off"] == 0:
        what = f"no prompt of `{name}` could be answered: {failures.most_common(1)[0][0]}"
        return DataError(what, where=where)
    return DataError(
        f"nothing can be learned from `{name}`: the answers to {left['flat']} prompts have one "
        f"reward each, those to {left['cut_off']} were cut off",
        where=where,
        hint="take other prompts, more `samples`, a higher `temperature`, or more `max_tokens`",
    )


def _learner(config: SelectPromptsConfig) -> RlConfig:
    """The settings of learning from such answers by reinforcement."""
    names = ("samples", "max_tokens", "max_prompt_tokens", "temperature", "truncated")
    return RlConfig.model_validate(
        {name: getattr(config, name) for name in (*names, "prompts", "reward", "micro_tokens")}
        | {"steps": config.warmup_steps, "prompts_per_step": config.batch_size}
    )


def _ask_block(asking: Asking, folder: Path, begin: int, block: list[tuple[int, Task]]) -> Rollouts:
    """The answers to a block of prompts: as they were stored, or asked for now and stored."""
    rollouts = load_rollouts(folder, begin)
    if rollouts is not None:
        return rollouts
    seconds = {"generate": 0.0, "score": 0.0}
    with Kept(asking.scratch, begin) as kept:
        asking.sampler.weights_changed()  # shared beginnings of earlier blocks would change numbers
        found = groups_of(asking, block, kept, 1, seconds)
    failures = Counter(group for group in found if isinstance(group, str))
    answers = tuple(answer for group in found if not isinstance(group, str) for answer in group)
    rollouts = Rollouts(
        answers, len(found) - failures.total(), 0, begin + len(block), seconds, dict(failures)
    )
    if answers:
        values = advantages(torch.from_numpy(rollouts.rewards))
        rollouts = rollouts.with_advantages(values.flatten().tolist())
    save_rollouts(folder, begin, rollouts)
    return rollouts


def _groups(rollouts: Rollouts, samples: int) -> Iterator[list[Rollout]]:
    for begin in range(0, len(rollouts.answers), samples):
        yield list(rollouts.answers[begin : begin + samples])


def _lack(group: Sequence[Rollout], learner: RlConfig) -> str | None:
    """Why nothing can be learned from a prompt's answers, if so."""
    if not is_lively(np.array([answer.reward for answer in group])):
        return "flat"
    return None if any(is_learned(answer, learner) for answer in group) else "cut_off"


def _scores(
    config: SelectPromptsConfig,
    network: Gemma3,
    sets: Sequence[_Answered],
    work: Work,
    seed: int,
    world: World,
) -> np.ndarray:
    """What each prompt that teaches something is worth, [M], or for each target, [M, K]."""
    if config.method == "spread":
        return np.array([np.nanstd([a.reward for a in group]) for group in sets[0].groups])
    adapter, learner = config.adapter, _learner(config)
    add_adapter(network, adapter.rank, adapter.alpha, adapter.targets, derive(seed, "adapter"))
    numbers = np.arange(len(sets[0].groups))

    def warm_step(step: int, optimizer: torch.optim.Optimizer, rate: float) -> tuple[float, float]:
        order = shuffled(numbers, seed, "warm-up", step)[: config.batch_size]
        meters = policy_step(network, optimizer, sets[0].rollouts(order.tolist()), learner, rate)
        return meters.loss, meters.gradient_norm

    samples = [SampleSet(each.tokens(), _gradients_of(network, each, learner)) for each in sets]
    measured = measure_sets(config, network, warm_step, samples, work, seed, world)
    if config.method == "gradient-norm":
        return np.stack([features.norms for features in measured[0]], 1).mean(1)
    rates = [config.rate(end - 1) for end in config.measured_after()]
    return influence(measured[0], measured[1:], rates)


def _gradients_of(
    network: Gemma3, each: _Answered, learner: RlConfig
) -> Callable[[np.ndarray], Iterator[tuple[np.ndarray, SampleGradients]]]:
    tokens = each.tokens()

    def gradients_of(places: np.ndarray) -> Iterator[tuple[np.ndarray, SampleGradients]]:
        is_short = tokens[places] <= learner.micro_tokens
        short = places[is_short]
        packing = best_fit(tokens[short], learner.micro_tokens)
        rows = [short[packing.row(number)] for number in range(packing.num_rows)]
        for at in [*rows, *places[~is_short, None]]:
            yield at, prompt_gradients(network, [each.groups[place] for place in at], learner)

    return gradients_of


def prompt_gradients(
    model: Gemma3, groups: Sequence[Sequence[Rollout]], learner: RlConfig
) -> SampleGradients:
    """The gradient of each prompt's own loss, the mean over its answers."""
    lengths = tuple(row_tokens(group) for group in groups)
    return gradients_at_once(model, lengths, lambda: prompt_losses(model, groups, learner))


def prompt_losses(model: Gemma3, groups: Sequence[Sequence[Rollout]], learner: RlConfig) -> Tensor:
    """[n]: −Σ min(π / π_first, cap) A ∇log π of each prompt, over answers and `max_tokens`.

    The value is that of a policy's loss before an update; the gradient is what counts.
    """
    answers = [answer for group in groups for answer in group]
    logprobs, *_ = answer_logprobs(model, answers, learner.temperature)
    now = pad_sequence(logprobs, batch_first=True)
    device = now.device
    exists = pad_sequence([torch.ones_like(part) for part in logprobs], batch_first=True) > 0
    taught = torch.tensor([is_learned(answer, learner) for answer in answers], device=device)
    mask = exists & taught[:, None]
    first = [torch.tensor(answer.logprobs, device=device) for answer in answers]
    sampled = pad_sequence(first, batch_first=True).float()
    value = torch.tensor([a.advantage for a in answers], device=device, dtype=torch.float32)
    loss = policy_loss(now, now.detach(), value, mask, clip_low=1.0, clip_high=1.0)
    if learner.temperature == 1:  # at which the engine tells its own
        loss = loss * truncated_importance(now.detach(), sampled, mask, learner.importance_cap)
    prompt = torch.arange(len(groups), device=device).repeat_interleave(
        torch.tensor([len(group) for group in groups], device=device)
    )
    sums = loss.new_zeros(len(groups)).index_add(0, prompt, loss.sum(1))
    return sums / (learner.samples * learner.max_tokens)


def _wanted(config: SelectPromptsConfig, pool: Sequence[Task]) -> int:
    return config.count or max(1, round((config.share or 0) * len(pool)))


def _quotas(
    config: SelectPromptsConfig, pool: Sequence[Task], candidates: np.ndarray
) -> list[tuple[np.ndarray, int]]:
    """The candidates of each group that has its own quota, and how many of them are chosen."""
    count = _wanted(config, pool)
    if config.quota_by == "nothing":
        return [(np.arange(len(candidates)), min(count, len(candidates)))]
    there = Counter(_labels(config.quota_by, pool))
    names = sorted(there)
    labels = _labels(config.quota_by, [pool[place] for place in candidates.tolist()])
    groups = np.array([names.index(label) for label in labels])
    counts = quota_counts(groups, names, config.quotas, count, there)
    return [(np.flatnonzero(groups == group), number) for group, number in counts.items()]


def _labels(column: str, tasks: Sequence[Task]) -> list[str]:
    return [_label(task.sample, column) for task in tasks]


def _label(sample: Sample, column: str) -> str:
    return (sample.language if column == "language" else sample.source) or "unknown"


def _write(pool: Sequence[Task], chosen: np.ndarray, work: Work) -> None:
    """The chosen prompts as rows that `rl` and `pairs` read, in the order of the pool."""
    (work.path / "data").mkdir(exist_ok=True)
    rows = (_as_row(pool[place].sample) for place in chosen.tolist())
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomic(work.path / "data" / "prompts.jsonl", text.encode())


def _as_row(sample: Sample) -> dict[str, Any]:
    row = {
        "id": sample.id,
        "messages": [{"role": m.role, "content": m.content} for m in sample.messages],
        "language": sample.language,
        "source": sample.source,
        "reference": sample.reference,
        "constraints": [dict(constraint) for constraint in sample.constraints],
    }
    return {name: value for name, value in row.items() if value not in (None, [])}


def _report(
    config: SelectPromptsConfig,
    pool: Sequence[Task],
    candidates: np.ndarray,
    answered: _Answered | None,
    scores: np.ndarray,
    chosen: np.ndarray,
    work: Work,
) -> None:
    serves = served(scores) if scores.ndim == 2 else None
    names = [target.name for target in config.targets]
    rows = []
    for number, place in enumerate(candidates.tolist()):
        sample = pool[place].sample
        row = {
            "source": _label(sample, "source"),
            "row": sample.id,
            "language": _label(sample, "language"),
            **scored_row(scores, serves, names, number),
        }
        if answered is not None:
            row["rewards"] = [answer.score.value for answer in answered.groups[number]]
        rows.append(row)
    about = {"method": config.method, **({} if answered is None else answered.left)}
    there = [{name: _label(task.sample, name) for name in ("language", "source")} for task in pool]
    report = write_choice(work.path / "report", about, rows, scores, chosen, names, there)
    told = ("pool", *about, "chosen", "languages", "sources", "targets")
    work.facts["selection"] = {name: report[name] for name in told}
