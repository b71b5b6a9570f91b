"""Which conversations of a batch are left out by what they say: language, repetition.

Duplicates need all rows and are found when the store is closed (`near.py`); copies of evaluations
are `contamination.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from singalaut.contracts import Message
from singalaut.data.ngrams import inner_windows, mix, window_counts, window_hashes

REPEATED_RUN_TOKENS = 8


class Identified(Protocol):
    """What language a text is in, by its code, and how sure that is, from 0 to 1."""

    @property
    def language(self) -> str | None: ...

    @property
    def confidence(self) -> float: ...


Identify = Callable[[str], Identified]


def answer_text(messages: Sequence[Message]) -> str:
    """All that the assistant says."""
    said = (m.content for m in messages if m.role == "assistant")
    return "\n".join(text for text in said if isinstance(text, str))


def repetition(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """For each document, the share of its runs of tokens that it has had before, from 0 to 1.

    `tokens` are the documents end to end; one too short for a run has share 0.
    """
    counts = window_counts(lengths, REPEATED_RUN_TOKENS)
    runs = window_hashes(tokens, REPEATED_RUN_TOKENS)
    runs = runs[inner_windows(lengths, REPEATED_RUN_TOKENS)] if len(runs) else runs
    document = np.repeat(np.arange(len(lengths)), counts)
    keys = runs ^ mix(document)  # so that one sort finds repetitions within each document
    order = np.argsort(keys, kind="stable")
    is_repeated = np.zeros(len(keys), dtype=bool)
    is_repeated[1:] = keys[order][1:] == keys[order][:-1]
    repeated = np.bincount(document[order[is_repeated]], minlength=len(lengths))
    return repeated / np.maximum(counts, 1)
