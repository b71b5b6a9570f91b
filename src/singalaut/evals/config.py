"""Settings of the evaluation stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from singalaut.remote.config import EndpointConfig
from singalaut.settings import Settings, StageSettings


class NamedEndpoint(EndpointConfig):
    """A model behind an endpoint, as a column of the results."""

    name: str = Field(min_length=1)
    """Heads the column."""


class NamedRecording(Settings):
    """Answers that something else has generated, as a column of the results."""

    name: str = Field(min_length=1)
    """Heads the column."""
    path: str = Field(min_length=1)
    """JSON lines with `id` or `prompt`, and `response`."""


class JudgeConfig(EndpointConfig):
    """The judge of conversations and criteria."""

    temperature: float = Field(0.6, ge=0)
    """Of the judge's answers."""
    max_tokens: int = Field(2048, ge=1)
    """Longest answer of the judge."""
    prompt_price: float = Field(0.0, ge=0)
    """Per million tokens of prompts, in whatever currency."""
    answer_price: float = Field(0.0, ge=0)
    """Per million tokens of answers."""
    highest_cost: float | None = Field(None, ge=0)
    """An estimate above this is refused before the first request."""


class ProtocolConfig(Settings):
    """How models are asked, where it shall differ from the profile."""

    seeds: int | None = Field(None, ge=1, le=64)
    """Runs of each question; one suffices where answers are greedy."""
    shots: int = Field(0, ge=0, le=64)
    """Worked examples before each question."""
    base: bool = False
    """The model is not tuned for conversations: five examples, plain text, no open tasks."""
    logprobs: bool = False
    """Choose labels by their log-probability instead of by what is written."""
    extraction: Literal["official", "robust"] = "official"
    """Which reading of answers is scored; the other is reported beside it."""
    resamples: int = Field(1000, ge=100, le=100_000)
    """Of the bootstrap behind intervals."""
    allowed_failures: float = Field(0.0, ge=0, le=1)
    """Share of requests that may fail for good; they are left out of the scores and counted."""


class EvaluateConfig(StageSettings):
    """Answer and score the tasks of a pack with one or more models."""

    VERSION: ClassVar[int] = 2
    OUTPUT: ClassVar[str] = "evaluation"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {
        "pack": True,
        "data": True,
        "metricx": True,
        "cache_gib": True,
        "tensor_parallel": True,
        "replicas": True,
    }

    kind: Literal["evaluate"] = "evaluate"
    name: str = "evaluate"
    models: tuple[str, ...] = ("base",)
    """The stages whose models are judged, or `base`; the names head the columns of the results."""
    endpoints: tuple[NamedEndpoint, ...] = ()
    """Models behind OpenAI-compatible endpoints."""
    recorded: tuple[NamedRecording, ...] = ()
    """Answers from files."""
    pack: str = "demo"
    """`demo`, or the folder of a pack, of our own task files or SEA-HELM's."""
    data: tuple[str, ...] = ()
    """More folders with the rows of an official pack."""
    profile: Literal["card", "v1.0", "v1.2"] = "card"
    """The protocol: prompts, rules of extraction, runs."""
    protocol: ProtocolConfig = Field(default_factory=lambda: ProtocolConfig.model_validate({}))
    """What shall differ from the profile."""
    tasks: tuple[str, ...] = ()
    """Only these tasks; empty is all."""
    languages: tuple[str, ...] = ()
    """Only these languages; empty is all."""
    extras: bool = False
    """Also what an official suite has rows for but does not average."""
    limit: int | None = Field(None, ge=1)
    """Only the first rows of each task and language."""
    temperature: float | None = Field(None, ge=0)
    """0 is greedy; unset takes the model's own settings, or the profile's."""
    batch_size: int | None = Field(None, ge=1)
    """Answers generated at once; unset takes what suits the device."""
    cache_gib: float | None = Field(None, gt=0)
    """Memory for the keys and values of an engine; unset takes most of what is free."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that hold a model together."""
    replicas: int = Field(1, ge=1)
    """Engines that share the questions, each with GPUs of its own."""
    judge: JudgeConfig | None = None
    """Who compares conversations; without one they are not scored."""
    metricx: str = ""
    """Directory of a MetricX-24 checkpoint; without one translations are scored by chrF++."""

    @model_validator(mode="after")
    def _columns(self) -> EvaluateConfig:
        elsewhere = [item.name for item in self.endpoints]
        elsewhere += [item.name for item in self.recorded]
        if not self.models and not elsewhere:
            raise ValueError("nothing to evaluate: name a model, an endpoint or a recording")
        for name in elsewhere:
            if name in self.models or elsewhere.count(name) > 1:
                raise ValueError(f"two columns are named `{name}`")
        return self

    def inputs(self) -> dict[str, str]:
        return {f"models.{name}": name for name in self.models}

    def files(self) -> dict[str, str]:
        files = {"pack": self.pack}
        files |= {f"data.{place}": path for place, path in enumerate(self.data)}
        files |= {f"recorded.{item.name}": item.path for item in self.recorded}
        return files | ({"metricx": self.metricx} if self.metricx else {})

    def key_settings(self) -> dict[str, Any]:
        """The settings that decide the output; how fast an endpoint is asked does not."""
        settings = super().key_settings()
        for endpoint in (*settings["endpoints"], *([settings["judge"]] if self.judge else [])):
            for name in (
                "key_variable",
                "concurrency",
                "requests_per_minute",
                "tokens_per_minute",
                "timeout_seconds",
                "retries",
                "prompt_price",
                "answer_price",
                "highest_cost",
            ):
                endpoint.pop(name, None)
        for recording in settings["recorded"]:
            del recording["path"]
        return settings
