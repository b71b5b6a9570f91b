"""The answers of one step: prompts are drawn, answered, scored, and kept where they differ.

What is asked of a Sampler and how scores become advantages; who learns from them is not known here.
Shapes: P prompts, G answers to each.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from singalaut.contracts import Completion, Request, Reward, Sample, Sampler, SamplingParams, derive
from singalaut.errors import DataError
from singalaut.loss.dr_grpo import Baseline, advantages
from singalaut.rl.config import RlConfig
from singalaut.rl.kept import Kept
from singalaut.rl.rollouts import Rollout, Rollouts, as_row, from_row, is_lively
from singalaut.rl.team import ALONE, Team

BASELINES: dict[str, Baseline] = {"dr_grpo": "mean", "rloo": "leave_one_out"}
WHOLE = ("stop", "length")  # how an answer ends that can be learned from
Group = list[Rollout] | str  # the answers to a prompt, or why there are none


@dataclass(frozen=True)
class Task:
    """A sample and its prompt as tokens."""

    sample: Sample
    prompt: tuple[int, ...]


Draw = Callable[[int, int], Sequence[tuple[int, Task]]]


@dataclass(frozen=True)
class Asking:
    """Who is asked, in which order what, and who judges: all that steps have in common.

    `draw(first, count)` gives the tasks at places `first` … of an order without end. Answers are
    kept in `scratch` as they come.
    """

    config: RlConfig
    sampler: Sampler
    reward: Reward
    draw: Draw
    seed: int
    scratch: Path
    team: Team = ALONE


def roll_out(asking: Asking, place: int, step: int) -> Rollouts:
    """Answers to as many prompts as a step has, without those that teach nothing.

    Raises: DataError where not one prompt could be answered.
    """
    config = asking.config
    wanted, spent, calls = config.prompts_per_step, 0, 0
    kept: list[list[Rollout]] = []
    flat: list[list[Rollout]] = []
    failures: Counter[str] = Counter()
    seconds = {"generate": 0.0, "score": 0.0}
    with Kept(asking.scratch, step, asking.team.rank) as answers:
        while len(kept) < wanted and spent < wanted * (1 + config.refill):
            count = min(wanted - len(kept), wanted * (1 + config.refill) - spent)
            tasks = asking.draw(place, count)
            place, spent, calls = place + count, spent + count, calls + 1
            for group in groups_of(asking, tasks, answers, calls, seconds):
                if isinstance(group, str):
                    failures[group] += 1
                else:
                    rewards = np.array([answer.reward for answer in group])
                    (kept if is_lively(rewards) else flat).append(group)
    found = kept[:wanted] or flat[:wanted]  # a step that teaches nothing is written down, too
    if not found:
        raise DataError(
            f"no prompt of step {step} could be answered: {failures.most_common(1)[0][0]}",
            hint="the answers of all steps before are kept; run again to go on",
        )
    rollouts = Rollouts(
        tuple(answer for group in found for answer in group),
        len(found),
        len(flat),
        place,
        seconds,
        dict(failures),
    )
    worth = advantages(
        torch.from_numpy(rollouts.rewards), BASELINES.get(config.method, "standardised")
    )
    return rollouts.with_advantages(worth.flatten().tolist())


def ask(
    asking: Asking, tasks: Sequence[tuple[int, Task]], kept: Kept, calls: int = 1
) -> list[list[Completion] | str]:
    """The answers to each task, in order, or why there are none; what is kept is not asked again.

    An answer's seed comes from the task's place. Where an answer's numbers depend on what else is
    answered at the same time, either all of a call's answers are taken from what is kept, or none.
    """
    config, unit = asking.config, asking.config.engine.keeps
    places = [(at, index) for at, _ in tasks for index in range(config.samples)]
    lacking = set(places) - kept.found.keys()
    if unit == "call" and lacking:
        lacking = set(places)
        if calls > 1:
            asking.sampler.weights_changed()  # beginnings that are shared would change numbers, too
    elif unit == "prompt":
        unfinished = {at for at, _ in lacking}
        lacking = {(at, index) for at, index in places if at in unfinished}
    requests = []
    for at, task in tasks:
        indices = tuple(index for index in range(config.samples) if (at, index) in lacking)
        if indices:
            only = None if len(indices) == config.samples else indices
            sampling = _sampling(config, at, asking.seed)
            requests.append(Request(task.prompt, sampling, str(at), only=only))
    failures: dict[int, str] = {}
    for completion in asking.sampler.sample(requests) if requests else ():
        at = int(completion.request_id)
        if completion.finish_reason not in WHOLE:
            failures[at] = reason_of(completion)
        elif completion.logprobs is None or len(completion.logprobs) != len(completion.token_ids):
            failures[at] = "an answer came without its tokens and their log-probabilities"
        elif not completion.token_ids:
            failures[at] = "an answer has no tokens"
        else:
            kept.add(at, completion)
    found: list[list[Completion] | str] = []
    for at, _ in tasks:
        mine = [kept.found.get((at, index)) for index in range(config.samples)]
        whole = [completion for completion in mine if completion is not None]
        if at not in failures and len(whole) < config.samples:
            failures[at] = f"{len(whole)} of {config.samples} answers came"
        found.append(failures.get(at) or whole)
    return found


def reason_of(completion: Completion) -> str:
    """Why an answer is none, without what tells one such answer from another."""
    said = (completion.error or "").partition("\n")[0]
    return said or f"an answer ended with `{completion.finish_reason}`"


def groups_of(
    asking: Asking,
    tasks: Sequence[tuple[int, Task]],
    kept: Kept,
    calls: int,
    seconds: dict[str, float],
) -> list[Group]:
    """The scored answers to each task; every process of a job answers and scores its share."""
    begin = time.monotonic()
    share = asking.team.share(tasks)
    answers = ask(asking, share, kept, calls)
    between = time.monotonic()
    groups: list[Group] = [
        group if isinstance(group, str) else _scored(asking, at, task, group)
        for (at, task), group in zip(share, answers, strict=True)
    ]
    seconds["generate"] += between - begin
    seconds["score"] += time.monotonic() - between
    return asking.team.merge(groups, _encoded, _decoded)


def _sampling(config: RlConfig, place: int, seed: int) -> SamplingParams:
    return SamplingParams(
        n=config.samples,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=derive(seed, "rollout", place) & 0x7FFFFFFF,
        logprobs=True,
    )


def _scored(asking: Asking, place: int, task: Task, group: Sequence[Completion]) -> list[Rollout]:
    sample = task.sample
    scores = asking.reward.score(sample.messages, group, sample)
    rollouts = []
    for completion, score in zip(group, scores, strict=True):
        if completion.finish_reason == "length" and asking.config.truncated == "zero":
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


def _encoded(group: Group) -> Any:
    return group if isinstance(group, str) else [as_row(answer) for answer in group]


def _decoded(group: Any) -> Group:
    return group if isinstance(group, str) else [from_row(row) for row in group]
