"""Settings of selection."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from singalaut.data.config import DataSource, source_files
from singalaut.rewards.config import (
    WHERE_PROMPTS,
    PromptSource,
    RewardConfig,
    prompt_files,
    prompt_stages,
)
from singalaut.settings import Settings, StageSettings
from singalaut.train.config import AdapterConfig

NEED_TARGETS = ("influence", "bm25")
NEED_GRADIENTS = ("influence", "gradient-norm")


class Target(Settings):
    """Rows that stand for what the model shall become good at: a language, a task."""

    name: str = Field(min_length=1)
    """What the report calls it."""
    data: DataSource
    """Where its rows come from."""


class GradientSettings(StageSettings):
    """How gradients of samples are taken: at some steps of the warm-up of an adapter."""

    max_tokens: int = Field(2048, ge=2)
    """Longest conversation, in tokens; longer ones are not chosen."""
    micro_tokens: int = Field(4096, ge=1)
    """Tokens in one forward pass. Bounds memory."""
    adapter: AdapterConfig = Field(
        default_factory=lambda: AdapterConfig.model_validate({"rank": 8, "alpha": 16.0})
    )
    """The adapter whose gradients are taken."""
    warmup_steps: int = Field(40, ge=1)
    """Steps of training on random rows before and between the measurements."""
    checkpoints: int = Field(2, ge=1, le=16)
    """Measurements, evenly among the steps of the warm-up; their influences are added."""
    batch_size: int = Field(8, ge=1)
    """Conversations, pairs or prompts in a step of the warm-up."""
    learning_rate: float = Field(1e-4, gt=0, le=1)
    """Of the warm-up, at its beginning."""
    final_learning_rate: float = Field(1.0, gt=0, le=1)
    """Where its linear fall ends, as a share of the beginning. What is measured at a step counts by
    the rate of that step."""
    dimensions: int = Field(8192, ge=16)
    """Numbers that are kept of each gradient."""

    def rate(self, step: int) -> float:
        """The learning rate of a step of the warm-up."""
        way = step / max(1, self.warmup_steps - 1)
        return self.learning_rate * (1 - (1 - self.final_learning_rate) * way)

    def measured_after(self) -> list[int]:
        """After how many steps of the warm-up gradients are taken."""
        return [self.warmup_steps * (i + 1) // self.checkpoints for i in range(self.checkpoints)]

    def key_settings(self) -> dict[str, Any]:
        """The settings that decide the output; a constant rate is no setting of its own."""
        settings = super().key_settings()
        if self.final_learning_rate == 1:
            del settings["final_learning_rate"]
        return settings


class SelectConfig(GradientSettings):
    """Chooses the rows to learn from; the result is prepared data."""

    VERSION: ClassVar[int] = 3
    OUTPUT: ClassVar[str] = "data"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "prepared": True,
        "data": {"__all__": {"path"}},
        "targets": {"__all__": {"data": {"path"}}},
    }

    kind: Literal["select"] = "select"
    name: str = "select"
    model: str = "base"
    """The stage whose model is asked, or `base`: the one that will learn."""
    data: tuple[DataSource, ...] = ()
    """The pool to choose from."""
    prepared: str | None = None
    """The stage that has prepared the pool, instead of `data`."""
    targets: tuple[Target, ...] = ()
    """What the chosen rows shall help with; the targets take turns in choosing their best row."""
    method: Literal["influence", "gradient-norm", "el2n", "loss", "length", "bm25", "random"] = (
        "influence"
    )
    """What makes a row worth choosing; all but `influence` and `bm25` look at the row alone."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of the pool that is chosen."""
    count: int | None = Field(None, ge=1)
    """Rows that are chosen, instead of `share`."""
    quota_by: Literal["nothing", "language", "source"] = "nothing"
    """Whether every language or source gets its own number of rows."""
    quotas: dict[str, float] = Field(default_factory=dict)
    """Shares of the chosen rows by language or source; without them, as in the pool."""
    diversity: Literal["none", "k-centre", "facility-location"] = "none"
    """How alike chosen rows may be, in gradients: not asked; each far from all before it; or
    together near to all good rows."""
    diversity_pool: float = Field(4.0, ge=1)
    """Good rows among which a varied choice is made, for each that is chosen."""

    @model_validator(mode="after")
    def _consistent(self) -> SelectConfig:
        faults = _faults(self)
        if bool(self.data) == (self.prepared is not None):
            faults.append("either `data` or `prepared`")
        if self.method in NEED_TARGETS and not self.targets:
            faults.append(f"`targets` with the method `{self.method}`")
        _refuse(faults)
        return self

    @property
    def takes_gradients(self) -> bool:
        """Whether anything of the choice depends on gradients."""
        return self.method in NEED_GRADIENTS or self.diversity != "none"

    def inputs(self) -> dict[str, str]:
        prepared = {} if self.prepared is None else {"prepared": self.prepared}
        return {"model": self.model, **prepared}

    def files(self) -> dict[str, str]:
        return source_files(self.data) | _target_files(self.targets)


