"""What a training stage learns from: a token store, how it is mixed, and what is held out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from singalaut.data.cache import cached_store, open_store, stored_in
from singalaut.data.mix import Mixture, mixture, shuffled
from singalaut.data.store import Store
from singalaut.errors import DataError
from singalaut.model.hf import read_config
from singalaut.train.config import SftConfig
from singalaut.train.pictures import sight_of

log = logging.getLogger("singalaut")


@dataclass(frozen=True)
class Material:
    """A store, the order in which it is learned, and the documents that are measured on."""

    store: Store
    mixture: Mixture
    held_out: np.ndarray
    steps: int


def open_material(
    config: SftConfig,
    model: Path,
    data: Sequence[Path | None],
    seed: int,
    prepared: Path | None,
) -> Material:
    """The token store of a stage and its mixture; what the stage has no store of is tokenised.

    Raises: DataError where nothing is left to learn, or a conversation exceeds the context.
    """
    if prepared is None:
        prepared = stored_in(data)
    if prepared is None:
        store = cached_store(config.data, data, model, config.max_tokens, sight_of(model))
        weights = [source.weight for source in config.data]
        limits = [source.limit for source in config.data]
    else:
        store = open_store(prepared, model)
        weights = [source.weight for source in store.sources]
        limits = [source.limit for source in store.sources]
    held_out = _held_out(store, config.held_out, config.max_tokens, seed)
    mixed = mixture(
        store,
        seed,
        weights=weights,
        limits=limits,
        sources=config.mix.sources,
        languages=config.mix.languages,
        temperature=config.mix.temperature,
        max_repeats=config.mix.max_repeats,
        longest=config.max_tokens,
        without=held_out,
    )
    check_context(store, mixed, read_config(model).max_positions, config.max_tokens)
    total = sum(mixed.quotas)
    log.info("%s conversations in a pass, %d held out", f"{total:,.0f}", len(held_out))
    steps = config.steps or math.ceil((config.epochs or 1) * total / config.batch_size)
    return Material(store, mixed, held_out, steps)


def _held_out(store: Store, count: int, longest: int, seed: int) -> np.ndarray:
    """`count` documents of each source and language, at most half of them, by the seed."""
    if not count:
        return np.empty(0, dtype=np.int64)
    documents = store.documents
    key = documents["source"].astype(np.int64) * len(store.languages) + documents["language"]
    short = documents["tokens"] <= longest
    chosen = [np.empty(0, dtype=np.int64)]
    for group in np.unique(key[short]):
        members = np.flatnonzero((key == group) & short)
        chosen.append(shuffled(members, seed, "held out")[: min(count, len(members) // 2)])
    return np.concatenate(chosen)


def check_context(store: Store, mixed: Mixture, context: int, max_tokens: int) -> None:
    """Refuse conversations that are longer than what the model was made for."""
    documents = np.concatenate(mixed.groups)
    longest = documents[store.documents["tokens"][documents].argmax()]
    record = store.documents[longest]
    if record["tokens"] > context:
        raise DataError(
            f"a conversation has {record['tokens']} tokens; the model's context is {context}",
            where=f"{store.sources[record['source']].name}, row {record['row']}",
            hint=f"lower `max_tokens` from {max_tokens} to {context}: longer conversations are "
            "then left out and counted; or shorten them",
        )
