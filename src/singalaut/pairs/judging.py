"""What a judge is asked about a pair, in both orders, and what its answers come to.

A pair stands if the judge prefers the chosen answer wherever it stands. An answer of the judge that
cannot be read decides nothing, and is counted by what is wrong with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from singalaut.contracts import Message
from singalaut.pairs.calls import Answer
from singalaut.pairs.rewriting import sentences_of

Verdict = Literal["chosen", "rejected", "equal"]
ORDERS = ("chosen first", "rejected first")
LABELS = ("[[A]]", "[[B]]", "[[C]]")
Given = dict[str, tuple[Verdict | None, str]]  # by order: the verdict, and what is wrong


def judge_prompt(
    messages: Sequence[Message], chosen: str, rejected: str, language: str, order: str
) -> list[Message]:
    """One message with the conversation and both answers, in the language of the answer."""
    words = sentences_of(language)
    asked = "\n\n".join(m.content for m in messages if isinstance(m.content, str))
    first, second = (chosen, rejected) if order == ORDERS[0] else (rejected, chosen)
    parts = [words["judge"], f"{words['request']}\n{asked}", f"A:\n{first}", f"B:\n{second}"]
    return [Message("user", "\n\n".join(parts))]


def read_verdict(answer: Answer, order: str) -> tuple[Verdict | None, str]:
    """Whom the judge prefers, and what is wrong with its answer; a bare letter will do, too."""
    if answer.finish == "error":
        return None, "failed"
    text = answer.text.strip()
    found = [label for label in LABELS if label in text]
    if not found:
        found = [label for label in LABELS if text.strip("[](). ") == label.strip("[]")]
    if len(found) != 1:
        if not text:
            return None, "empty"
        if answer.finish == "length":
            return None, "cut short"
        return None, "contradictory" if found else "without a verdict"
    if found[0] == LABELS[2]:
        return "equal", ""
    return ("chosen" if (found[0] == LABELS[0]) == (order == ORDERS[0]) else "rejected"), ""


def refusal(given: Given) -> str | None:
    """Why a pair with these verdicts cannot be used; None where it can."""
    verdicts = [given[order][0] for order in ORDERS]
    if any(verdict is None for verdict in verdicts):
        return "the judge's answer cannot be read"
    if verdicts == ["chosen", "chosen"]:
        return None
    if verdicts == ["rejected", "rejected"]:
        return "the judge prefers the rejected answer"
    if "equal" in verdicts:
        return "the judge finds no answer better"
    return "the judge's verdict changes with the order of the answers"


def summary(judged: Sequence[Given]) -> dict[str, Any]:
    """Counts of a judge: what it preferred, how often the same whatever the order, bad answers."""
    bad = Counter(fault for given in judged for _, fault in given.values() if fault)
    read = [given for given in judged if all(verdict for verdict, _ in given.values())]
    both = [tuple(given[order][0] for order in ORDERS) for given in read]
    return {
        "judged": len(judged),
        "chosen": sum(pair == ("chosen", "chosen") for pair in both),
        "rejected": sum(pair == ("rejected", "rejected") for pair in both),
        "undecided": sum(pair[0] != pair[1] or pair[0] == "equal" for pair in both),
        "same_in_both_orders": sum(a == b for a, b in both) / len(both) if both else None,
        "first_place_preferred": (
            sum(pair == ("chosen", "rejected") for pair in both) / len(both) if both else None
        ),
        "bad_answers": dict(bad.most_common()),
    }


def told(given: Given) -> Mapping[str, str]:
    """The verdicts of a pair as a row shows them."""
    return {order: verdict or f"none: {fault}" for order, (verdict, fault) in given.items()}
