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

from singalaut.merge.blocks import Buffers, Rows, as_matrix, cut
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

    def rows(
        self, name: str, part: slice, out: Float[Tensor, "rows columns"]
    ) -> Float[Tensor, "rows columns"]:
        """Rows of a parameter, with the adapter's update, as float32 in `out`."""
        place = self.places[name]
        some = None if self._is_one_row(name) else part
        out.copy_(self.reader.read(place, some).reshape(out.shape))
        self.reader.let_go(place, some)
        if (update := self._updates.get(name)) is not None and self._adapter is not None:
            stem, scale = update
            a, b = (self._adapter.read(f"{stem}.lora_{side}.weight") for side in "AB")
            a, b = (x.to(out.device, torch.float32) for x in (a, b[part]))
            out.addmm_(b, a, alpha=scale)
        return out

    def gather(self, name: str, indices: Tensor) -> Float[Tensor, "rows columns"]:
        """Any rows of a matrix that no adapter changes: a copy in float32."""
        place = self.places[name]
        some = slice(int(indices.min()), int(indices.max()) + 1)
        rows = self.reader.read(place, some)[indices - some.start].float()
        self.reader.let_go(place, some)
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
        buffers: Buffers,
        alignment: Alignment | None = None,
    ):
        rows, self.columns = as_matrix(shape)
        self.name, self.seed, self.buffers = name, seed, buffers
        self.bounds = cut(rows, self.columns)
        self.num_models, self.has_base = len(models), base is not None
        self.models, self.base, self.alignment = models, base, alignment

    def read(self, index: int) -> Rows:
        self.fetch(index + BLOCKS_AHEAD)
        known: dict[tuple[int, str], Tensor] = {}
        models = [
            self._rows(model, index, f"model {i}", known) for i, model in enumerate(self.models)
        ]
        base = None if self.base is None else self._rows(self.base, index, "base", known)
        return Rows(models, base, self.buffers)

    def read_one(self, wanted: Part, index: int) -> Float[Tensor, "rows columns"]:
        """The rows of one of the sources in a block, in memory of their own."""
        return self._rows(wanted, index, "other", {})

    def _rows(
        self, wanted: Part, index: int, purpose: str, known: dict[tuple[int, str], Tensor]
    ) -> Tensor:
        start, stop = self.bounds[index]
        out = self.buffers.take(purpose, stop - start, self.columns)
        key = (id(wanted.source), wanted.name)
        if key in known:  # a model may take part more than once
            return out.copy_(known[key])
        if self.alignment is None:
            wanted.source.rows(wanted.name, slice(start, stop), out)
        else:
            self.alignment.rows(wanted.source, wanted.name, slice(start, stop), out)
        known[key] = out
        return out

    def fetch(self, index: int) -> None:
        """Let the system read a block in the meantime."""
        if index < len(self.bounds) and self.alignment is None:
            for each in (*self.models, *([self.base] if self.base else [])):
                each.source.fetch(each.name, slice(*self.bounds[index]))
