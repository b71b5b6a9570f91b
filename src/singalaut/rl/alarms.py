"""What of a step's figures deserves a warning: signs of a tricked reward, or of nothing learned.

The first steps say what is usual; later ones are compared with it. Nothing is stopped here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger("singalaut")
USUAL_STEPS = 10  # the first, that later ones are compared with
RECENT_STEPS = 5  # whose mean is compared
DRIFT = 0.2  # of a share between 0 and 1, from which on it is told
OLD_WEIGHTS = 0.5  # nats a token; engine and trainer differ by 0.01 where both have one model
STYLE = ("form", "language", "length", "repetition")  # parts of a reward that ask for no content


class Watch:
    """Warns of what looks like a reward that is being tricked, or like an engine left behind.

    Begins with the lines of metrics that an earlier run of the stage has left.
    """

    def __init__(self, lines: Sequence[Mapping[str, Any]]):
        self.flat_steps = 0
        """Steps in a row, up to now, in which there was nothing to learn."""
        self._lengths: list[float] = []
        self._usual: list[dict[str, float]] = []
        self._recent: deque[dict[str, float]] = deque(maxlen=RECENT_STEPS)
        self._told: set[str] = set()
        for line in lines:
            self._count(line)

    def see(self, figures: Mapping[str, Any], step: int) -> None:
        """Count a step, and say what is odd about it."""
        mean = figures["mean_length"]
        if len(self._lengths) >= USUAL_STEPS and self._lengths[0]:
            usual = sum(self._lengths) / len(self._lengths)
            if mean > 2 * usual or mean < usual / 3:
                log.warning("step %d: answers have %.0f tokens, before %.0f", step, mean, usual)
                self._lengths.clear()  # say so again only if they change as much again
        self._count(figures)
        if "loss" not in figures:
            log.warning("step %d: %s, %d in a row", step, why_flat(figures)[0], self.flat_steps)
        if figures["unscored"] == 1:
            reasons = figures.get("unscored_because") or {"no part applies": 0}
            log.warning("step %d: no answer could be scored: %s", step, next(iter(reasons)))
        if figures.get("mismatch", 0) > OLD_WEIGHTS:
            log.warning(
                "step %d: engine and trainer differ by %.2f nats a token: have they other weights?",
                step,
                figures["mismatch"],
            )
        for reason, count in figures.get("failures", {}).items():
            log.warning("step %d: %d prompts got no answers: %s", step, count, reason)
        self._tell_drift(step)

    def _count(self, figures: Mapping[str, Any]) -> None:
        self.flat_steps = 0 if "loss" in figures else self.flat_steps + 1
        if len(self._lengths) < USUAL_STEPS:
            self._lengths.append(figures["mean_length"])
        if len(self._usual) < USUAL_STEPS:
            self._usual.append(_shares(figures))
        self._recent.append(_shares(figures))

    def _tell_drift(self, step: int) -> None:
        """Warn once of each drift, and again if it comes back."""
        if len(self._usual) < USUAL_STEPS:
            return
        if (language := self._means("language")) is not None:
            before, now = language
            self._tell(
                "language",
                now < before - DRIFT,
                f"step {step}: {now:.0%} of the answers are in the language asked for, "
                f"before {before:.0%}",
            )
        if (repeated := self._means("repeated")) is not None:
            before, now = repeated
            self._tell(
                "repeated",
                now > before + DRIFT,
                f"step {step}: {now:.0%} of an answer's phrases were there before, "
                f"at first {before:.0%}",
            )
        form, content = self._means("form"), self._means("content")
        if form is not None and content is not None:
            self._tell(
                "form",
                form[1] >= max(form[0], 0.8) and content[0] > 0 and content[1] < content[0] / 2,
                f"step {step}: answers have the form asked for ({form[1]:.0%}) and less in it: "
                f"what they say is worth {content[1]:.2f}, at first {content[0]:.2f}",
            )

    def _means(self, name: str) -> tuple[float, float] | None:
        """Of the first steps and of the last; None where either have no such number."""
        found = [
            [step[name] for step in steps if name in step] for steps in (self._usual, self._recent)
        ]
        first, last = found
        return (sum(first) / len(first), sum(last) / len(last)) if first and last else None

    def _tell(self, what: str, is_so: bool, message: str) -> None:
        if is_so and what not in self._told:
            log.warning(message)
        (self._told.add if is_so else self._told.discard)(what)


def why_flat(figures: Mapping[str, Any]) -> tuple[str, str]:
    """Why a step taught nothing, and what to do about it."""
    if figures["flat_groups"] < 1:
        return (
            "the answers that differ were cut off at `max_tokens`, and are not learned from",
            "raise `max_tokens`, or learn from cut answers with `truncated`",
        )
    return (
        "no prompt had answers of different reward",
        "take easier or harder prompts, or look at the reasons in `rollouts/`",
    )


def _shares(figures: Mapping[str, Any]) -> dict[str, float]:
    """What drift is looked for in, of one step; what a step has not is left out."""
    parts: Mapping[str, float] = figures.get("reward_parts") or {}
    content = [value for name, value in parts.items() if name not in STYLE]
    found = {
        "language": figures.get("right_language"),
        "repeated": figures.get("repeated"),
        "form": parts.get("form"),
        "content": sum(content) / len(content) if content else None,
    }
    return {name: value for name, value in found.items() if value is not None}
