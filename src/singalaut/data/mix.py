"""Which documents a pass over the data has, and in which order: a function of the seed alone.

A group is what one source has in one language. Its quota is its size, times the weights of source
and language, bent by the temperature and cut by the limits; in passes after one another a group is
gone through again and again, each time in another order, so that all its documents have been used
equally often, give or take one. No state is kept: the order of any pass can be asked for, by any
process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from singalaut.contracts import derive
from singalaut.data.ngrams import mix
from singalaut.data.store import Store
from singalaut.errors import DataError


@dataclass(frozen=True)
class Mixture:
    """How often the documents of each group are used in a pass."""

    groups: tuple[np.ndarray, ...]
    """The documents of each group, in the order of the store."""
    quotas: tuple[float, ...]
    """How many of them a pass has, on average."""
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def begin(self, number: int) -> int:
        """How many documents all passes before this one have."""
        return sum(int(number * quota) for quota in self.quotas)

    def documents(self, first: int, last: int) -> np.ndarray:
        """The documents from `first` up to `last` of all passes one after the other."""
        parts = [np.empty(0, dtype=np.int64)]
        number = self._pass_of(first)
        while first < last:
            order, begin = self.order(number), self.begin(number)
            part = order[first - begin : last - begin]
            parts.append(part)
            first += len(part)
            number += 1
        return np.concatenate(parts)

    def _pass_of(self, place: int) -> int:
        """The pass in which a place among all documents lies."""
        number = int(place / sum(self.quotas))
        while self.begin(number) > place:
            number -= 1
        while self.begin(number + 1) <= place:
            number += 1
        return number

    def order(self, number: int) -> np.ndarray:
        """The documents of a pass, in order; the last two passes asked for are remembered."""
        if number not in self._orders:
            if len(self._orders) > 1:
                self._orders.pop(next(iter(self._orders)))
            self._orders[number] = self._order(number)
        return self._orders[number]

    def _order(self, number: int) -> np.ndarray:
        drawn = [np.empty(0, dtype=np.int64)]
        rounds = [np.empty(0, dtype=np.int64)]
        for group, quota in zip(self.groups, self.quotas, strict=True):
            first, last = int(number * quota), int((number + 1) * quota)
            while first < last:  # from the round that the last pass left off in
                turn, begin = divmod(first, len(group))
                end = min(len(group), begin + last - first)
                drawn.append(shuffled(group, self.seed, "round", turn)[begin:end])
                rounds.append(np.full(end - begin, turn))
                first += end - begin
        documents = np.concatenate(drawn)
        # a document that comes twice has two places: the round tells them apart
        keys = mix(documents.astype(np.uint64) ^ mix(np.concatenate(rounds)))
        keys = mix(keys ^ np.uint64(derive(self.seed, "pass", number)))
        return documents[np.argsort(keys, kind="stable")]


def shuffled(documents: np.ndarray, seed: int, *names: str | int) -> np.ndarray:
    """The documents in an order that depends on the seed, the names and nothing else.

    Each gets a key from its own number, so that a document more or less does not change the order
    of the others.
    """
    keys = mix(documents.astype(np.uint64) ^ np.uint64(derive(seed, *names)))
    return documents[np.argsort(keys, kind="stable")]


def mixture(
    store: Store,
    seed: int,
    *,
    weights: Sequence[float],
    limits: Sequence[int | None],
    sources: Mapping[str, float] | None = None,
    languages: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    max_repeats: float | None = None,
    longest: int | None = None,
    without: np.ndarray | None = None,
) -> Mixture:
    """The mixture of a store's documents.

    A group's quota is n · w(source) · f(source) · f(language) · t(language), where n is its size,
    w the weight of its source, f the factors of `sources` and `languages` by name, and t brings
    the share of a language from p to one in proportion to p^(1 / temperature), all languages
    together staying as large. Then limits: of a source, in rows; of a group, `max_repeats` · n.
    Documents above `longest` tokens and those of `without` are left out.

    Raises: DataError for a source or language that the store does not have, or an empty mixture.
    """
    names = [source.name for source in store.sources]
    _check_known("sources", sources or {}, names)
    _check_known("languages", languages or {}, store.languages)
    documents = store.documents
    key = documents["source"].astype(np.int64) * len(store.languages) + documents["language"]
    if longest is not None:
        key[documents["tokens"] > longest] = -1
    if without is not None:
        key[without] = -1
    order = np.argsort(key, kind="stable")
    found, begins, sizes = np.unique(key[order], return_index=True, return_counts=True)
    begins, sizes, found = begins[found >= 0], sizes[found >= 0], found[found >= 0]
    source, language = np.divmod(found, len(store.languages))
    weight = np.array(weights, dtype=np.float64)[source]
    weight *= np.array([(sources or {}).get(name, 1.0) for name in names])[source]
    weight *= np.array([(languages or {}).get(code, 1.0) for code in store.languages])[language]
    quota = sizes * weight
    by_language = np.bincount(language, quota, minlength=len(store.languages))
    quota *= _tempered(by_language, temperature)[language]
    for number, limit in enumerate(limits):
        total = quota[source == number].sum()
        if limit is not None and total > limit:
            quota[source == number] *= limit / total
    if max_repeats is not None:
        quota = np.minimum(quota, max_repeats * sizes)
    if not quota.sum() >= 1:
        raise DataError(
            "the mixture has less than one row in a pass",
            where=store.folder,
            hint="look at the weights, and at the longest conversation that is allowed",
        )
    groups = [order[b : b + n] for b, n in zip(begins.tolist(), sizes.tolist(), strict=True)]
    return Mixture(tuple(groups), tuple(quota.tolist()), seed)


def hold_out(store: Store, seed: int, rows_per_language: int) -> np.ndarray:
    """Documents to measure on, up to so many of each language and never more than a tenth of it."""
    language = store.documents["language"]
    chosen = [np.empty(0, dtype=np.int64)]
    for number in range(len(store.languages)):
        own = np.flatnonzero(language == number)
        chosen.append(shuffled(own, seed, "hold out")[: min(rows_per_language, len(own) // 10)])
    return np.sort(np.concatenate(chosen))


def _tempered(amounts: np.ndarray, temperature: float) -> np.ndarray:
    """The factor on each amount that makes shares p^(1/temperature) and keeps the sum."""
    if temperature == 1:
        return np.ones_like(amounts)
    powers = np.power(amounts, 1 / temperature, where=amounts > 0, out=np.zeros_like(amounts))
    wanted = powers * (amounts.sum() / powers.sum()) if powers.sum() else powers
    return np.divide(wanted, amounts, where=amounts > 0, out=np.ones_like(amounts))


def _check_known(what: str, given: Mapping[str, float], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            hint = "known: " + ", ".join(sorted(set(known)))
            raise DataError(f"the data have none of the {what} named `{name}`", hint=hint)
