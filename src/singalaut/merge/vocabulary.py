"""One vocabulary for models that have different ones: rows of the embedding matched by token text.

The output has the vocabulary of one model, or that model's with the tokens of the others behind
it. A model without a token gets the base's row for it; if the base has none either, the mean of
those that have it. Rows beyond the tokens are matched by their number. What has no row anywhere
becomes zero. How the rows are then merged is left to the method.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from singalaut.artifact import hash_file, write_atomic
from singalaut.errors import CheckpointError

TOKENIZER = "tokenizer.json"
EXAMPLES = 5


@dataclass(frozen=True)
class Vocabulary:
    """Ids by token text, control tokens, and the file they were read from."""

    ids: dict[str, int]
    control: frozenset[str]
    raw: dict[str, Any]
    folder: Path

    def without_rows_beyond(self, num_rows: int) -> dict[str, int]:
        """The tokens that have a row in an embedding of this size."""
        return {token: index for token, index in self.ids.items() if index < num_rows}


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokens of a model directory's `tokenizer.json`."""
    file = folder / TOKENIZER
    try:
        raw = json.loads(file.read_bytes())
        added = {entry["content"]: entry for entry in raw["added_tokens"]}
        ids = {**raw["model"]["vocab"], **{token: e["id"] for token, e in added.items()}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the vocabulary cannot be read ({type(error).__name__}: {error})",
            where=file,
            hint="vocabularies are compared by `tokenizer.json`; put it beside the weights",
        ) from error
    return Vocabulary(ids, frozenset(t for t, e in added.items() if e.get("special")), raw, folder)


def check_same(folders: Sequence[Path], num_rows: int) -> None:
    """Raises CheckpointError naming the first token that two models have under different ids."""
    files = [folder / TOKENIZER for folder in dict.fromkeys(folders)]
    present = [file for file in files if file.exists()]
    if len({hash_file(file) for file in present}) <= 1:
        return
    first = read_vocabulary(present[0].parent).without_rows_beyond(num_rows)
    for file in present[1:]:
        other = read_vocabulary(file.parent).without_rows_beyond(num_rows)
        differing = {token for token, index in first.items() if other.get(token) != index}
        differing |= {token for token in other if token not in first}
        if differing:
            token = min(differing, key=lambda t: (first.get(t, other.get(t)), t))
            here, there = (
                f"token {ids[token]}" if token in ids else "no token" for ids in (other, first)
            )
            raise CheckpointError(
                f"`{token}` is {here} here and {there} in the first model "
                f"({len(differing)} tokens differ)",
                where=file,
                hint='name the vocabulary to use, `tokenizer = "union"` or the name of a model',
            )


class HasRows(Protocol):
    """A model whose embedding can be read by rows."""

    def rows(self, name: str, part: slice, out: Tensor) -> Tensor: ...

    def gather(self, name: str, indices: Tensor) -> Tensor: ...


@dataclass
class Alignment:
    """Where each row of the output's embedding lies in each model; -1 where it has none."""

    sources: Sequence[HasRows]
    indices: Sequence[np.ndarray]
    base: int | None
    control_rows: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and examples, for the report."""

    @property
    def num_rows(self) -> int:
        return len(self.indices[0])

    def rows(self, source: HasRows, name: str, part: slice, out: Tensor) -> Tensor:
        """Rows of one model in the order of the output, those that it lacks filled in."""
        own = next(i for i, each in enumerate(self.sources) if each is source)
        wanted = self.indices[own][part]
        start = int(wanted[0])
        if start >= 0 and np.array_equal(wanted, np.arange(start, start + len(wanted))):
            return source.rows(name, slice(start, start + len(wanted)), out)
        present = torch.from_numpy(wanted >= 0)
        if present.any():
            found = source.gather(name, torch.from_numpy(wanted)[present])
            out[present.to(out.device)] = found.to(out.device)
        for row in np.flatnonzero(wanted < 0).tolist():
            self._stand_in(name, part.start + row, out[row : row + 1])
        return out

    def _stand_in(self, name: str, row: int, out: Tensor) -> None:
        """What a model without the row gets: the base's, else the mean of those that have it."""
        donors = [i for i in range(len(self.sources)) if self.indices[i][row] >= 0]
        if self.base in donors:
            donors = [self.base]
        mean = torch.zeros_like(out)
        for donor in donors:
            at = int(self.indices[donor][row])
            mean += self.sources[donor].rows(name, slice(at, at + 1), out)
        out.copy_(mean / max(1, len(donors)))


