"""Settings of the release stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from singalaut.settings import StageSettings


class CardConfig(StageSettings):
    """Write the model card of a stage's model beside links to its weights."""

    VERSION: ClassVar[int] = 1
    OUTPUT: ClassVar[str] = "release"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {}
    NAMES_IN_KEY: ClassVar[bool] = True

    kind: Literal["card"] = "card"
    name: str = "card"
    model: str
    """The stage whose model is described."""
    evaluation: str | None = None
    """The evaluation stage whose results are shown."""
    title: str = "A Singalaut model"
    """Heading of the card."""

    def inputs(self) -> dict[str, str]:
        references = {"model": self.model}
        return (
            references if self.evaluation is None else {**references, "evaluation": self.evaluation}
        )
