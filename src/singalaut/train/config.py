"""Settings of training stages."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from singalaut.data.config import DataSource, MixConfig, source_files
from singalaut.settings import Settings, StageSettings
from singalaut.watch.config import WatchConfig

Projection = Literal["query", "key", "value", "output", "gate", "up", "down"]
ALL_PROJECTIONS: tuple[Projection, ...] = (
    "query",
    "key",
    "value",
    "output",
    "gate",
    "up",
    "down",
)


class AdapterConfig(Settings):
    """Low-rank adaptation: W + alpha / rank · B A with W frozen (arXiv 2106.09685)."""

    rank: int = Field(16, ge=1)
    """Width of A and B."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the update, divided by `rank`."""
    targets: tuple[Projection, ...] = Field(ALL_PROJECTIONS, min_length=1)
    """Which projections of every layer are adapted."""


class ReplayConfig(Settings):
    """Conversations that are learned again in every step, so that what they taught is kept."""

    data: tuple[DataSource, ...] = Field(min_length=1)
    """Where they come from: rows as in the stage `sft`."""
    rows: int = Field(8, ge=1)
    """Conversations in a step."""
    weight: float = Field(0.1, gt=0)
    """Of their mean loss beside the loss of the stage."""
    max_tokens: int = Field(1024, ge=2)
    """Longest conversation, in tokens; longer ones are left out and counted."""

    def files(self) -> dict[str, str]:
        return {
            label.replace("data", "replay"): path for label, path in source_files(self.data).items()
        }


REPLAY_PATHS = {"data": {"__all__": {"path"}}}


class SftConfig(StageSettings):
    """Supervised fine-tuning on the assistant's turns."""

    VERSION: ClassVar[int] = 3
    OUTPUT: ClassVar[str] = "model"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "prepared": True,
        "data": {"__all__": {"path"}},
        "save_every": True,
        "keep_checkpoints": True,
        "watch": True,
        "replicas": True,
        "tensor_parallel": True,
    }

    kind: Literal["sft"] = "sft"
    name: str = "sft"
    model: str = "base"
    """The stage whose model is tuned, or `base`."""
    data: tuple[DataSource, ...] = ()
    """Where the conversations come from; they are prepared in the cache, without cleaning."""
    prepared: str | None = None
    """The stage that has prepared the conversations, instead of `data`."""
    mix: MixConfig = Field(default_factory=lambda: MixConfig.model_validate({}))
    """How often conversations are used."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the mixture, instead of `steps`."""
    batch_size: int = Field(8, ge=1)
    """Conversations in a step."""
    max_tokens: int = Field(2048, ge=2)
    """Longest conversation, in tokens; longer ones are left out and counted."""
    micro_tokens: int = Field(2048, ge=1)
    """Tokens in one forward pass; a step is split into as many as it takes. Bounds memory."""
    learning_rate: float = Field(1e-4, gt=0, le=1)
    """Peak of the schedule."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear rise before the cosine fall."""
    final_learning_rate: float = Field(0.1, ge=0, le=1)
    """Where the cosine ends, as a share of the peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices; norms and embeddings are exempt."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    adapter: AdapterConfig | None = None
    """Train a low-rank adapter; without it, all weights."""
    precision: Literal["float32", "master", "rounded"] = "float32"
    """Weights while training: in float32; in bfloat16 beside a float32 copy (`master`); or in
    bfloat16 alone, with moments in bfloat16, rounded at random (`rounded`: half the memory).
    """
    keep: Literal["all", "products", "attention", "inputs"] = "all"
    """What each layer keeps for the backward pass; the rest is computed twice. `all` is fastest,
    `inputs` takes least memory; `products` and `attention` (of matrices, of attention) lie between.
    """
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` makes steps of the layers' matrices orthogonal (arXiv 2502.16982); whole weights only.
    """
    moments: Literal["full", "int8"] = "full"
    """What the optimiser remembers of gradients: in the precision of the weights' copies, or
    in 8 bits, with a scale for every 128 neighbours (arXiv 2110.02861)."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Keep a moving average of the weights, of which each step leaves this share as it was, as in
    0.999; it is what the stage writes."""
    compile: bool = False
    """Compile the layers: faster on a GPU, after a minute at the start."""
    replicas: int = Field(1, ge=1)
    """Groups of processes that hold the same weights, each cut among the processes of a group."""
    tensor_parallel: int = Field(1, ge=1)
    """Neighbouring processes that compute one pass together, each with a part of every matrix."""
    save_every: int = Field(20, ge=1)
    """Steps between the checkpoints that a killed run resumes from."""
    keep_checkpoints: int = Field(1, ge=1)
    """How many of the last checkpoints are kept while the stage runs."""
    held_out: int = Field(0, ge=0)
    """Conversations of each source and language that are kept from training, to measure on."""
    validate_every: int = Field(50, ge=1)
    """Steps between measurements on what is held out; one before the first and one after the last.
    """
    max_bad_steps: int = Field(3, ge=1)
    """Steps in a row whose loss or gradient is not finite, or whose gradient is a spike, after
    which the run stops; fewer are left out, and logged."""
    spike: float | None = Field(None, gt=1)
    """A gradient whose norm is so many times the median of the last steps is a spike."""
    watch: WatchConfig = Field(default_factory=lambda: WatchConfig.model_validate({}))
    """Answers to read while it trains, and trackers; changes nothing of what is learned."""

    @model_validator(mode="after")
    def _one_of_each(self) -> SftConfig:
        faults = []
        if bool(self.data) == (self.prepared is not None):
            faults.append("either `data` or `prepared`")
        if (self.steps is None) == (self.epochs is None):
            faults.append("either `steps` or `epochs`")
        if self.optimizer == "muon" and self.adapter is not None:
            faults.append("the optimizer `adamw` with an adapter: `muon` is for whole matrices")
        if faults:
            raise ValueError("it needs " + ", and ".join(faults))
        return self

    def inputs(self) -> dict[str, str]:
        prepared = {} if self.prepared is None else {"prepared": self.prepared}
        return {"model": self.model, **prepared}

    def files(self) -> dict[str, str]:
        return source_files(self.data) | self.watch.files()


