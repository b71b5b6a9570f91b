"""A reward from its parts: each answer gets a score with what each part gave and why.

A part that does not apply to a sample (no reference, no constraints), or whose checker failed, is
left out; an answer for which nothing is left is not scored at all, which is not the same as 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from singalaut.contracts import Completion, Message, Sample, Score
from singalaut.rewards.config import RewardConfig, RewardPart
from singalaut.rewards.function import RewardFunction, source_hash
from singalaut.verify.constraints.check import Constraint, check_all, in_language
from singalaut.verify.form import answer_form, length, repeated_share
from singalaut.verify.maths import MathsChecker, Problem

Found = tuple[float | None, str]  # between 0 and 1, None where it does not apply; and why


class ComposedReward:
    """Implements the Reward protocol; holds worker processes, so close it when done."""

    def __init__(self, config: RewardConfig, workers: int = 2):
        self.config = config
        self.counts: Counter[str] = Counter()
        kinds = {part.kind for part in config.parts}
        self._maths = MathsChecker(workers) if "maths" in kinds else None
        self._functions = {
            part.function: RewardFunction(part.function, part.seconds)
            for part in config.parts
            if part.function is not None
        }

    def score(
        self, prompt: Sequence[Message], completions: Sequence[Completion], sample: Sample
    ) -> list[Score]:
        """One score for each completion, in order."""
        asked = prompt_text(prompt)
        return [self.score_text(completion.text, asked, sample) for completion in completions]

    def score_text(self, response: str, asked: str, sample: Sample) -> Score:
        """The score of one answer to the text `asked`."""
        parts: dict[str, float] = {}
        reasons = []
        total = weights = 0.0
        is_stopped = False
        for part in self.config.parts:
            name = part.function or part.kind
            value, reason = self._value(part, response, asked, sample)
            reasons.append(f"{name}: {reason}")
            if value is None:
                self.counts[f"{name}: not scored"] += 1
                continue
            parts[name] = value
            total += part.weight * value
            weights += part.weight
            is_stopped |= part.gate and value < 1
        if not weights:
            return Score(0.0 if is_stopped else None, parts, tuple(reasons))
        return Score(0.0 if is_stopped else total / weights, parts, tuple(reasons))

    def sources(self) -> list[str]:
        """Hashes of the files in which the functions stand."""
        return [source_hash(place) for place in sorted(self._functions)]

    def close(self) -> None:
        """End the worker processes."""
        if self._maths is not None:
            self._maths.close()
        for function in self._functions.values():
            function.close()

    def __enter__(self) -> ComposedReward:
        """Raises: RecipeError for a function that is not there, before anything is answered."""
        try:
            for function in self._functions.values():
                function.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _value(self, part: RewardPart, response: str, asked: str, sample: Sample) -> Found:
        language = sample.language or "en"
        match part.kind:
            case "maths":
                return self._equal(part, response, language, sample)
            case "constraints":
                return _kept(part, response, language, asked, sample)
            case "language":
                verdict = in_language(response, language, prompt=asked)
                return _number(verdict.ok), verdict.reason
            case "form":
                verdict = answer_form(response, part.form, language)
                return _number(verdict.ok), verdict.reason
            case "length":
                count = length(response, "words", language)
                value = min(1.0, max(0.0, 2 - count / part.words))
                return value, f"{count} words, the limit is {part.words}"
            case "repetition":
                share = repeated_share(response)
                return 1 - share, f"{share:.0%} of the phrases were there before"
            case "function":
                assert part.function is not None
                return self._functions[part.function].call(response, asked, sample)

    def _equal(self, part: RewardPart, response: str, language: str, sample: Sample) -> Found:
        if sample.reference is None:
            return None, "no reference"
        assert self._maths is not None
        problem = Problem(response, sample.reference, language)
        verdict = self._maths.check(problem, "lenient" if part.lenient else "strict")
        return _number(verdict.ok), verdict.reason


def _kept(part: RewardPart, response: str, language: str, asked: str, sample: Sample) -> Found:
    if not sample.constraints:
        return None, "no constraints"
    constraints = [
        Constraint(str(c["instruction_id"]), dict(c.get("parameters") or {}))
        for c in sample.constraints
    ]
    results = check_all(constraints, response, language, prompt=asked)
    known = [result for result in results if result.strict.ok is not None]
    said = "; ".join(
        f"{result.instruction_id} {'yes' if result.strict.ok else 'no'} ({result.strict.reason})"
        for result in results
    )
    if not known:
        return None, said
    share = sum(bool(result.strict.ok) for result in known) / len(known)
    return (float(share == 1) if part.all_or_nothing else share), said


def prompt_text(prompt: Sequence[Message]) -> str:
    """The text of the last turn of the user."""
    for message in reversed(prompt):
        if message.role == "user":
            if isinstance(message.content, str):
                return message.content
            return "\n".join(str(p["text"]) for p in message.content if p.get("type") == "text")
    return ""


def _number(ok: bool | None) -> float | None:
    return None if ok is None else float(ok)
