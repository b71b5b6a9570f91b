"""Which expressions are worth handing to computer algebra, told from their text alone.

An answer is a value or a short formula. What is gigantic, nested beyond reason or left unevaluated
is refused here for microseconds instead of there for seconds; the limits of the worker processes
catch what this misses.
"""

from __future__ import annotations

import math
import re

_LONGEST_CHARACTERS = 500
_DEEPEST_NESTING = 12
# What is counted, and how much of it a final answer may have.
_MANY = (
    (re.compile(r"\\(?:[dtc]?frac|sqrt)"), 10, "fractions and roots"),
    (re.compile(r"\\?(?:sin|cos|tan|log|ln|exp|cot|sec|csc|arc\w+)\b"), 6, "functions"),
    (re.compile(r","), 40, "elements"),
    (re.compile(r"&|\\\\"), 40, "cells"),
    (re.compile(r"\)\s*(?:\*|\\cdot)?\s*\("), 8, "factors"),
    (re.compile(r"\|"), 8, "bars"),
    (re.compile(r"[-+*/^]"), 80, "operations"),
)
_GIGANTIC = re.compile(
    r"\d{60}"  # a number of sixty digits
    r"|[A-Za-z]{40}"  # a product of forty letters
    r"|(?:\^|\*\*)\s*[{(]*\s*-?\d{6}"  # an exponent of six digits
    r"|(?:\^|\*\*)\s*[{(]*\s*-?\d+\s*[})]*\s*(?:\^|\*\*)"  # a tower of numbers
    r"|\d{4,}\s*\)?!|!\s*\)*\s*!"  # a factorial of four digits, or of a factorial
    r"|\d[eE]\+?\d{4}"  # a floating point number without end
    r"|\\(?:binom|Gamma|zeta)[^a-z]*\d{4}"  # and of their like
    r"|__|\b(?:import|lambda|exec|eval|open|globals|getattr|system)\b"
)
# A bracket with a sum in it, to a power: algebra multiplies it out.
_POWER_OF_SUM = re.compile(
    r"[({\[]([^(){}\[\]]+[-+][^(){}\[\]]*)[)}\]]\s*(?:\^|\*\*)\s*[{(]*\s*(\d+)"
)
_MOST_TERMS = 250
_UNEVALUATED = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim|limsup|liminf)(?![A-Za-z])|\\frac\s*\{\s*d\s*\}"
)
# Letters that are seldom units, and marks of what is more than one number.
_KINDS = (
    (re.compile(r"(?<![A-Za-z\\])[xyzw](?![A-Za-z])|(?<=\d)[xyzw]{1,3}(?![A-Za-z])"), "variables"),
    (re.compile(r"\\begin|\\matrix"), "a matrix"),
    (re.compile(r"\\c[ua]p(?![a-z])|\\\{|\\emptyset|\\varnothing|\\mathbb"), "a set"),
)
_NAME = re.compile(r"\\?[A-Za-z]{1,12}(?:_\{?\w{1,6}\}?)?(?:\([A-Za-z, ]{1,12}\))?")


def refusal(text: str) -> str | None:
    """Why an expression is not handed to computer algebra, None if it is small enough."""
    if len(text) > _LONGEST_CHARACTERS:
        return f"is too long to check ({len(text):,} characters)"
    if match := _GIGANTIC.search(text):
        return f"is too large to check (`{match[0][:40]}`)"
    for sum_in_brackets, power in _POWER_OF_SUM.findall(text):
        letters = len(set(filter(str.isalpha, re.sub(r"\\[a-z]+", "", sum_in_brackets))))
        if math.comb(min(int(power), 1000) + letters, letters) > _MOST_TERMS:
            return f"is too large to check (`({sum_in_brackets[:20]})^{power[:10]}` multiplied out)"
    for pattern, most, what in _MANY:
        if len(pattern.findall(text)) > most:
            return f"is too large to check (more than {most} {what})"
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return "is nested too deeply to check" if deepest > _DEEPEST_NESTING else None


def unevaluated(text: str) -> str | None:
    """The integral, sum, product, limit or derivative that an expression still contains."""
    match = _UNEVALUATED.search(text)
    return match[0] if match else None


def unlike(answer: str, reference: str) -> str | None:
    """How an answer differs in kind from the reference so that it cannot be equal, if it does."""
    for pattern, what in _KINDS:
        ours, theirs = pattern.search(answer), pattern.search(reference)
        if bool(ours) != bool(theirs):
            return f"only the {'answer' if ours else 'reference'} has {what}"
    return None


def value_side(text: str) -> str | None:
    """The right side of `x = 5` or `f(x) = 2x`; None for an equation that names no value.

    Text without an equals sign is returned as it is.
    """
    left, equals, right = text.partition("=")
    if not equals:
        return text
    if "=" in right or left.rstrip().endswith(("<", ">", "!")):
        return None
    return right.strip() if _NAME.fullmatch(left.strip().strip("$ ")) else None
