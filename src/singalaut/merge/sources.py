"""The models that are merged, as rows of float32: checkpoints, with adapters, in one vocabulary.

Weights are read through memory maps and only by rows, so that no tensor is ever whole in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from singalaut.merge.blocks import Rows, as_matrix, cut
from singalaut.merge.vocabulary import Alignment
from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import find_weights
from singalaut.model.lora import WEIGHTS, adapters, is_nested, load_adapter, peft_stem
from singalaut.model.mapped import MappedReader

EMBEDDING = "embedding.weight"
BLOCKS_AHEAD = 8  # that the system is asked to read while one is worked on


class Source:
    """One model, possibly with an adapter on it."""

    def __init__(self, folder: Path, adapter: Path | None, config: Gemma3Config):
        self.reader = MappedReader.open(folder)
        self.places = find_weights(self.reader, folder, config)
        self._updates: Mapping[str, tuple[str, float]] = {}
        self._adapter: MappedReader | None = None
        if adapter is not None:
            self._open_adapter(adapter, config)

    def _open_adapter(self, folder: Path, config: Gemma3Config) -> None:
        with torch.device("meta"):
            model = load_adapter(Gemma3(config), folder)
        self._adapter = MappedReader([folder / WEIGHTS])
        nested = is_nested(self._adapter)
        self._updates = {
            f"{name}.weight": (peft_stem(name, nested=nested), module.scale)
            for name, module in adapters(model)
        }

    def rows(self, name: str, part: slice) -> Float[Tensor, "rows columns"]:
        """Rows of a parameter, with the adapter's update: a copy in float32."""
        place = self.places[name]
        stored = (
            self.reader.read(place) if self._is_one_row(name) else self.reader.read(place, part)
        )
        rows = stored.to(torch.float32, copy=True).reshape(part.stop - part.start, -1)
        self.reader.let_go(place, None if self._is_one_row(name) else part)
        if (update := self._updates.get(name)) is not None and self._adapter is not None:
            stem, scale = update
            a, b = (self._adapter.read(f"{stem}.lora_{side}.weight") for side in "AB")
            rows.addmm_(b[part].float(), a.float(), alpha=scale)
        return rows

    def gather(self, name: str, indices: Tensor) -> Float[Tensor, "rows columns"]:
        """Any rows of a matrix: a copy in float32."""
        place = self.places[name]
        first, last = int(indices.min()), int(indices.max()) + 1
        stored = self.reader.read(place, slice(first, last))
        rows = stored[indices - first].float()
        self.reader.let_go(place, slice(first, last))
        return rows

    def num_rows(self, name: str) -> int:
        return as_matrix(self.reader.shape(self.places[name]))[0]

    def fetch(self, name: str, part: slice) -> None:
        self.reader.fetch(self.places[name], None if self._is_one_row(name) else part)

    def _is_one_row(self, name: str) -> bool:
        return len(self.reader.shape(self.places[name])) < 2

    def close(self) -> None:
        self.reader.close()
        if self._adapter is not None:
            self._adapter.close()


@dataclass(frozen=True)
class Part:
    """A parameter of one of the sources."""

    source: Source
    name: str


class FileBlocks:
    """The blocks of one output tensor, read from the sources when they are asked for."""

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        models: Sequence[Part],
        base: Part | None,
        *,
        seed: int,
        device: torch.device,
        alignment: Alignment | None = None,
    ):
        rows, self.columns = as_matrix(shape)
        self.name, self.seed, self.device = name, seed, device
        self.bounds = cut(rows, self.columns)
        self.num_models, self.has_base = len(models), base is not None
        self.models, self.base, self.alignment = models, base, alignment

    def read(self, index: int) -> Rows:
        self.fetch(index + BLOCKS_AHEAD)
        part = slice(*self.bounds[index])
        known: dict[tuple[int, str], Tensor] = {}
        models = [self._rows(model, part, known) for model in self.models]
        base = None if self.base is None else self._rows(self.base, part, known)
        return Rows(models, base)

    def read_one(self, wanted: Part, index: int) -> Float[Tensor, "rows columns"]:
        """The rows of one of the sources in a block."""
        return self._rows(wanted, slice(*self.bounds[index]), {})

    def _rows(self, wanted: Part, part: slice, known: dict[tuple[int, str], Tensor]) -> Tensor:
        key = (id(wanted.source), wanted.name)
        if key in known:  # a model may take part more than once
            return known[key].clone()
        if self.alignment is None:
            rows = wanted.source.rows(wanted.name, part)
        else:
            rows = self.alignment.rows(wanted.source, wanted.name, part)
        known[key] = rows = rows.to(self.device)
        return rows

    def fetch(self, index: int) -> None:
        """Let the system read a block in the meantime."""
        if index < len(self.bounds) and self.alignment is None:
            parts = [*self.models, *([self.base] if self.base else [])]
            for each in parts:
                each.source.fetch(each.name, slice(*self.bounds[index]))
