"""Settings of the merge stage."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator

from singalaut.settings import Settings, StageSettings

MethodName = Literal[
    "linear",
    "slerp",
    "nuslerp",
    "karcher",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "model_stock",
    "sce",
    "passthrough",
]


class Filtered(Settings):
    """A value for some tensors."""

    filter: str = "*"
    """Part of a tensor's name, such as `self_attn`, or a pattern with `*`."""
    value: float | tuple[float, ...]
    """A number, or a list that is spread over the layers."""


def _is_number(raw: Any) -> bool:
    return isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw)


def _value(raw: Any) -> float | tuple[float, ...] | tuple[Filtered, ...]:
    """A number, a list of numbers over the layers, or a list of values for some tensors."""
    if _is_number(raw):
        return float(raw)
    if isinstance(raw, list | tuple) and raw:
        if all(map(_is_number, raw)):
            return tuple(map(float, raw))
        if all(isinstance(entry, dict | Filtered) for entry in raw):
            return tuple(Filtered.model_validate(entry) for entry in raw)
    raise ValueError("needs a number, a list of numbers, or a list of { filter, value }")


Value = Annotated[Any, PlainValidator(_value)]  # what `_value` returns


class InputParameters(Settings):
    """What a method is told of each model."""

    weight: Value | None = None
    """Its share; 1 where nothing else is said."""
    density: Value | None = None
    """Share of the entries of its task vector that are kept."""
    gamma: Value | None = None
    """Share of the largest entries that breadcrumbs drop."""
    epsilon: Value | None = None
    """DELLA keeps with probability density ± epsilon, by rank."""
    scale: Value | None = None
    """Factor of a model that is passed through."""


class Parameters(InputParameters):
    """What a method is told; the names are mergekit's. Each method says which it knows."""

    t: Value | None = None
    """Way from the first model to the second."""
    lambda_: Value | None = Field(default=None, alias="lambda")
    """Factor of the merged task vector."""
    normalize: bool | None = None
    """Divide by the sum of the weights."""
    rescale: bool | None = None
    """Give a thinned task vector its former sum of magnitudes again."""
    filter_wise: bool | None = None
    """Model Stock: an angle for each row instead of one for the tensor."""
    select_topk: Value | None = None
    """SCE: share of the entries, those that vary most, that take part."""
    uniform_below: float | None = Field(default=None, ge=0)
    """SCE: sum of mean squares below which all models weigh the same."""
    max_iter: int | None = Field(default=None, ge=1)
    """Karcher mean: steps at most."""
    tol: float | None = Field(default=None, gt=0)
    """Karcher mean: length of the step that ends the search."""
    nuslerp_flatten: bool | None = None
    """NuSLERP: one angle for the tensor."""
    nuslerp_row_wise: bool | None = None
    """NuSLERP that is not flat: an angle for each column of the weight, as in mergekit."""


class MergeInput(InputParameters):
    """One of the models that are merged."""

    source: str = Field(alias="from")
    """The stage whose model it is, or a starting model."""
    adapter: str | None = None
    """A PEFT adapter that is added to it first."""
    layers: tuple[int, int] | None = None
    """In a slice: the first layer, and the one after the last."""


class Slice(Settings):
    """Consecutive layers of the output, and where they come from."""

    sources: tuple[MergeInput, ...] = Field(min_length=1)
    """Models with the range of layers that each gives."""
    parameters: Parameters = Parameters()
    """Parameters in these layers."""


