"""Settings of online reinforcement learning."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from singalaut.rewards.config import PromptSource, RewardConfig
from singalaut.settings import StageSettings
from singalaut.train.config import AdapterConfig
from singalaut.watch.config import WatchConfig


class RlConfig(StageSettings):
    """Online reinforcement learning on answers that can be checked, by Dr. GRPO."""

    VERSION: ClassVar[int] = 1
    OUTPUT: ClassVar[str] = "model"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "prompts": {"__all__": {"path"}},
        "save_every": True,
        "watch": True,
    }

    kind: Literal["rl"] = "rl"
    name: str = "rl"
    model: str = "base"
    """The stage whose model learns, or `base`."""
    prompts: tuple[PromptSource, ...] = Field(min_length=1)
    """What is asked."""
    reward: RewardConfig
    """What counts in an answer."""
    steps: int = Field(ge=1)
    """Rounds of asking, scoring and learning."""
    prompts_per_step: int = Field(8, ge=1)
    """Prompts of a step whose answers differ in reward."""
    samples: int = Field(8, ge=2)
    """Answers to each prompt."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer; also the constant that Dr. GRPO divides by."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longer prompts are left out and counted."""
    temperature: float = Field(1.0, gt=0)
    """Of the answers that are learned from."""
    method: Literal["dr_grpo", "grpo", "dapo", "rloo", "gspo", "cispo"] = "dr_grpo"
    """How rewards become a loss; all but the first are there for comparison."""
    clip_low: float = Field(0.2, ge=0)
    """How far a token's probability may fall in a step, as a share."""
    clip_high: float = Field(0.2, ge=0)
    """How far it may rise; DAPO takes 0.28."""
    updates: int = Field(1, ge=1)
    """Optimiser steps on the answers of a step."""
    kl: float = Field(0.0, ge=0)
    """Weight of the distance to the starting model; 0 keeps no reference."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """How that distance is estimated."""
    importance_cap: float = Field(2.0, gt=0)
    """Ratio of trainer's to engine's probability above which a token's weight is cut."""
    truncated: Literal["keep", "mask", "zero"] = "mask"
    """Answers that reached `max_tokens`: learned as they are, left out, or with a reward of 0."""
    refill: int = Field(2, ge=0)
    """Prompts whose answers all have one reward teach nothing and are replaced: by at most so many
    times `prompts_per_step` others."""
    stop_after_flat_steps: int | None = Field(None, ge=1)
    """Stop after so many steps in a row in which no prompt had answers of different reward."""
    held_out: int = Field(16, ge=0)
    """Prompts kept from learning, answered greedily to measure progress."""
    evaluate_every: int = Field(20, ge=1)
    """Steps between those measurements; one before the first step, one after the last."""
    micro_tokens: int = Field(8192, ge=1)
    """Tokens in one forward pass of learning. Bounds memory."""
    learning_rate: float = Field(1e-6, gt=0, le=1)
    """Constant after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear rise."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    adapter: AdapterConfig | None = None
    """Train a low-rank adapter; without it, all weights."""
    precision: Literal["float32", "master", "rounded"] = "float32"
    """Weights while training; see `sft`."""
    keep: Literal["all", "products", "attention", "inputs"] = "all"
    """What each layer keeps for the backward pass; see `sft`."""
    compile: bool = False
    """Compile the layers for learning."""
    save_every: int = Field(5, ge=1)
    """Steps between the checkpoints that a killed run resumes from."""
    watch: WatchConfig = Field(default_factory=lambda: WatchConfig.model_validate({}))
    """Trackers, and answers to other questions than the prompts."""

    def inputs(self) -> dict[str, str]:
        return {"model": self.model}

    def files(self) -> dict[str, str]:
        found = {f"prompts.{i}": s.path for i, s in enumerate(self.prompts) if s.path is not None}
        return found | self.watch.files()
