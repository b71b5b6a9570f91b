"""Settings of watching a training stage; none of them changes what is learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from singalaut.settings import Settings


class WatchConfig(Settings):
    """What is shown of a stage while it trains, beside its metrics and its page."""

    samples: tuple[str, ...] = ()
    """Questions that the model answers greedily now and then, to be read."""
    samples_file: str | None = None
    """A file of more such questions: JSON lines with `messages` or `prompt`, or a question a line.
    """
    sample_every: int = Field(100, ge=1)
    """Steps between answers; there are some before the first step and after the last, too."""
    sample_tokens: int = Field(128, ge=1)
    """Longest answer."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics are shown as well; each has to be installed."""

    @model_validator(mode="after")
    def _each_once(self) -> WatchConfig:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError("a tracker is named twice")
        if any(not question.strip() for question in self.samples):
            raise ValueError("a question of `samples` is empty")
        return self

    def files(self) -> dict[str, str]:
        """The file of questions, by the label of an input that decides nothing."""
        return {} if self.samples_file is None else {"watch.samples": self.samples_file}
