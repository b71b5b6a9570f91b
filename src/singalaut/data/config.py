"""Settings of training data."""

from __future__ import annotations

from pydantic import Field

from singalaut.settings import Settings


class DataSource(Settings):
    """One file of training rows."""

    path: str
    """A JSONL file of conversations; relative paths are relative to the recipe."""
    weight: float = Field(1.0, gt=0)
    """How often the rows are used, relative to the other sources."""
    language: str | None = None
    """Language of rows that do not say; a code such as `th`."""
