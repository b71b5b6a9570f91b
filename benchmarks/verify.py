"""Figures of the answer checks: labels, hostile expressions, and speed of the constraints.

    python benchmarks/verify.py [--data ../shared/data] [--hostile 10000] [--workers 2]

The pairs are made from the `math.*.jsonl` files of the data folder (rows with `answer` and
`language`): right and wrong answers, half each, in boxes, tags and sentences, native digits, both
conventions of separators, units, percents and fractions, or off by one. Without the folder the
references are small numbers. Half of the references get three zeros, for the separators.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from singalaut.text.languages import LANGUAGES
from singalaut.verify.constraints.check import check
from singalaut.verify.maths import MathsChecker, Problem

ROOT = Path(__file__).parents[1]
ZEROS = {"th": "๐", "lo": "໐", "km": "០", "my": "၀", "ta": "௦", "zh": "０"}
UNITS = {
    **{"en": "clips", "id": "orang", "ms": "buah", "tl": "piraso", "vi": "cái", "th": "คน"},
    **{"lo": "ຄົນ", "km": "នាក់", "my": "ခု", "ta": "பேர்", "zh": "个"},
}
CHINESE = "零一二三四五六七八九"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--hostile", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    labels(options.data, options.pairs, options.workers)
    hostile(options.hostile, options.workers)
    constraint_speed()


def labels(data: Path, count: int, workers: int) -> None:
    """Agreement of the verdicts with the labels of made pairs, by the way they were written."""
    chooser = random.Random(17)
    pairs = [made_pair(chooser, *reference) for reference in references(data, chooser, count)]
    wrong: Counter[str] = Counter()
    with MathsChecker(workers) as checker:
        started = time.perf_counter()
        verdicts = checker.check_all([problem for problem, _, _ in pairs], mode="lenient")
        seconds = time.perf_counter() - started
        for (problem, label, way), verdict in zip(pairs, verdicts, strict=True):
            if verdict.ok is not label:
                wrong[way] += 1
                print(f"  {way}: {problem}, label {label}: {verdict}")
        agreement = 1 - wrong.total() / count
        print(f"labels: {agreement:.2%} of {count:,} pairs agree, {seconds:.1f} s, {wrong or ''}")
        print(f"        {dict(checker.counts)}")


def references(data: Path, chooser: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """A language and a numeric reference, the languages of the files and others in turn."""
    rows = [
        json.loads(line)
        for path in sorted(data.glob("math.*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ] or [{"answer": str(number), "language": "en"} for number in range(500)]
    for number in range(count):
        row = chooser.choice(rows)
        native = number % 3 == 0
        language = chooser.choice(sorted(LANGUAGES)) if native else row["language"]
        reference = row["answer"].replace(",", "")
        yield language, reference + "000" * (number % 2 == 0 and reference.isdigit())


def made_pair(chooser: random.Random, language: str, reference: str) -> tuple[Problem, bool, str]:
    """A response with a right or a wrong answer, its label, and how it was written."""
    value = Fraction(reference)
    right = chooser.random() < 0.5
    step = Fraction(1, 10) if value.denominator > 1 else Fraction(1)
    shown = value if right else value + step * chooser.choice((-1, 1, 10))
    way, number = written(chooser, shown, language)
    unit, tag = UNITS[language], LANGUAGES[language].answer_tag
    unboxed = number.replace("\\$", "$")
    shape = chooser.choice(("box", "tag", "element", "verbose", "bare"))
    body = {
        "box": f"7 + 5 = 12 \\boxed{{{number}}}",
        "tag": f"12 {unit}.\n{tag} {unboxed} {unit}",
        "element": f"7 {unit}, 5 {unit} <answer>{number}</answer>",
        "verbose": f"7 + 5 = 12.\n\n**{tag}** **{unboxed}** {unit}.",
        "bare": f"7 {unit}, 5 {unit}. {unboxed}",
    }[shape]
    if shape == "bare" and way in ("chinese", "latex fraction"):
        body = f"{tag} {number}"
    return Problem(body, reference, language), right, f"{way}, {shape}, {language}"


def written(chooser: random.Random, value: Fraction, language: str) -> tuple[str, str]:
    """A number in one of the ways that its language and kind allow."""
    decimals = _decimals(value)
    plain = f"{float(value):.{decimals}f}" if decimals else str(value)
    comma = language in ("id", "vi", "km", "lo")
    grouped = f"{int(value):,}" if decimals == 0 else f"{float(value):,.{decimals}f}"
    ways: dict[str, str] = {
        "plain": plain,
        "zeros": plain + ("0" if decimals else ".0"),
        "grouped": grouped.translate(str.maketrans(",.", ".,")) if comma else grouped,
        "dollar": f"\\${plain}",
    }
    if language in ZEROS:
        digits = {48 + digit: ord(ZEROS[language]) + digit for digit in range(10)}
        ways["native digits"] = ways["grouped"].translate(digits)
    if language == "zh" and decimals == 0 and 0 <= value < 100:
        ten, one = divmod(int(value), 10)
        tens = ("" if ten == 1 else CHINESE[ten]) + "十" if ten else ""
        ways["chinese"] = tens + (CHINESE[one] if one or not ten else "")
    if language == "ta" and decimals == 0 and 10 <= value < 100:
        ten, one = divmod(int(value), 10)
        ways["tamil signs"] = (
            (chr(0x0BE6 + ten) if ten > 1 else "") + "௰" + (chr(0x0BE6 + one) if one else "")
        )
    if decimals:
        ways["latex fraction"] = f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
        ways["percent"] = f"{float(value * 100):g}%"
    way = chooser.choice(sorted(ways))
    return way, ways[way]


def _decimals(value: Fraction) -> int:
    places = 0
    while (value * 10**places).denominator > 1 and places < 9:
        places += 1
    return places


HOSTILE: dict[str, Callable[[random.Random, int], str]] = {
    "tower": lambda r, n: "^".join(str(r.randint(2, 99)) for _ in range(2 + n % 8)),
    "latex tower": lambda r, n: "9^{" * (1 + n % 9) + "9" + "}" * (1 + n % 9),
    "factorial": lambda r, n: f"{r.randint(100, 10**9)}!",
    "factorials": lambda r, n: "7" + "!" * (1 + n % 6),
    "big power": lambda r, n: f"{r.randint(2, 99)}^{{{r.randint(100, 10**8)}}}",
    "brackets": lambda r, n: "(" * (n % 300) + "x" + ")" * (n % 300),
    "fractions": lambda r, n: "\\frac{1}{1+" * (n % 60) + "x" + "}" * (n % 60),
    "roots": lambda r, n: "\\sqrt{2+" * (n % 30) + "x" + "}" * (n % 30),
    "expansion": lambda r, n: f"(x+y+z+w)^{{{r.randint(2, 999)}}}",
    "products": lambda r, n: "*".join(f"(x+{r.randint(1, 9)})" for _ in range(n % 80)) or "1",
    "sum": lambda r, n: f"\\sum_{{k=1}}^{{{r.randint(10, 10**5)}}} \\frac{{1}}{{k^{n % 9}}}",
    "integral": lambda r, n: f"\\int_0^{r.randint(1, 9)} e^{{-x^{n % 9}}} \\sin(x^{n % 7}) dx",
    "limit": lambda r, n: f"\\lim_{{x \\to 0}} (1+x)^{{{r.randint(1, 999)}/x}}",
    "digits": lambda r, n: str(r.randint(1, 9)) * r.randint(1, 100_000),
    "float": lambda r, n: f"1e{r.randint(1, 10**9)}",
    "letters": lambda r, n: "".join(r.choice("abcxyz") for _ in range(n % 400)),
    "signs": lambda r, n: "".join(r.choice("+-*/^()=<>!") for _ in range(n % 200)),
    "bytes": lambda r, n: "".join(chr(r.randint(0, 0x2FFF)) for _ in range(n % 200)),
    "code": lambda r, n: f"__import__('os').system('sleep {n}') + eval('9**9**9')",
    "equation": lambda r, n: f"x^{{{2 + n % 40}}} + x^3 - {n} = \\sin(x) + e^x",
    "matrix": lambda r, n: "\\begin{pmatrix}" + "1&2\\\\" * (n % 90) + "\\end{pmatrix}",
    "set": lambda r, n: "\\{" + ",".join(str(k) for k in range(n % 150)) + "\\}",
    "trigonometry": lambda r, n: "\\sin(" * (n % 24) + "x" + ")" * (n % 24),
    "small expansion": lambda r, n: f"(x+y+z+w)^{{{n % 21}}}",
    "binomial": lambda r, n: f"\\binom{{{r.randint(9, 10**6)}}}{{{r.randint(2, 10**5)}}}",
    "long power": lambda r, n: f"{r.randint(2, 99)}^{{{r.randint(100, 99_999)}}}",
    "gamma": lambda r, n: f"\\Gamma({r.randint(2, 10**6)}) + \\zeta({n % 30})",
    "logarithm": lambda r, n: (
        f"\\log_{{{n % 50}}} {r.randint(2, 10**9)}^{{{n % 999}}} + \\sqrt{{x}}"
    ),
    "rational": lambda r, n: f"\\frac{{x^{{{n % 50}}} - 1}}{{x^{{{n % 17}}} - 1}} + \\pi",
    "roots of roots": lambda r, n: "\\sqrt{3+" * (n % 10) + "2" + "}" * (n % 10),
    "interval": lambda r, n: f"[{n}, {n + 1}) \\cup (x, {r.randint(1, 9)}]",
    "absolute": lambda r, n: "|" * (n % 90) + "x",
}


def hostile(count: int, workers: int) -> None:
    """Hostile answers one by one: nothing may hang, die or pass its limits."""
    seconds, memory_bytes = 1.0, 1 << 30
    chooser = random.Random(5)
    names = sorted(HOSTILE)
    problems = [
        Problem(f"\\boxed{{{HOSTILE[names[n % len(names)]](chooser, n)}}}", reference)
        for n in range(count)
        for reference in (chooser.choice(("\\sqrt{2}", "x^2+1", "72", "\\frac{\\pi}{4}")),)
    ]
    with MathsChecker(workers, seconds, memory_bytes) as checker:
        checker.check(Problem("\\boxed{x}", "y"))
        started = time.perf_counter()
        verdicts = checker.check_all(problems)
        total = time.perf_counter() - started
        print(
            f"hostile: {count:,} expressions in {total:.1f} s, none of them right:"
            f" {sum(verdict.ok is True for verdict in verdicts)} called so,"
            f" {sum(verdict.ok is None for verdict in verdicts)} not scored"
        )
        print(f"         {dict(checker.counts)}")
        print(
            f"         limits {seconds:g} s and {memory_bytes >> 20} MiB;"
            f" the longest took {checker.longest_seconds:.2f} s,"
            f" the largest {checker.largest_bytes >> 20} MiB"
        )


def constraint_speed() -> None:
    """Checks a second on one core for an answer of 1,000 characters."""
    texts = {
        "en": "The quick brown fox jumps over the lazy dog. It is a fine day! " * 16,
        "th": "แม่ไปตลาดซื้อปลา วันนี้อากาศดีมาก " * 28,
    }
    cases: dict[str, dict[str, object]] = {
        "keywords:existence": {"keywords": ["lazy", "fox"]},
        "keywords:forbidden_words": {"forbidden_words": ["cat"]},
        "keywords:letter_frequency": {
            "letter": "q",
            "let_frequency": 3,
            "let_relation": "at least",
        },
        "detectable_format:number_bullet_lists": {"num_bullets": 3},
        "detectable_format:title": {},
        "detectable_format:json_format": {},
        "startend:end_checker": {"end_phrase": "day!"},
        "punctuation:no_comma": {},
        "length_constraints:number_words": {"num_words": 100, "relation": "at least"},
        "length_constraints:number_sentences": {"num_sentences": 9, "relation": "at least"},
        "language:response_language": {"language": "en"},
    }
    for name, given in cases.items():
        rates = [f"{code} {rate(name, given, text, code):,.0f}" for code, text in texts.items()]
        print(f"{name}: {', '.join(rates)} checks/s")


def rate(name: str, given: dict[str, object], text: str, language: str) -> float:
    check(name, given, text, language)
    started, calls = time.process_time(), 0
    while (spent := time.process_time() - started) < 0.25:
        check(name, given, f"{text}{calls}", language)
        calls += 1
    return calls / spent


if __name__ == "__main__":
    main()
