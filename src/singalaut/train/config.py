"""Settings of training stages."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from singalaut.data.config import DataSource
from singalaut.settings import Settings, StageSettings

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


class SftConfig(StageSettings):
    """Supervised fine-tuning on the assistant's turns."""

    VERSION: ClassVar[int] = 1
    OUTPUT: ClassVar[str] = "model"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "data": {"__all__": {"path"}},
        "save_every": True,
    }

    kind: Literal["sft"] = "sft"
    name: str = "sft"
    model: str = "base"
    """The stage whose model is tuned, or `base`."""
    data: tuple[DataSource, ...] = Field(min_length=1)
    """Where the conversations come from."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
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
    keep: Literal["all", "products", "attention", "inputs"] = "all"
    """What each layer keeps for the backward pass; the rest is computed twice. `all` is fastest,
    `inputs` takes least memory; `products` and `attention` (of matrices, of attention) lie between.
    """
    compile: bool = False
    """Compile the layers: faster on a GPU, after a minute at the start."""
    save_every: int = Field(20, ge=1)
    """Steps between the checkpoints that a killed run resumes from."""

    def inputs(self) -> dict[str, str]:
        return {"model": self.model}

    def files(self) -> dict[str, str]:
        return {f"data.{i}": source.path for i, source in enumerate(self.data)}
