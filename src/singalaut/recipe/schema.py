"""What a recipe is: a name, a seed, a starting model and a list of stages, all typed.

Every kind of stage has its settings beside its code; this file only joins them. Whether the
stages fit together is checked in `references`.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from singalaut.data.config import PrepareConfig
from singalaut.evals.config import EvaluateConfig
from singalaut.merge.config import MergeConfig, MergeSearchConfig
from singalaut.pairs.config import PairsConfig
from singalaut.publish.config import CardConfig
from singalaut.rl.config import RlConfig
from singalaut.select.config import SelectConfig, SelectPairsConfig, SelectPromptsConfig
from singalaut.settings import Settings, StageSettings
from singalaut.train.config import ApoConfig, SftConfig

StageConfig = (
    PrepareConfig
    | SelectConfig
    | SelectPairsConfig
    | SelectPromptsConfig
    | SftConfig
    | PairsConfig
    | ApoConfig
    | MergeConfig
    | MergeSearchConfig
    | RlConfig
    | EvaluateConfig
    | CardConfig
)
KINDS: dict[str, type[StageSettings]] = {
    stage.model_fields["kind"].default: stage for stage in get_args(StageConfig)
}


class ModelConfig(Settings):
    """Where a recipe starts."""

    base: str
    """A model directory, a hub id, a GGUF file or `demo:gemma-3-270m`."""
    others: dict[str, str] = Field(default_factory=dict)
    """More models to start from, by the names that stages call them."""

    def sources(self) -> dict[str, str]:
        """Where each starting model comes from, by name."""
        return {"base": self.base, **self.others}


class Recipe(Settings):
    """A whole run, from the starting model to the last stage."""

    name: str
    """Name of the run's folder below `output`."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Decides everything that is random."""
    output: str = "runs"
    """Where run folders are made; relative paths are relative to the recipe."""
    model: ModelConfig | None = None
    """Where the recipe starts; not needed where it only asks models elsewhere."""
    stage: tuple[Annotated[StageConfig, Field(discriminator="kind")], ...] = Field(min_length=1)
    """What is done, in order; one `[[stage]]` table for each."""
