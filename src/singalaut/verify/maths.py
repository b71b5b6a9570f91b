"""Is the answer of a response equal to the reference?

Plain numbers are compared here, exactly. What needs computer algebra goes to `math-verify` in
worker processes with hard limits of time and memory: a hostile expression costs one worker and one
sample. An expression that is plainly gigantic is not even sent. A check that fails is not scored
(None), with the reason; an answer that is missing or wrong is False.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from queue import SimpleQueue

from singalaut.text.marks import canonical
from singalaut.verify.answers import Mode, find_answer, hedged
from singalaut.verify.expressions import refusal, unevaluated, unlike, value_side
from singalaut.verify.maths_process import LATE, MathsProcess
from singalaut.verify.numbers import in_ascii, numbers, plain, single_number
from singalaut.verify.verdict import Verdict

_MOST_KNOWN = 100_000  # pairs of expressions whose verdict is kept
_ROUNDING = Fraction(1, 2_000_000)  # math-verify compares decimals to six places


@dataclass(frozen=True)
class Problem:
    """One response to check; `language` decides how `1.000` is read."""

    response: str
    reference: str
    language: str = "en"


class MathsChecker:
    """Checks answers; holds the worker processes, which start when the first one is needed.

    `seconds` and `memory_bytes` limit each expression; its verdict is kept, so that many samples
    with the same answer, a late one too, cost as much as one. Safe to share among threads; close
    it, or use it as a context manager. `counts` says how verdicts came about.
    """

    def __init__(self, workers: int = 2, seconds: float = 2.0, memory_bytes: int = 1 << 30) -> None:
        self.counts: Counter[str] = Counter()
        self._known: dict[tuple[str, str], Verdict] = {}
        self._processes = [MathsProcess(seconds, memory_bytes) for _ in range(workers)]
        self._idle: SimpleQueue[MathsProcess] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def check(self, problem: Problem, mode: Mode = "strict") -> Verdict:
        """Whether the answer found in the response equals the reference.

        Strict takes a boxed or tagged answer, lenient the last number where there is none.
        """
        verdict = quick_check(problem, mode)
        if verdict is not None:
            self.counts["without a worker"] += 1
            return verdict
        answer = find_answer(problem.response, mode)
        assert answer is not None, "quick_check decides where there is no answer"
        sides = _sides(answer.text, problem.reference)
        if (known := self._known.get(sides)) is not None:
            self.counts["known already"] += 1
            return known
        process = self._idle.get()
        try:
            reply = process.equal(*sides)
        finally:
            self._idle.put(process)
        self.counts["by a worker" if reply.ok is not None else "failed"] += 1
        if reply.ok is not None or reply.reason.startswith(LATE):
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[sides] = reply
        return reply

    def check_all(self, problems: Sequence[Problem], mode: Mode = "strict") -> list[Verdict]:
        """Verdicts in the order of the problems; workers share what needs them."""
        with ThreadPoolExecutor(len(self._processes)) as threads:
            return list(threads.map(lambda problem: self.check(problem, mode), problems))

    @property
    def longest_seconds(self) -> float:
        """The longest time that one expression has taken a worker."""
        return max(process.longest_seconds for process in self._processes)

    @property
    def largest_bytes(self) -> int:
        """The most resident memory that a worker has had after an expression."""
        return max(process.largest_bytes for process in self._processes)

    def close(self) -> None:
        """End the worker processes."""
        for process in self._processes:
            process.close()

    def __enter__(self) -> MathsChecker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def quick_check(problem: Problem, mode: Mode = "strict") -> Verdict | None:
    """The verdict where no computer algebra is needed, None where it is."""
    if not problem.reference.strip():
        return Verdict(None, "the reference is empty")
    answer = find_answer(problem.response, mode)
    if answer is None or not answer.text.strip():
        return Verdict(False, "no answer found")
    said = f"{answer.how} `{answer.text[:80]}`"
    reference = _outcome(problem.reference, "en")
    if _same_text(answer.text, problem.reference):
        return Verdict(True, f"{said} is the reference")
    if answer.how != "box" and hedged(answer.text):
        return Verdict(False, f"{said} offers more than one answer")
    if reference:
        found = _outcome(answer.text, problem.language)
        if not found and answer.how == "tag":
            found = _leading_number(answer.text, problem.language)
        if found:
            return Verdict(_equal(found, reference), f"{said} against `{problem.reference[:80]}`")
    return _unsent(answer.text, problem.reference)


def _unsent(answer: str, reference: str) -> Verdict | None:
    """The verdict on an expression that computer algebra is not asked about, None if it is."""
    if fault := refusal(reference):
        return Verdict(None, f"the reference {fault}")
    if fault := refusal(plain(answer)):
        return Verdict(None, f"the answer {fault}")
    if not unevaluated(reference) and (left := unevaluated(answer)):
        return Verdict(False, f"the answer leaves `{left}` unevaluated")
    if "=" not in reference and value_side(answer) is None:
        return Verdict(False, "the answer is an equation, the reference a value")
    if "=" not in reference and (difference := unlike(*_sides(answer, reference))):
        return Verdict(False, difference)
    return None


def _sides(answer: str, reference: str) -> tuple[str, str]:
    """What is compared: of `x = 5` only the value, where the reference is one."""
    value = answer if "=" in reference else value_side(answer)
    return in_ascii(value or answer).strip(), in_ascii(reference).strip()


def _outcome(text: str, language: str) -> frozenset[Fraction]:
    """The number that a text is or ends in: `72 clips`, `x = 72`, `24 + 48 = 72`."""
    return single_number(text, language) or single_number(text.rpartition("=")[2], language)


def _leading_number(text: str, language: str) -> frozenset[Fraction]:
    """The number that begins a tagged sentence, `72 clips in 2 months`, if only one begins it."""
    begins = re.match(r"[^\d+*/^=<>\\]{0,40}[\d๐-๙໐-໙០-៩၀-၉௦-௯]", text)
    found = numbers(text, language)
    return found[0] if begins and found and "=" not in text else frozenset()


def _equal(found: frozenset[Fraction], reference: frozenset[Fraction]) -> bool:
    return any(
        one == other
        or ((one.denominator > 1 or other.denominator > 1) and abs(one - other) < _ROUNDING)
        for one in found
        for other in reference
    )


def _same_text(one: str, other: str) -> bool:
    def bare(text: str) -> str:
        return re.sub(r"[\s$]|\\[,;!]|\\left|\\right", "", canonical(text)).casefold().rstrip(".")

    return bare(one) == bare(other) != ""
