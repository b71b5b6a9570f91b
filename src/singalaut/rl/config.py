"""Settings of online reinforcement learning."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from singalaut.remote.config import EndpointConfig
from singalaut.rewards.config import (
    WHERE_PROMPTS,
    PromptSource,
    RewardConfig,
    prompt_files,
    prompt_stages,
)
from singalaut.settings import Settings, StageSettings
from singalaut.train.config import REPLAY_PATHS, AdapterConfig, ReplayConfig
from singalaut.watch.config import WatchConfig


class DifficultyConfig(Settings):
    """Which prompts are asked, by how often the starting model's answers to them pass."""

    samples: int = Field(8, ge=1)
    """Answers to each prompt that are tried."""
    passing: float = 1.0
    """Reward from which on an answer passes."""
    min: float = Field(0.1, ge=0, le=1)
    """Prompts whose answers pass more rarely are left out."""
    max: float = Field(0.9, ge=0, le=1)
    """Prompts whose answers pass more often are left out."""
    order: Literal["shuffled", "easy_first", "target"] = "shuffled"
    """`easy_first`: what a run draws goes from easy to hard. `target`: what is nearest to the
    target comes first."""
    target: float = Field(0.5, ge=0, le=1)
    """For `target`: the pass rate to begin with."""

    @model_validator(mode="after")
    def _is_range(self) -> DifficultyConfig:
        if self.min > self.max:
            raise ValueError(f"`min` is {self.min}, `max` only {self.max}")
        return self


class EngineConfig(Settings):
    """Who answers: the engine of this process, or vLLM servers that get each step's weights."""

    kind: Literal["local", "remote"] = "local"
    """`local` reads the weights that are trained; `remote` are servers behind a shared folder."""
    batch_invariant: bool = False
    """For `local`. Slower; no number depends on what else is answered, so that a killed run keeps
    every answer that was finished. Without it, it keeps the calls that were: that for a step's
    prompts, and those for refills."""
    batch_size: int | None = Field(default=None, ge=1)
    """For `local`: answers that are written at once; None takes what suits the device."""
    cache_gib: float | None = Field(default=None, gt=0)
    """For `local`: memory for keys and values; None takes a share of what is free."""
    endpoints: tuple[str, ...] = ()
    """For `remote`: base addresses, up to and with `/v1`; prompts are spread over them."""
    model: str = ""
    """For `remote`: what the servers call the model; with `update = "adapter"`, how the names of
    adapters begin."""
    folder: str = ""
    """For `remote`: a folder that this machine and the servers see under the same path. New
    weights lie in `model`, a link that is switched, or for adapters in one folder each."""
    update: Literal["reload", "adapter"] = "reload"
    """`reload`: the servers, started on `FOLDER/model` with `VLLM_SERVER_DEV_MODE=1`, read all
    weights again. `adapter`: servers of the starting model, with `--enable-lora` and
    `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`, load the adapter that is trained."""
    key_variable: str = ""
    """Environment variable that holds the access key; empty sends none."""
    concurrency: int = Field(64, ge=1)
    """Prompts in flight at once, over all addresses; each has `samples` answers."""
    timeout_seconds: float = Field(1800.0, gt=0)
    """Until the answers to a prompt, or new weights, must be there."""
    retries: int = Field(6, ge=0)
    """How often a call is repeated after a refusal or failure that may pass."""

    @field_validator("endpoints")
    @classmethod
    def _addresses(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        try:
            if endpoints:
                EndpointConfig.model_validate({"urls": endpoints, "model": "any"})
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["ctx"]["error"])) from None
        return endpoints

    @model_validator(mode="after")
    def _is_one_of_both(self) -> EngineConfig:
        given = {name: getattr(self, name) for name in ("endpoints", "model", "folder")}
        if self.kind == "local":
            if named := next((name for name, value in given.items() if value), None):
                raise ValueError(f'`{named}` is for servers: add `kind = "remote"`')
            return self
        if lacking := next((name for name, value in given.items() if not value), None):
            raise ValueError(f"servers need `{lacking}`")
        if self.batch_invariant or self.batch_size or self.cache_gib:
            raise ValueError(
                "servers have their own `batch_size` and cache, and are not batch-invariant"
            )
        return self

    @property
    def keeps(self) -> Literal["answer", "prompt", "call"]:
        """What a resumed run takes over of a step that was being answered."""
        if self.kind == "remote":
            return "prompt"
        return "answer" if self.batch_invariant else "call"

    def settings(self) -> dict[str, Any]:
        """What the engine of this process is told."""
        cache_bytes = None if self.cache_gib is None else int(self.cache_gib * 2**30)
        return {
            "batch_invariant": self.batch_invariant,
            "batch_size": self.batch_size,
            "cache_bytes": cache_bytes,
        }

    def endpoint(self) -> EndpointConfig:
        """How the servers are asked."""
        return EndpointConfig(
            urls=self.endpoints,
            model=self.model,
            key_variable=self.key_variable,
            concurrency=self.concurrency,
            timeout_seconds=self.timeout_seconds,
            retries=self.retries,
            token_ids=True,
            requests_per_minute=None,
            tokens_per_minute=None,
        )


