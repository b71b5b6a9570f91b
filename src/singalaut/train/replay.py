"""Conversations that other stages than `sft` learn again, so that what they taught is kept.

A policy that is rewarded for some things forgets others. The gradient of the usual loss on earlier
rows, added to every step, holds on to them. Source: PPO-ptx of arXiv 2203.02155, with rows of
fine-tuning instead of pretraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from singalaut.contracts import derive
from singalaut.data.batches import Micro, micro_batches
from singalaut.data.cache import cached_store, open_store, stored_in
from singalaut.data.mix import Mixture, mixture
from singalaut.data.store import Store
from singalaut.model.hf import read_config
from singalaut.train.config import ReplayConfig
from singalaut.train.material import check_context
from singalaut.train.pictures import sight_of


@dataclass(frozen=True)
class Replay:
    """The rows of a store in the order of a seed: any step can ask for its own."""

    config: ReplayConfig
    store: Store
    mixture: Mixture

    def micros(self, step: int, micro_tokens: int) -> list[Micro]:
        """What is learned again in a step."""
        first = step * self.config.rows
        chosen = self.mixture.documents(first, first + self.config.rows)
        return micro_batches(self.store, chosen, micro_tokens)


def open_replay(
    config: ReplayConfig | None, model: Path, data: Sequence[Path | None], seed: int
) -> Replay | None:
    """The rows of `data`, the file or folder of each source, tokenised now or earlier.

    Raises: DataError where nothing is left to learn, or a conversation exceeds the context.
    """
    if config is None:
        return None
    prepared = stored_in(data)
    if prepared is None:
        store = cached_store(config.data, data, model, config.max_tokens, sight_of(model))
    else:
        store = open_store(prepared, model)
    sources = config.data if prepared is None else store.sources
    mixed = mixture(
        store,
        derive(seed, "replay"),
        weights=[source.weight for source in sources],
        limits=[source.limit for source in sources],
        longest=config.max_tokens,
    )
    check_context(store, mixed, read_config(model).max_positions, config.max_tokens)
    return Replay(config, store, mixed)
