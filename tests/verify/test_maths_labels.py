"""Mathematical verdicts against labels known by construction, and against computer algebra."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest

from singalaut.verify.maths import MathsChecker, Problem, quick_check
from singalaut.verify.maths_process import MathsProcess

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("verify_figures", ROOT / "benchmarks/verify.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_thousand_made_answers(benchmark):
    """Without the shared data the references are small numbers."""
    chooser = random.Random(23)
    references = benchmark.references(DATA, chooser, 1000)
    pairs = [benchmark.made_pair(chooser, *reference) for reference in references]
    with MathsChecker(workers=1) as checker:
        verdicts = checker.check_all([problem for problem, _, _ in pairs], mode="lenient")
        english = [Problem(p.response, p.reference, "en") for p, _, _ in pairs]
        misread = checker.check_all(english, mode="lenient")
    labels = [label for _, label, _ in pairs]
    agreed = [verdict.ok is label for verdict, label in zip(verdicts, labels, strict=True)]
    assert sum(agreed) >= 990
    assert 400 < sum(labels) < 600
    apart = [verdict.ok is not label for verdict, label in zip(misread, labels, strict=True)]
    assert sum(apart) > 2, "read as English, 1.000 is not a thousand: the comparison can fail"


def test_hostile_expressions_keep_to_their_limits(benchmark):
    chooser = random.Random(29)
    names = sorted(benchmark.HOSTILE)
    with MathsChecker(workers=1, seconds=1.0) as checker:
        for number in range(4 * len(names)):
            made = benchmark.HOSTILE[names[number % len(names)]](chooser, number)
            verdict = checker.check(Problem(f"\\boxed{{{made}}}", "\\sqrt{2}"))
            assert verdict.ok is not True and verdict.reason
        assert checker.largest_bytes < 1 << 30


def test_numbers_agree_with_computer_algebra():
    """The comparison without a worker says what math-verify says of the same two numbers."""
    chooser = random.Random(31)
    process = MathsProcess(seconds=20.0, memory_bytes=1 << 30)
    compared = 0
    try:
        for _ in range(60):
            top, bottom = chooser.randint(-30, 30), chooser.choice((1, 2, 4, 5, 8, 10))
            answer = chooser.choice(
                (f"\\frac{{{top}}}{{{bottom}}}", f"{top}/{bottom}", f"{top / bottom}")
            )
            other = top + chooser.choice((0, 0, 1))
            reference = f"{other / bottom}"
            quick = quick_check(Problem(f"\\boxed{{{answer}}}", reference))
            algebra = process.equal(answer, reference)
            assert quick is not None and algebra.ok is not None
            assert quick.ok == algebra.ok, (answer, reference)
            compared += quick.ok
    finally:
        process.close()
    assert 15 < compared < 55
