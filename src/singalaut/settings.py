"""The base of every typed configuration: frozen, strict about names, aware of its inputs."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of settings; unknown names are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class StageSettings(Settings):
    """What one stage of a recipe is told; each kind of stage has a subclass beside its code."""

    VERSION: ClassVar[int]
    """Raised whenever the same settings and inputs would give another output."""
    OUTPUT: ClassVar[str]
    """Kind of the artifact: model, evaluation or release."""
    NOT_IN_KEY: ClassVar[dict[str, Any]]
    """Names and paths, as pydantic's `exclude`; what they point to enters the key as an input."""
    NAMES_IN_KEY: ClassVar[bool] = False
    """Whether the output shows the names of earlier stages and of the starting models."""

    name: str
    """Name of the stage in its recipe."""

    def inputs(self) -> dict[str, str]:
        """Label of each input that is the output of a stage or `base`, and which."""
        return {}

    def files(self) -> dict[str, str]:
        """Label of each input that is a file or folder, and its path as written."""
        return {}

    def key_settings(self) -> dict[str, Any]:
        """The settings that decide the output."""
        return self.model_dump(mode="json", exclude={"name": True, **self.NOT_IN_KEY})
