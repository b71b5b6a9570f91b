"""Protocols of evaluation: which official prompts and rules of extraction, how many runs.

`card` is what model cards of 2025 report: the rules that are public as version 1.1, chrF++ for
extractive questions, a pairwise judge. `v1.0` and `v1.2` follow the public versions of SEA-HELM of
March 2025 and June 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from singalaut.evals.taskfile import Metric

Version = Literal["v1.0", "v1.2"]


@dataclass(frozen=True)
class Profile:
    """`replaced` and `dropped` turn the suite of the official files into that of the profile.

    `temperature` None takes the model's own settings; `sampling` is added to those of a request.
    """

    name: str
    version: Version
    seeds: int
    temperature: float | None
    span_metric: Metric
    sampling: Mapping[str, Any] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    added: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="card",
            version="v1.2",
            seeds=8,
            temperature=None,
            span_metric="chrf++",
            replaced={"mt-bench-judge": "mt-bench"},
            dropped=frozenset({"kalahi-judge", "syntax-criteria"}),
            added={"my": ("mt-bench",)},
        ),
        Profile(
            name="v1.0",
            version="v1.0",
            seeds=1,
            temperature=0.0,
            span_metric="token-f1",
            sampling={"top_k": 50},
        ),
        Profile(name="v1.2", version="v1.2", seeds=8, temperature=None, span_metric="token-f1"),
    )
}