class SelectPairsConfig(GradientSettings):
    """Chooses the pairs to align with; the result is pairs."""

    VERSION: ClassVar[int] = 3
    OUTPUT: ClassVar[str] = "pairs"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "pairs": True,
        "data": {"__all__": {"path"}},
        "targets": {"__all__": {"data": {"path"}}},
    }

    kind: Literal["select_pairs"] = "select_pairs"
    name: str = "select_pairs"
    model: str = "base"
    """The stage whose model is asked, or `base`: the one that will be aligned."""
    data: tuple[DataSource, ...] = ()
    """The pool to choose from: rows of pairs."""
    pairs: str | None = None
    """The stage that has made the pool, instead of `data`."""
    targets: tuple[Target, ...] = ()
    """Pairs that stand for what the model shall become good at."""
    method: Literal["influence", "gradient-norm", "random"] = "influence"
    """What makes a pair worth choosing."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of the pool that is chosen."""
    count: int | None = Field(None, ge=1)
    """Pairs that are chosen, instead of `share`."""
    quota_by: Literal["nothing", "language"] = "nothing"
    """Whether every language gets its own number of pairs."""
    quotas: dict[str, float] = Field(default_factory=dict)
    """Shares of the chosen pairs by language; without them, as in the pool."""
    loss: Literal["apo-zero", "apo-down", "dpo", "ipo"] = "apo-zero"
    """Whose gradients are taken: the loss that will be used."""
    beta: float = Field(0.1, gt=0)
    """Of that loss; the reference is the model as it is."""

    @model_validator(mode="after")
    def _consistent(self) -> SelectPairsConfig:
        faults = _faults(self)
        if bool(self.data) == (self.pairs is not None):
            faults.append("either `data` or `pairs`")
        if self.method == "influence" and not self.targets:
            faults.append("`targets` with the method `influence`")
        _refuse(faults)
        return self

    def inputs(self) -> dict[str, str]:
        return {"model": self.model, **({} if self.pairs is None else {"pairs": self.pairs})}

    def files(self) -> dict[str, str]:
        return source_files(self.data) | _target_files(self.targets)

    def source_of_stage(self) -> DataSource:
        """What the file of a stage that has made pairs is read as."""
        return DataSource.model_validate({"path": "pairs.jsonl", "name": "pairs"})


class PromptTarget(Settings):
    """Prompts that stand for what the model shall become good at."""

    name: str = Field(min_length=1)
    """What the report calls it."""
    prompts: PromptSource
    """Where its prompts come from; their answers count by the same reward."""


class SelectPromptsConfig(GradientSettings):
    """Chooses the prompts to learn from by reinforcement, or to make pairs of."""

    VERSION: ClassVar[int] = 1
    OUTPUT: ClassVar[str] = "prompts"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "prompts": WHERE_PROMPTS,
        "targets": {"__all__": {"prompts": {"path"}}},
    }

    kind: Literal["select_prompts"] = "select_prompts"
    name: str = "select_prompts"
    model: str = "base"
    """The stage whose model answers, or `base`: the one that will learn."""
    prompts: tuple[PromptSource, ...] = Field(min_length=1)
    """The pool to choose from."""
    reward: RewardConfig
    """What counts in an answer; as in the stage that will learn."""
    targets: tuple[PromptTarget, ...] = ()
    """What the chosen prompts shall help with; the targets take turns."""
    method: Literal["influence", "gradient-norm", "spread", "random"] = "influence"
    """What makes a prompt worth choosing; `spread`: how much the rewards of its answers differ."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of the pool that is chosen."""
    count: int | None = Field(None, ge=1)
    """Prompts that are chosen, instead of `share`."""
    quota_by: Literal["nothing", "language", "source"] = "nothing"
    """Whether every language or source gets its own number of prompts."""
    quotas: dict[str, float] = Field(default_factory=dict)
    """Shares of the chosen prompts by language or source; of those without one, as in the pool."""
    micro_tokens: int = Field(4096, ge=1)
    """Tokens in one forward pass. Bounds memory, but a prompt with all its answers is one pass."""
    samples: int = Field(8, ge=2)
    """Answers to each prompt; where all have one reward, there is nothing to learn."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longer prompts are left out and counted."""
    temperature: float = Field(1.0, gt=0)
    """Of the answers."""
    truncated: Literal["keep", "mask", "zero"] = "mask"
    """Answers that reached `max_tokens`: counted as they are, without a gradient, or as 0."""
    engine_batch_size: int | None = Field(None, ge=1)
    """Answers that are written at once; unset takes what suits the device."""

    @model_validator(mode="after")
    def _consistent(self) -> SelectPromptsConfig:
        faults = _faults(self)
        if self.method == "influence" and not self.targets:
            faults.append("`targets` with the method `influence`")
        if any(target.prompts.stage is not None for target in self.targets):
            faults.append("targets that are files or composed, not stages")
        _refuse(faults)
        return self

    def inputs(self) -> dict[str, str]:
        return {"model": self.model} | prompt_stages(self.prompts)

    def files(self) -> dict[str, str]:
        named = {f"target.{i}": t.prompts.path for i, t in enumerate(self.targets)}
        wanted = {label: path for label, path in named.items() if path is not None}
        return prompt_files(self.prompts) | wanted


AnySelectConfig = SelectConfig | SelectPairsConfig | SelectPromptsConfig


def _faults(config: AnySelectConfig) -> list[str]:
    """What every kind of selection needs, and this one has not."""
    faults = []
    if (config.share is None) == (config.count is None):
        faults.append("either `share` or `count`")
    if len({target.name for target in config.targets}) < len(config.targets):
        faults.append("targets of different names")
    if config.quotas and config.quota_by == "nothing":
        faults.append("`quota_by` with `quotas`")
    shares = config.quotas.values()
    if any(share < 0 for share in shares) or sum(shares) > 1 + 1e-9:
        faults.append("`quotas` between 0 and 1 that come to 1 at most")
    if config.warmup_steps < config.checkpoints:
        faults.append("at least as many `warmup_steps` as `checkpoints`")
    return faults


def _refuse(faults: list[str]) -> None:
    if faults:
        raise ValueError("it needs " + ", and ".join(faults))


def _target_files(targets: tuple[Target, ...]) -> dict[str, str]:
    return {
        f"target.{i}": target.data.path
        for i, target in enumerate(targets)
        if target.data.path is not None
    }
