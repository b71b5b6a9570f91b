"""Checkpoints of training as they lie on disk, read without the job that wrote them.

Pieces are boxes: where each begins in its tensor stands in the header of its file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from singalaut.errors import DataError, SingalautError
from singalaut.model.lora import adapters
from singalaut.model.tensors import TensorReader

ANOTHER = "it was made with other settings: remove it to begin anew"
EARLIER = "remove this folder to go on from an earlier checkpoint, or from the start"


def known_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the last one last."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".partial")


def about_model(model: nn.Module, base: Path | None) -> dict[str, Any]:
    """What a checkpoint says of its model, so that it can be written out without the run."""
    config: Any = getattr(model, "config", None)
    found: Any = model
    adapted = dict(adapters(found))
    adapter = None
    if adapted:
        first = next(iter(adapted.values()))
        rank = first.a.shape[0]
        targets = sorted({name.rpartition(".")[2] for name in adapted})
        adapter = {"rank": rank, "alpha": first.scale * rank, "targets": targets}
    return {
        "adapter": adapter,
        "eos_ids": list(config.eos_ids) if config is not None else [],
        "base": None if base is None else str(base.resolve()),
    }


class Parts:
    """A checkpoint's files. Raises: DataError where one is missing or damaged."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.about: dict[str, Any] = json.loads((folder / "step.json").read_bytes())
            count = self.about["parts"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            what = f"the checkpoint's step.json cannot be read ({type(error).__name__})"
            raise DataError(what, where=folder, hint=EARLIER) from error
        files = [folder / f"part-{rank}-of-{count}.safetensors" for rank in range(count)]
        if lost := [file.name for file in files if not file.exists()]:
            raise DataError(
                f"{len(lost)} of {count} parts of the checkpoint are missing ({lost[0]})",
                where=folder,
                hint=EARLIER,
            )
        self._pieces: dict[str, list[tuple[TensorReader, tuple[int, ...]]]] = {}
        for file in files:
            try:
                reader = TensorReader([file])
                with safe_open(file, "pt") as handle:
                    places = json.loads(handle.metadata()["places"])
            except SingalautError as error:
                what = f"a part of the checkpoint is damaged ({file.name}): {error.what}"
                raise DataError(what, where=folder, hint=EARLIER) from error
            for name, place in places.items():
                self._pieces.setdefault(name, []).append((reader, tuple(place)))

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    @property
    def has_moments(self) -> bool:
        """Whether the optimiser has made a step, and so had numbers to write."""
        return any(not name.startswith(("weight.", "average.")) for name in self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""
        ends = [
            [first + size for first, size in zip(place, reader.shape(name), strict=True)]
            for reader, place in self._pieces.get(name, ())
        ]
        return tuple(max(side) for side in zip(*ends, strict=True))

    def whole(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor put together. Raises: DataError if there is not all of it."""
        tensor = torch.empty(self.shape(name), dtype=dtype)
        self.read_into(tensor, name, (0,) * tensor.ndim)
        return tensor

    def read_into(self, mine: Tensor, name: str, place: tuple[int, ...]) -> None:
        """Fill a piece that begins at `place` from the pieces that have some of it.

        Raises: DataError if there is not all of it.
        """
        found = 0
        for reader, first in self._pieces.get(name, ()):
            shape = reader.shape(name)
            if len(shape) != mine.ndim:
                break
            boxes = [
                (max(a, b), min(a + n, b + m))
                for a, n, b, m in zip(place, mine.shape, first, shape, strict=True)
            ]
            if any(low >= high for low, high in boxes):
                continue
            there = [slice(low - b, high - b) for (low, high), b in zip(boxes, first, strict=True)]
            here = [slice(low - a, high - a) for (low, high), a in zip(boxes, place, strict=True)]
            piece = reader.read(name, there[0] if there else None)
            piece = piece[(slice(None), *there[1:])] if there else piece
            mine[tuple(here)].copy_(piece)
            found += piece.numel()
        if found != mine.numel():
            raise DataError(
                f"the checkpoint has {found} of {mine.numel()} numbers of `{name}`",
                where=self.folder.name,
                hint=ANOTHER,
            )