WHERE = dict.fromkeys(
    ("endpoints", "folder", "key_variable", "concurrency", "timeout_seconds", "retries"), True
)


class RlConfig(StageSettings):
    """Online reinforcement learning on answers that can be checked, by Dr. GRPO."""

    VERSION: ClassVar[int] = 1
    OUTPUT: ClassVar[str] = "model"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "prompts": WHERE_PROMPTS,
        "save_every": True,
        "watch": True,
        "engine": WHERE,
        "replay": REPLAY_PATHS,
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
    replay: ReplayConfig | None = None
    """Conversations that are learned again in every update."""
    importance_cap: float = Field(2.0, gt=0)
    """Ratio of trainer's to engine's probability above which a token's weight is cut."""
    truncated: Literal["keep", "mask", "zero"] = "mask"
    """Answers that reached `max_tokens`: learned as they are, left out, or with a reward of 0."""
    refill: int = Field(2, ge=0)
    """Prompts whose answers all have one reward teach nothing and are replaced: by at most so many
    times `prompts_per_step` others."""
    stop_after_flat_steps: int | None = Field(None, ge=1)
    """Stop after so many steps in a row in which there was nothing to learn."""
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
    difficulty: DifficultyConfig | None = None
    """Measure how hard each prompt is for the starting model, and choose by it."""
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig.model_validate({}))
    """Who answers."""
    overlap: bool = False
    """Answer the prompts of the next step while this one is learned from: answers are one step
    old, which `importance_cap` corrects. The engine gets a copy of the weights."""
    sharded: bool = False
    """Of several processes, each holds a part of weights, gradients and moments and a whole copy
    for its engine; without it, each holds everything."""
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

    @model_validator(mode="after")
    def _fits_together(self) -> RlConfig:
        if self.overlap and self.temperature != 1:
            raise ValueError(
                "`overlap` needs a `temperature` of 1: else the answers' age cannot be corrected"
            )
        if self.engine.kind == "remote" and self.engine.update == "adapter" and not self.adapter:
            raise ValueError('`update = "adapter"` needs an `adapter` that is trained')
        return self

    def key_settings(self) -> dict[str, Any]:
        settings = super().key_settings()
        if self.replay is None:
            del settings["replay"]  # keys of before there was this stay as they were
        return settings

    def inputs(self) -> dict[str, str]:
        return {"model": self.model} | prompt_stages(self.prompts)

    def files(self) -> dict[str, str]:
        replayed = {} if self.replay is None else self.replay.files()
        return prompt_files(self.prompts) | replayed | self.watch.files()