class MergeConfig(StageSettings):
    """Combine models into one."""

    VERSION: ClassVar[int] = 2
    OUTPUT: ClassVar[str] = "model"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {"device": True, "threads": True}

    kind: Literal["merge"] = "merge"
    name: str = "merge"
    models: tuple[MergeInput, ...] = ()
    """What is merged; the first one gives the other files."""
    slices: tuple[Slice, ...] = ()
    """Instead of `models`: the output as layers from several models."""
    base: str | None = None
    """The model that task vectors are differences from."""
    method: MethodName = "linear"
    """How."""
    parameters: Parameters = Parameters()
    """Parameters for all models and tensors that say nothing themselves."""
    tokenizer: str | None = None
    """The model whose vocabulary the output has, or `union`; without it all must have one."""
    embeddings_from: str | None = None
    """The model whose embedding is taken over instead of merged."""
    embedding_rows: Literal["all", "control"] = "all"
    """Which rows of it: all, or those of the control tokens only."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the output; the first model's where not given. The work is done in float32."""
    shard_gb: float = Field(5.0, gt=0)
    """Largest file of weights; a killed merge goes on at the next file."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    threads: int | None = Field(None, ge=1)
    """Workers that read and compute; two more than there are cores where not given."""

    def all_inputs(self) -> dict[str, MergeInput]:
        """Every model with the label of its place."""
        found = {f"models.{i}": model for i, model in enumerate(self.models)}
        for i, piece in enumerate(self.slices):
            found |= {f"slices.{i}.sources.{j}": m for j, m in enumerate(piece.sources)}
        return found

    def inputs(self) -> dict[str, str]:
        named = {label: model.source for label, model in self.all_inputs().items()}
        return named if self.base is None else {**named, "base": self.base}

    def files(self) -> dict[str, str]:
        return {
            f"{label}.adapter": model.adapter
            for label, model in self.all_inputs().items()
            if model.adapter is not None
        }

    def key_settings(self) -> dict[str, Any]:
        """Models enter the key as inputs; only which of them is meant where is a setting."""
        settings = super().key_settings()
        order = list(dict.fromkeys(self.inputs().values()))
        return _numbered(settings, {name: f"#{order.index(name)}" for name in order})


NAMES_A_MODEL = ("source", "base", "tokenizer", "embeddings_from")


def _numbered(value: Any, numbers: dict[str, str]) -> Any:
    """The settings with a number for each model's name, so that renaming changes no key."""
    if isinstance(value, dict):
        return {
            key: numbers.get(item, item)
            if key in NAMES_A_MODEL and isinstance(item, str)
            else bool(item)
            if key == "adapter"
            else _numbered(item, numbers)
            for key, item in value.items()
        }
    return [_numbered(item, numbers) for item in value] if isinstance(value, list) else value


SEARCHED = ("weight", "density", "gamma", "epsilon", "t", "lambda", "select_topk")


class MergeSearchConfig(StageSettings):
    """Look for the merge that an evaluation likes best."""

    VERSION: ClassVar[int] = 1
    OUTPUT: ClassVar[str] = "model"
    NOT_IN_KEY: ClassVar[dict[str, Any]] = {"device": True, "pack": True}

    kind: Literal["merge_search"] = "merge_search"
    name: str = "merge_search"
    models: tuple[MergeInput, ...] = Field(min_length=1)
    """What is merged; a parameter that is given here is not searched for."""
    base: str | None = None
    """The model that task vectors are differences from."""
    methods: tuple[MethodName, ...] = Field(("linear",), min_length=1)
    """Methods to try."""
    ranges: dict[str, tuple[float, float]] = Field(default_factory=lambda: {"weight": (0.0, 1.0)})
    """Smallest and largest value of each parameter that is searched for."""
    parameters: Parameters = Parameters()
    """Parameters that stay."""
    tokenizer: str | None = None
    """The model whose vocabulary the output has, or `union`."""
    pack: str = "demo"
    """The evaluation: `demo`, or the folder of a pack."""
    tasks: tuple[str, ...] = ()
    """Only these tasks; empty is all."""
    languages: tuple[str, ...] = ()
    """Only these languages; empty is all."""
    limit: int | None = Field(None, ge=1)
    """Only the first rows of each task and language."""
    objectives: tuple[str, ...] = Field(("all",), min_length=1)
    """Rows of the results to maximise: a task, a language, or `all`."""
    trials: int = Field(20, ge=1)
    """Merges to try, beside the models themselves."""
    allowed_failures: float = Field(0.0, ge=0, le=1)
    """Share of an evaluation's requests that may fail; they are left out of its scores."""
    device: str = "auto"
    """Where the merging is done."""

    def as_merge(self, **changes: Any) -> MergeConfig:
        """The settings of one merge of these models."""
        shared = {"models": self.models, "base": self.base, "parameters": self.parameters}
        other = {"name": self.name, "tokenizer": self.tokenizer, "device": self.device}
        return MergeConfig.model_validate({**shared, **other, **changes})

    def inputs(self) -> dict[str, str]:
        return self.as_merge().inputs()

    def files(self) -> dict[str, str]:
        return {"pack": self.pack, **self.as_merge().files()}

    def key_settings(self) -> dict[str, Any]:
        order = list(dict.fromkeys(self.inputs().values()))
        settings = super().key_settings()
        if not self.allowed_failures:
            del settings["allowed_failures"]  # keys of before there was this stay as they were
        return _numbered(settings, {n: f"#{order.index(n)}" for n in order})
