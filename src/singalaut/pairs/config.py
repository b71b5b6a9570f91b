"""Settings of pair making."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from singalaut.remote.config import EndpointConfig
from singalaut.rewards.config import WHERE_PROMPTS, PromptSource, prompt_files, prompt_stages
from singalaut.settings import Settings, StageSettings


class SamplingConfig(Settings):
    """How answers are drawn."""

    temperature: float = Field(0.7, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """The most likely tokens that together have this probability are drawn from."""
    max_tokens: int = Field(512, ge=1)
    """Longest answer; one that is cut short is no answer."""


class RewriterConfig(Settings):
    """Who makes a better answer of the model's own."""

    model: str | None = None
    """A stage whose model rewrites, or a starting model of the recipe."""
    endpoint: EndpointConfig | None = None
    """Instead: a model behind an OpenAI-compatible endpoint."""
    edit: Literal["minimal", "full", "anew"] = "minimal"
    """Change as little as needed; write a better answer beside the first; or answer `anew`, without
    seeing it: for a model that knows the better answer and is too small to rewrite one."""
    candidates: int = Field(1, ge=1, le=16)
    """Rewritten answers to each; the one taken has fewest faults and changes least."""
    sampling: SamplingConfig = Field(default_factory=lambda: SamplingConfig.model_validate({}))
    """How they are drawn."""

    @model_validator(mode="after")
    def _one_of_both(self) -> RewriterConfig:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("a rewriter needs either `model` or `endpoint`")
        return self


class JudgeConfig(Settings):
    """Who says whether the chosen answer of a pair is the better one."""

    model: str | None = None
    """A stage whose model judges, or a starting model of the recipe."""
    endpoint: EndpointConfig | None = None
    """Instead: a model behind an OpenAI-compatible endpoint."""
    sampling: SamplingConfig = Field(
        default_factory=lambda: SamplingConfig.model_validate({"temperature": 0.0})
    )
    """How its verdicts are drawn."""

    @model_validator(mode="after")
    def _one_of_both(self) -> JudgeConfig:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("a judge needs either `model` or `endpoint`")
        return self


class FilterConfig(Settings):
    """What a chosen answer has to be; pairs that are not so are counted by reason."""

    language: bool = True
    """In the language that the prompt asks for."""
    constraints: Literal["all", "more", "any"] = "all"
    """Keeping to all constraints of the prompt; or with fewer faults than the rejected one, as
    `samples` has them; or any."""
    min_length: float = Field(0.5, ge=0)
    """Characters, at least, for one of the rejected answer."""
    max_length: float = Field(2.0, gt=0)
    """Characters, at most, for one of the rejected answer."""
    min_difference: float = Field(0.01, ge=0, le=1)
    """Share of words that differ, at least."""
    max_difference: float = Field(1.0, ge=0, le=1)
    """Share of words that differ, at most."""
    max_repetition: float = Field(0.5, ge=0, le=1)
    """Share of runs of three words that came before; above it an answer repeats itself."""
    max_echo: float = Field(0.5, ge=0, le=1)
    """Share of runs of three words that stand in a prompt with constraints; above it an answer
    repeats the prompt."""


class PairsConfig(StageSettings):
    """Makes preference pairs: the model's own answer is rejected, a better one is chosen."""

    VERSION: ClassVar[int] = 3
    OUTPUT: ClassVar[str] = "pairs"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "prompts": WHERE_PROMPTS,
        "rewriter": {"model": True, "endpoint": True},
        "judge": {"model": True, "endpoint": True},
        "evaluations": True,
        "batch_size": True,
        "cache_gib": True,
        "allowed_failures": True,
    }

    kind: Literal["pairs"] = "pairs"
    name: str = "pairs"
    model: str = "base"
    """The stage whose model answers, or `base`: the one that is to be aligned."""
    prompts: tuple[PromptSource, ...] = Field(min_length=1)
    """What is asked."""
    method: Literal["fix", "rewrite", "sample"] = "fix"
    """Where the chosen answer comes from: an own one, changed by rules until it keeps to the
    constraints; a rewriter; or another own answer that keeps to them."""
    rewriter: RewriterConfig | None = None
    """Who rewrites; only for the method `rewrite`."""
    samples: int = Field(1, ge=1, le=64)
    """Own answers to each prompt; the one with most faults is rejected: constraints that it breaks,
    another language than the one asked for, repeating itself or the prompt, and having no end."""
    sampling: SamplingConfig = Field(default_factory=lambda: SamplingConfig.model_validate({}))
    """How own answers are drawn."""
    filters: FilterConfig = Field(default_factory=lambda: FilterConfig.model_validate({}))
    """What a chosen answer has to be."""
    judge: JudgeConfig | None = None
    """Who compares the two answers of each pair, in both orders; a pair stands where the chosen one
    is preferred both times."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longer prompts are left out and counted."""
    evaluations: tuple[str, ...] = ()
    """Packs or folders of evaluation texts that no prompt may hold."""
    contamination: float = Field(0.6, gt=0, le=1)
    """Share of an evaluation text from which a prompt holds it."""
    batch_size: int | None = Field(None, ge=1)
    """Answers generated at once; unset takes what suits the device."""
    cache_gib: float | None = Field(None, gt=0)
    """Memory for the keys and values of each engine; unset takes most of what is free."""
    allowed_failures: float = Field(0.0, ge=0, le=1)
    """Share of calls that may fail for good; their prompts are left out and counted."""

    @model_validator(mode="after")
    def _consistent(self) -> PairsConfig:
        if (self.method == "rewrite") != (self.rewriter is not None):
            raise ValueError("the method `rewrite`, and only it, needs a `rewriter`")
        if self.method == "sample" and self.samples < 2:
            raise ValueError("the method `sample` needs `samples` of 2 or more")
        return self

    def inputs(self) -> dict[str, str]:
        asked = {"rewriter": self.rewriter, "judge": self.judge}
        models = {label: who.model for label, who in asked.items() if who is not None}
        named = {k: name for k, name in models.items() if name is not None}
        return {"model": self.model, **named, **prompt_stages(self.prompts)}

    def files(self) -> dict[str, str]:
        packs = {f"pack.{i}": place for i, place in enumerate(self.evaluations)}
        return prompt_files(self.prompts) | packs

    def key_settings(self) -> dict[str, Any]:
        """The settings that decide the output; of an endpoint, which model answers there."""
        settings = super().key_settings()
        for label, who in (("rewriter", self.rewriter), ("judge", self.judge)):
            if who is not None and who.endpoint is not None:
                settings[label]["endpoint"] = who.endpoint.identity()
        if self.judge is None:
            del settings["judge"]  # keys of before there were judges stay as they were
        return settings