def align(
    sources: Sequence[HasRows],
    vocabularies: Sequence[Vocabulary],
    num_rows: Sequence[int],
    names: Sequence[str],
    *,
    like: int,
    union: bool,
    base: int | None,
) -> tuple[Alignment, dict[str, Any]]:
    """Match the rows of all models to the vocabulary of the model `like`, or to the union.

    `num_rows` are those of each model's embedding. Returns also the content of the output's
    `tokenizer.json`.
    """
    target = vocabularies[like]
    raw, ids = target.raw, target.without_rows_beyond(num_rows[like])
    if union:
        raw, ids = join(vocabularies, num_rows, like)
    total = max(num_rows[like], max(ids.values()) + 1)
    by_row = {index: token for token, index in ids.items()}
    indices = []
    for vocabulary, count in zip(vocabularies, num_rows, strict=True):
        own = vocabulary.without_rows_beyond(count)
        taken = set(own.values())
        index = np.full(total, -1, np.int64)
        for row in range(total):
            if (token := by_row.get(row)) is not None:
                index[row] = own.get(token, -1)
            elif row < count and row not in taken:
                index[row] = row
        indices.append(index)
    lacking = [[by_row[r] for r in np.flatnonzero(i < 0).tolist() if r in by_row] for i in indices]
    nowhere = np.flatnonzero(np.max(indices, axis=0) < 0)
    facts = {
        "rows": total,
        "tokens": len(ids),
        "tokens_without_a_row": [
            {"model": name, "count": len(tokens), "examples": tokens[:EXAMPLES]}
            for name, tokens in zip(names, lacking, strict=True)
        ],
        "dropped_tokens": [
            {"model": name, "count": len(gone), "examples": sorted(gone)[:EXAMPLES]}
            for name, vocabulary, count in zip(names, vocabularies, num_rows, strict=True)
            for gone in [set(vocabulary.without_rows_beyond(count)) - set(ids)]
        ],
        "zero_rows": len(nowhere),
    }
    control = {token for vocabulary in vocabularies for token in vocabulary.control}
    rows = np.array(sorted(i for token, i in ids.items() if token in control), np.int64)
    return Alignment(sources, indices, base, rows, facts), raw


def join(
    vocabularies: Sequence[Vocabulary], num_rows: Sequence[int], like: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """The `tokenizer.json` of the model `like` with the other models' tokens behind its own.

    A token that merges make comes with the merges that make it, behind all merges of the first;
    any other is added as it is in its own model.
    """
    first = vocabularies[like]
    raw = json.loads(json.dumps(first.raw))
    ids = dict(first.ids)
    model, added = raw["model"], raw["added_tokens"]
    merges = {_pair(merge) for merge in model["merges"]}
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    free = max(ids.values()) + 1
    for position, (vocabulary, count) in enumerate(zip(vocabularies, num_rows, strict=True)):
        if position == like:
            continue
        theirs = vocabulary.raw["model"]
        entries = {entry["content"]: entry for entry in vocabulary.raw["added_tokens"]}
        tokens = sorted(vocabulary.without_rows_beyond(count).items(), key=lambda item: item[1])
        new = [token for token, _ in tokens if token not in ids]
        for token in new:
            ids[token], free = free, free + 1
            if token in theirs["vocab"]:
                model["vocab"][token] = ids[token]
            if token in entries:
                added.append({**entries[token], "id": ids[token]})
        made = set(new)
        for merge in theirs["merges"]:
            left, right = pair = _pair(merge)
            if left + right in made and pair not in merges:
                model["merges"].append(f"{left} {right}" if as_text else [left, right])
                merges.add(pair)
    return raw, ids


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def write_tokenizer(folder: Path, raw: dict[str, Any]) -> None:
    """Write a `tokenizer.json`, as compact as the library writes it."""
    text = json.dumps(raw, ensure_ascii=False, separators=(",", ":"))
    write_atomic(folder / TOKENIZER, text.encode())
