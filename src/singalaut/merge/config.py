"""Settings of the merge stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from singalaut.settings import Settings, StageSettings


class MergeInput(Settings):
    """One of the models that are merged."""

    source: str = Field(alias="from")
    """The stage whose model it is, or `base`."""
    weight: float = 1.0
    """Its share."""


class MergeConfig(StageSettings):
    """Combine models of one shape into one."""

    VERSION: ClassVar[int] = 1
    OUTPUT: ClassVar[str] = "model"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {"models": {"__all__": {"source"}}}

    kind: Literal["merge"] = "merge"
    name: str = "merge"
    models: tuple[MergeInput, ...] = Field(min_length=1)
    """What is merged; the first one gives the tokenizer and the other files."""
    method: Literal["linear"] = "linear"
    """`linear`: the weighted sum of the weights."""
    normalize: bool = True
    """Divide by the sum of the weights."""

    def inputs(self) -> dict[str, str]:
        return {f"models.{i}": model.source for i, model in enumerate(self.models)}
