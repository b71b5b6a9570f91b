"""A prompt on its way to a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from singalaut.contracts import Sample
from singalaut.pairs.judging import Given
from singalaut.verify.constraints.check import Constraint


@dataclass
class Case:
    """`refused` says why the prompt is no pair; the rest is filled in step by step."""

    sample: Sample
    own: list[str] = field(default_factory=list)
    endless: list[str] = field(default_factory=list)
    """Own answers that repeat themselves until they are cut."""
    faults: dict[str, int] = field(default_factory=dict)
    """Of answers that were looked at."""
    rejected: str = ""
    candidates: list[str] = field(default_factory=list)
    chosen: str = ""
    refused: str | None = None
    verdicts: Given = field(default_factory=dict)
    """Of a judge, by the order in which it saw the answers."""

    @property
    def prompt(self) -> str:
        """What the user said last."""
        content = self.sample.messages[-1].content
        return content if isinstance(content, str) else ""

    @property
    def is_cut(self) -> bool:
        """Whether the rejected answer came to no end."""
        return self.rejected in self.endless

    @property
    def language(self) -> str:
        return self.sample.language or "en"

    @property
    def constraints(self) -> list[Constraint]:
        return [
            Constraint(c["instruction_id"], c.get("parameters") or {})
            for c in self.sample.constraints
        ]


def remaining(cases: Sequence[Case]) -> list[Case]:
    """Those that are not refused."""
    return [case for case in cases if case.refused is None]
