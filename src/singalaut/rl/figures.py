"""What a step's line of metrics says: rewards, lengths, languages, what the update measured."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from singalaut.contracts import Completion, Request, SamplingParams
from singalaut.rl.ask import WHOLE, Asking, Task, reason_of
from singalaut.rl.policy import PolicyMeters
from singalaut.rl.rollouts import Rollout, Rollouts
from singalaut.verify.constraints.check import in_language
from singalaut.verify.form import repeated_share

log = logging.getLogger("singalaut")
READ_ANSWERS = 64  # of a step, whose language and repetitions are looked at (2 ms each)
REASONS = 3


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
        **_texts(answers[:: -(-len(answers) // READ_ANSWERS)]),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    unscored = Counter("; ".join(a.score.reasons) for a in answers if a.score.value is None)
    if unscored:
        figures["unscored_because"] = dict(unscored.most_common(REASONS))
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
    found: list[tuple[float | None, Mapping[str, float]]] = []
    failures: list[str] = []
    for number in share:
        answer, sample = answers.get(number), held_out[number].sample
        if answer is None or answer.finish_reason not in WHOLE:
            failures.append("no answer came" if answer is None else reason_of(answer))
            found.append((None, {}))
        else:
            score = asking.reward.score(sample.messages, [answer], sample)[0]
            found.append((score.value, score.parts))
    merged = asking.team.merge(found, list, tuple)
    for reason, count in Counter(failures).items():
        log.warning("%d held-out prompts got no answers: %s", count, reason)
    rewards = np.array([np.nan if value is None else value for value, _ in merged])
    scored = [
        (task.sample, value)
        for task, (value, _) in zip(held_out, merged, strict=True)
        if value is not None
    ]
    if not scored:
        log.warning("no answer to a held-out prompt could be scored")
        return None
    groups: dict[str, list[tuple[str | None, float]]] = {
        "language": [(sample.language, value) for sample, value in scored],
        "source": [(sample.source, value) for sample, value in scored],
        "part": [each for _, parts in merged for each in parts.items()],
    }
    return {
        "held_out_reward": _mean(rewards),
        "held_out_standard_error": _standard_error([value for _, value in scored]),
        **{f"held_out_by_{name}": _by_label(each) for name, each in groups.items()},
        **{
            f"held_out_errors_by_{name}": _by_label(each, _standard_error)
            for name, each in groups.items()
        },
    }


def _texts(answers: Sequence[Rollout]) -> dict[str, float]:
    """Shares of answers in their sample's language, and of phrases that were there before."""
    known = [answer for answer in answers if answer.language != "unknown"]
    right = [in_language(a.text, a.language, prompt=a.question).ok for a in known]
    found = {"repeated": _mean(np.array([repeated_share(a.text) for a in answers]))}
    return found | ({"right_language": _mean(np.array(right, float))} if right else {})


def _by_label(
    values: Iterable[tuple[str | None, float]],
    figure: Callable[[list[float]], float] = lambda each: _mean(np.array(each)),
) -> dict[str, float]:
    """The mean, or another figure, of each label's values."""
    found: dict[str, list[float]] = {}
    for label, value in values:
        found.setdefault(label or "unknown", []).append(value)
    return {name: figure(each) for name, each in sorted(found.items())}


def _standard_error(values: list[float]) -> float:
    return float(np.std(values) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
