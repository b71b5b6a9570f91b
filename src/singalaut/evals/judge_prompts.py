"""The judge's prompts that official task files carry, as templates.

Which judge is asked, and what its answers are worth in the end, is left to `pairwise` and
`criteria`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from singalaut.evals.taskfile import Kind
from singalaut.evals.tasks import JudgePrompts
from singalaut.evals.template import Template


def judge_prompts(body: Mapping[str, Any], kind: Kind) -> JudgePrompts | None:
    """What a task file tells a judge, or None where it tells nothing.

    Raises: KeyError, TypeError or ValueError where the file has another form.
    """
    spec = body.get("judge", {}).get("judge_prompts")
    if not isinstance(spec, dict):
        return None
    return _pairs(body, spec) if kind == "dialogue" else _criteria(body, spec)


def _pairs(body: Mapping[str, Any], spec: Mapping[str, Any]) -> JudgePrompts:
    verdicts = body["judgement_labels"]

    def systems(turns: list[dict[str, str]]) -> tuple[Template, ...]:
        return tuple(Template.formatted(t["system_prompt"]).partly(verdicts) for t in turns)

    def prompts(turns: list[dict[str, str]]) -> tuple[Template, ...]:
        return tuple(Template.formatted(turn["prompt_template"]) for turn in turns)

    plain, referenced = spec["without-reference"], spec["with-reference"]
    return JudgePrompts(
        system=systems(plain),
        prompts=prompts(plain),
        referenced_system=systems(referenced),
        referenced=prompts(referenced),
        referenced_categories=frozenset(c.lower() for c in body["categories_with_reference"]),
        verdicts=(verdicts["A_wins"], verdicts["B_wins"], verdicts["Tie"]),
        baseline=str(body.get("baseline_model", "")),
    )


def _criteria(body: Mapping[str, Any], spec: Mapping[str, Any]) -> JudgePrompts:
    asked = spec["criteria_prompt"]
    turns = [asked[key] for key in sorted(asked)] if isinstance(asked, dict) else [asked]
    classes = {name: float(worth) for name, worth in body["judge"]["classifications"].items()}
    reference = spec.get("reference_prompt") or ""
    return JudgePrompts(
        system=(Template.literal(spec["system_prompt"]),),
        prompts=tuple(Template.formatted(turn) for turn in turns),
        classes=classes,
        reference=Template.formatted(reference) if reference else None,
        weighted=body.get("metric_class") == "LindseaJudgeMetric",
    )
