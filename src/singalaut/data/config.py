"""Settings of training data: where rows come from, how they are cleaned, how they are mixed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from singalaut.settings import Settings, StageSettings

KNOWN_SUFFIXES = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow)(\.(gz|bz2|zst))?$", re.IGNORECASE
)
Column = Literal[
    "messages",
    "prompt",
    "answer",
    "system",
    "chosen",
    "rejected",
    "reference",
    "images",
    "tools",
    "id",
    "language",
    "source",
    "licence",
]


class DataSource(Settings):
    """One source of training rows: a file, a folder, or a data set of the Hugging Face hub."""

    path: str | None = None
    """A file or folder of rows; relative paths are relative to the recipe."""
    hub: str | None = None
    """A data set of the hub, as `org/name`, instead of a path."""
    subset: str | None = None
    """Which configuration of a data set of the hub."""
    split: str | None = None
    """Which split of a data set; `train` where there is one."""
    revision: str | None = None
    """Commit or tag of a data set of the hub; without it, what is newest when the stage runs."""
    name: str | None = None
    """What reports and mixtures call the source; without it, the name of the file."""
    weight: float = Field(1.0, gt=0)
    """How often each row is used in a pass, relative to the other sources."""
    limit: int | None = Field(None, ge=1)
    """Rows used in a pass, at most; other ones in each pass."""
    language: str | None = None
    """Language of rows that do not say; a code such as `th`."""
    licence: str | None = None
    """Licence of rows that do not say."""
    columns: dict[Column, str] = Field(default_factory=dict)
    """Which column holds what, where the rows have no known shape."""

    @model_validator(mode="after")
    def _one_place(self) -> DataSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source needs either `path` or `hub`, and not both")
        if self.hub is None and (self.subset or self.revision):
            raise ValueError("`subset` and `revision` are for data sets of the hub")
        return self

    @property
    def label(self) -> str:
        """The name of the source in reports and mixtures."""
        place = Path(self.path or self.hub or "")
        return self.name or KNOWN_SUFFIXES.sub("", place.name) or place.name


class CleanConfig(Settings):
    """Which rows are left out, beside those that nothing can be learned from."""

    duplicates: bool = True
    """Leave out rows whose tokens are those of an earlier row."""
    near_duplicates: float | None = Field(None, gt=0.3, le=1)
    """Leave out rows that share this much of their runs of five tokens with an earlier row."""
    language: float | None = Field(None, gt=0, le=1)
    """Leave out rows whose answers are surely, with this confidence, in another language."""
    min_answer_tokens: int = Field(1, ge=1)
    """Leave out rows with fewer tokens to learn."""
    max_repetition: float | None = Field(None, gt=0, le=1)
    """Leave out rows in whose answers more than this share of runs of eight tokens repeat."""
    evaluations: tuple[str, ...] = ()
    """Packs or folders of evaluation texts that no row may hold."""
    contamination: float = Field(0.6, gt=0, le=1)
    """Share of an evaluation text from which a row holds it."""


class MixConfig(Settings):
    """How often rows are used in a pass: weights of sources and languages, and their limits."""

    sources: dict[str, float] = Field(default_factory=dict)
    """Factor on the weight of a source, by its name; 0 leaves it out."""
    languages: dict[str, float] = Field(default_factory=dict)
    """Factor on the weight of a language, by its code; 0 leaves it out."""
    temperature: float = Field(1.0, ge=1, le=100)
    """Shares of languages are raised to 1 / temperature: higher values make them more equal."""
    max_repeats: float | None = Field(None, gt=0)
    """How often a row may be used in a pass, on average of its source and language."""


class PrepareConfig(StageSettings):
    """Reads, cleans and tokenises rows into a store that training maps into memory."""

    VERSION: ClassVar[int] = 3
    OUTPUT: ClassVar[str] = "data"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "model": True,
        "data": {"__all__": {"path"}},
        "clean": {"evaluations": True},
        "workers": True,
        "max_bad_share": True,
    }

    kind: Literal["prepare"] = "prepare"
    name: str = "prepare"
    model: str = "base"
    """The model whose tokenizer and chat format are used: a stage, or `base`."""
    data: tuple[DataSource, ...] = Field(min_length=1)
    """Where the rows come from."""
    max_tokens: int = Field(4096, ge=2)
    """Longest conversation, in tokens."""
    too_long: Literal["leave out", "cut"] = "leave out"
    """What happens to longer conversations; both are counted."""
    max_bad_share: float = Field(0.01, ge=0, le=1)
    """Share of a source's rows that may be unusable before the stage stops."""
    clean: CleanConfig = Field(default_factory=lambda: CleanConfig.model_validate({}))
    """What else is left out."""
    workers: int | None = Field(None, ge=1)
    """Processes; without it, one for each core."""

    def inputs(self) -> dict[str, str]:
        return {"model": self.model}

    def key_settings(self) -> dict[str, Any]:
        settings = super().key_settings()
        for source, values in zip(self.data, settings["data"], strict=True):
            values["name"] = source.label  # a file may be elsewhere, but its name is in the store
        return settings

    def files(self) -> dict[str, str]:
        return source_files(self.data) | {
            f"pack.{i}": place for i, place in enumerate(self.clean.evaluations)
        }


def source_files(sources: tuple[DataSource, ...]) -> dict[str, str]:
    """Label and path of each source that is a file or folder."""
    return {f"data.{i}": source.path for i, source in enumerate(sources) if source.path is not None}
