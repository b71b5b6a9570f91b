"""What a step's line of metrics says, and what of it deserves a warning."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from singalaut.contracts import Completion, Request, SamplingParams
from singalaut.rl.ask import WHOLE, Asking, Task, reason_of
from singalaut.rl.policy import PolicyMeters
from singalaut.rl.rollouts import Rollouts

log = logging.getLogger("singalaut")
ALARM_STEPS = 10  # whose mean length an alarm compares with
OLD_WEIGHTS = 0.5  # nats a token; engine and trainer differ by 0.01 where both have one model


def figures_of(
    rollouts: Rollouts, meters: PolicyMeters | None, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Rewards by language and source, lengths, and what the update measured."""
    answers, rewards = rollouts.answers, rollouts.rewards
    solved = np.nan_to_num(rewards) >= 1
    tokens = sum(len(a.tokens) for a in answers)
    taught = 0 if rollouts.is_flat else rollouts.groups
    drawn = taught + rollouts.flat_groups
    figures: dict[str, Any] = {
        "reward": _mean(rewards.ravel()),
        "reward_by_language": _by_label((a.language, a.reward) for a in answers),
        "reward_by_source": _by_label((a.source, a.reward) for a in answers),
        "reward_parts": _by_label((k, v) for a in answers for k, v in a.score.parts.items()),
        "pass_at_1": float(solved.mean()),
        f"pass_at_{rewards.shape[1]}": float(solved.any(1).mean()),
        "flat_groups": rollouts.flat_groups / max(1, drawn),
        "unscored": float(np.isnan(rewards).mean()),
        "mean_length": tokens / len(answers),
        "truncated": sum(a.is_truncated for a in answers) / len(answers),
        "tokens": tokens,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    if rollouts.failures:
        figures["failures"] = rollouts.failures
    if meters is not None:
        figures |= {
            "loss": meters.loss,
            "gradient_norm": meters.gradient_norm,
            "entropy": meters.entropy,
            "clipped_low": meters.clipped_low,
            "clipped_high": meters.clipped_high,
            "kl": meters.kl,
            "learned_tokens": meters.tokens,
            "mismatch": meters.mismatch,
            "largest_mismatch": meters.largest_mismatch,
        }
        if meters.replay_loss is not None:
            figures["replay_loss"] = meters.replay_loss
    return figures


class Watch:
    """Warns of what looks like a reward that is being tricked, or like an engine left behind.

    Begins with the lines of metrics that an earlier run of the stage has left.
    """

    def __init__(self, lines: Sequence[Mapping[str, Any]]):
        self.flat_steps = 0
        """Steps in a row, up to now, in which there was nothing to learn."""
        self._lengths: list[float] = []
        for line in lines:
            self._count(line)

    def see(self, figures: Mapping[str, Any], step: int) -> None:
        """Count a step, and say what is odd about it."""
        mean = figures["mean_length"]
        if len(self._lengths) >= ALARM_STEPS and self._lengths[0]:
            usual = sum(self._lengths) / len(self._lengths)
            if mean > 2 * usual or mean < usual / 3:
                log.warning("step %d: answers have %.0f tokens, before %.0f", step, mean, usual)
                self._lengths.clear()  # say so again only if they change as much again
        if figures["flat_groups"] == 1:
            log.warning(
                "step %d: no prompt had answers of different reward, %d in a row",
                step,
                self.flat_steps + 1,
            )
        if figures["unscored"] == 1:
            log.warning("step %d: no answer could be scored; `rollouts/` has the reasons", step)
        if figures.get("mismatch", 0) > OLD_WEIGHTS:
            log.warning(
                "step %d: engine and trainer differ by %.2f nats a token: have they other weights?",
                step,
                figures["mismatch"],
            )
        for reason, count in figures.get("failures", {}).items():
            log.warning("step %d: %d prompts got no answers: %s", step, count, reason)
        self._count(figures)

    def _count(self, figures: Mapping[str, Any]) -> None:
        self.flat_steps = 0 if "loss" in figures else self.flat_steps + 1
        if len(self._lengths) < ALARM_STEPS:
            self._lengths.append(figures["mean_length"])


def measure(asking: Asking, held_out: Sequence[Task]) -> dict[str, Any] | None:
    """The reward of greedy answers to prompts that are never learned from."""
    if not held_out:
        return None
    params = SamplingParams(max_tokens=asking.config.max_tokens, temperature=0.0)
    share = asking.team.share(range(len(held_out)))
    requests = [Request(held_out[n].prompt, params, id=str(n)) for n in share]
    answers: dict[int, Completion] = {}
    for completion in asking.sampler.sample(requests) if requests else ():
        answers[int(completion.request_id)] = completion
    values: list[float | None] = []
    failures: list[str] = []
    for number in share:
        answer, sample = answers.get(number), held_out[number].sample
        if answer is None or answer.finish_reason not in WHOLE:
            failures.append("no answer came" if answer is None else reason_of(answer))
            values.append(None)
        else:
            values.append(asking.reward.score(sample.messages, [answer], sample)[0].value)
    merged = asking.team.merge(values, lambda value: value, lambda value: value)
    for reason, count in Counter(failures).items():
        log.warning("%d held-out prompts got no answers: %s", count, reason)
    rewards = np.array([np.nan if value is None else value for value in merged])
    scored = [
        (task.sample, value)
        for task, value in zip(held_out, merged, strict=True)
        if value is not None
    ]
    count = int(np.isfinite(rewards).sum())
    if not count:
        log.warning("no answer to a held-out prompt could be scored")
    return {
        "held_out_reward": _mean(rewards),
        "held_out_standard_error": (
            float(np.nanstd(rewards) / math.sqrt(count)) if count > 1 else 0.0
        ),
        "held_out_by_language": _by_label((s.language, value) for s, value in scored),
        "held_out_by_source": _by_label((s.source, value) for s, value in scored),
    }


def _by_label(values: Iterable[tuple[str | None, float]]) -> dict[str, float]:
    """The mean of each label's values."""
    found: dict[str, list[float]] = {}
    for label, value in values:
        found.setdefault(label or "unknown", []).append(value)
    return {name: _mean(np.array(each)) for name, each in sorted(found.items())}


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
