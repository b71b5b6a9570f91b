"""Settings of rewards: what counts, how much, and what has to be passed before anything does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from singalaut.settings import Settings

Kind = Literal["maths", "constraints", "language", "form", "length", "repetition", "function"]


class RewardPart(Settings):
    """One part of a reward, between 0 and 1 (a function's may be anything finite)."""

    kind: Kind
    """`maths`: the answer equals the reference. `constraints`: the share of constraints that are
    kept to. `language`: the answer is in the sample's language. `form`: one final answer in the
    form asked for. `length`: 1 up to the limit, then falling. `repetition`: 1 without repeated
    phrases. `function`: a Python function of yours."""
    weight: float = Field(1.0, ge=0)
    """Share in the weighted mean of the parts that apply to a sample."""
    gate: bool = False
    """The whole reward is 0 where this part is below 1."""
    form: Literal["tag", "box", "element"] = "tag"
    """For `form`: `Answer: …` in the sample's language, `\\boxed{…}`, or `<answer>…</answer>`."""
    lenient: bool = False
    """For `maths`: take the last number where no answer is marked."""
    all_or_nothing: bool = False
    """For `constraints`: 1 only where all are kept to."""
    words: int = Field(400, ge=1)
    """For `length`: how many words may be written; at twice as many the part is 0."""
    function: str | None = None
    """For `function`: `module:name`, called with `response`, `prompt` and `sample`, JSON values."""
    seconds: float = Field(10.0, gt=0)
    """For `function`: how long one call may take."""

    @model_validator(mode="after")
    def _has_function(self) -> RewardPart:
        if (self.kind == "function") != (self.function is not None):
            raise ValueError("a part of kind `function` needs `function`, others must not have it")
        if self.function is not None and self.function.count(":") != 1:
            raise ValueError("`function` is written `module:name`")
        return self


class RewardConfig(Settings):
    """The reward of an answer: the weighted mean of its parts, 0 where a gate is not passed."""

    parts: tuple[RewardPart, ...] = Field(min_length=1)
    """At least one; those that do not apply to a sample are left out."""


WHERE_PROMPTS: dict[str, Any] = {"__all__": {"path", "stage"}}  # their contents count instead


class PromptSource(Settings):
    """Where prompts with checkable answers come from: a file, a stage, or our own templates."""

    path: str | None = None
    """A JSONL file of prompts with references or constraints."""
    stage: str | None = None
    """Instead: the stage that has chosen prompts."""
    generate: int = Field(0, ge=0)
    """Instead: how many prompts with constraints are composed."""
    languages: tuple[str, ...] = ("en",)
    """Of composed prompts, in turn."""
    language: str | None = None
    """Of rows of the file that state none."""

    @model_validator(mode="after")
    def _one_of_three(self) -> PromptSource:
        if sum((self.path is not None, self.stage is not None, self.generate > 0)) != 1:
            raise ValueError("a source of prompts needs one of `path`, `stage` and `generate`")
        return self


def prompt_stages(sources: Sequence[PromptSource]) -> dict[str, str]:
    """The stages that sources of prompts name, by label."""
    return {f"prompts.{i}": s.stage for i, s in enumerate(sources) if s.stage is not None}


def prompt_files(sources: Sequence[PromptSource]) -> dict[str, str]:
    """The files that sources of prompts name, by label."""
    return {f"prompts.{i}": s.path for i, s in enumerate(sources) if s.path is not None}