class ApoConfig(StageSettings):
    """Alignment on pairs of a chosen and a rejected answer: APO, or DPO, IPO, SimPO."""

    VERSION: ClassVar[int] = 3
    OUTPUT: ClassVar[str] = "model"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "reference": True,
        "pairs": True,
        "data": {"__all__": {"path"}},
        "replay": REPLAY_PATHS,
        "save_every": True,
        "keep_checkpoints": True,
        "watch": True,
        "replicas": True,
        "tensor_parallel": True,
    }

    kind: Literal["apo"] = "apo"
    name: str = "apo"
    model: str = "base"
    """The stage whose model is aligned, or `base`."""
    reference: str | None = None
    """The stage whose model the loss compares with; without it, `model` as it is at the start."""
    data: tuple[DataSource, ...] = ()
    """Where the pairs come from: rows with a prompt, a chosen and a rejected answer."""
    pairs: str | tuple[str, ...] | None = None
    """The stage that has made the pairs, or several, instead of `data`."""
    loss: Literal["apo-zero", "apo-down", "dpo", "ipo", "simpo"] = "apo-zero"
    """`apo-zero` where chosen answers are better than the model's own, `apo-down` where the model's
    are better than the chosen ones."""
    beta: float = Field(0.1, gt=0)
    """How strongly the model is held to the reference; larger values hold it closer."""
    gamma: float | None = Field(None, ge=0)
    """The margin that SimPO wants between the two answers; only for `simpo`, which needs it."""
    replay: ReplayConfig | None = None
    """Conversations that are learned again in every step."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the pairs, instead of `steps`."""
    batch_size: int = Field(16, ge=1)
    """Pairs in a step."""
    max_tokens: int = Field(2048, ge=2)
    """Longest conversation, in tokens; pairs with a longer one are left out and counted."""
    micro_tokens: int = Field(4096, ge=1)
    """Tokens in one forward pass, in which whole pairs lie; a longer pair has one of its own."""
    learning_rate: float = Field(5e-6, gt=0, le=1)
    """Peak of the schedule."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear rise before the cosine fall."""
    final_learning_rate: float = Field(0.1, ge=0, le=1)
    """Where the cosine ends, as a share of the peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices; norms and embeddings are exempt."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    adapter: AdapterConfig | None = None
    """Train a low-rank adapter; without it, all weights."""
    precision: Literal["float32", "master", "rounded"] = "float32"
    """Weights while training, as in the stage `sft`."""
    keep: Literal["all", "products", "attention", "inputs"] = "all"
    """What each layer keeps for the backward pass, as in the stage `sft`."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Which optimiser takes the steps, as in the stage `sft`."""
    moments: Literal["full", "int8"] = "full"
    """What the optimiser remembers of gradients, as in the stage `sft`."""
    compile: bool = False
    """Compile the layers: faster on a GPU, after a minute at the start."""
    replicas: int = Field(1, ge=1)
    """Groups of processes that hold the same weights, as in the stage `sft`."""
    tensor_parallel: int = Field(1, ge=1)
    """Neighbouring processes that compute one pass together, as in the stage `sft`."""
    save_every: int = Field(20, ge=1)
    """Steps between checkpoints; a killed run repeats at most so many."""
    keep_checkpoints: int = Field(1, ge=1)
    """Checkpoints kept while training."""
    held_out: int = Field(0, ge=0)
    """Pairs of each language that are kept from training, to measure on; prompts are kept whole."""
    validate_every: int = Field(50, ge=1)
    """Steps between measurements on what is held out; one before the first and one after the last.
    """
    max_bad_steps: int = Field(3, ge=1)
    """Steps in a row whose loss or gradient is not finite after which the run stops."""
    watch: WatchConfig = Field(default_factory=lambda: WatchConfig.model_validate({}))
    """Answers to read while it trains, and trackers; changes nothing of what is learned."""

    @model_validator(mode="after")
    def _consistent(self) -> ApoConfig:
        faults = []
        if bool(self.data) == bool(self.pairs):
            faults.append("either `data` or `pairs`")
        stages = list(self.pair_stages().values())
        if len(set(stages)) < len(stages):
            faults.append("each stage of `pairs` once")
        if (self.steps is None) == (self.epochs is None):
            faults.append("either `steps` or `epochs`")
        if self.optimizer == "muon" and self.adapter is not None:
            faults.append("the optimizer `adamw` with an adapter: `muon` is for whole matrices")
        if (self.loss == "simpo") != (self.gamma is not None):
            faults.append("`gamma` with the loss `simpo`, and only with it")
        if self.loss == "simpo" and self.reference is not None:
            faults.append("no `reference` with the loss `simpo`, which has none")
        if any(source.weight != 1 for source in self.data):
            faults.append("sources without a `weight`: every pair is used once in a pass")
        if faults:
            raise ValueError("it needs " + ", and ".join(faults))
        return self

    def inputs(self) -> dict[str, str]:
        given = {"model": self.model, "reference": self.reference, **self.pair_stages()}
        return {label: name for label, name in given.items() if name is not None}

    def pair_stages(self) -> dict[str, str]:
        """The stages that have made pairs, by the label of the input."""
        if isinstance(self.pairs, tuple):
            return {f"pairs.{i}": name for i, name in enumerate(self.pairs)}
        return {} if self.pairs is None else {"pairs": self.pairs}

    def files(self) -> dict[str, str]:
        replayed = {} if self.replay is None else self.replay.files()
        return source_files(self.data) | replayed | self.watch.files()

    def sources(self) -> tuple[DataSource, ...]:
        """Where pairs come from; the file of a stage that has made some is one of them."""
        names = self.pairs if isinstance(self.pairs, tuple) else ("pairs",)
        made = ({"path": "pairs.jsonl", "name": name} for name in names)
        return self.data or tuple(DataSource.model_validate(each) for each in made)
