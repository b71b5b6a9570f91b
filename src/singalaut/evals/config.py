"""Settings of the evaluation stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from singalaut.settings import StageSettings


class EvaluateConfig(StageSettings):
    """Answer and score the tasks of a pack with one or more models."""

    VERSION: ClassVar[int] = 1
    OUTPUT: ClassVar[str] = "evaluation"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {"pack": True}

    kind: Literal["evaluate"] = "evaluate"
    name: str = "evaluate"
    models: tuple[str, ...] = Field(("base",), min_length=1)
    """The stages whose models are judged, or `base`; the names head the columns of the results."""
    pack: str = "demo"
    """`demo`, or the folder of a pack."""
    tasks: tuple[str, ...] = ()
    """Only these tasks; empty is all."""
    languages: tuple[str, ...] = ()
    """Only these languages; empty is all."""
    limit: int | None = Field(None, ge=1)
    """Only the first rows of each task and language."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    batch_size: int = Field(16, ge=1)
    """Answers generated at once."""

    def inputs(self) -> dict[str, str]:
        return {f"models.{name}": name for name in self.models}

    def files(self) -> dict[str, str]:
        return {"pack": self.pack}
