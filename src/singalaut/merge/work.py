"""One block of the output: read, merged, checked, compared with the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from singalaut.errors import CheckpointError
from singalaut.merge.blocks import BLOCK_ELEMENTS, Buffers, Combine
from singalaut.merge.output import Output
from singalaut.merge.plan import Given, Piece
from singalaut.merge.sources import EMBEDDING, FileBlocks, Part, Source


@dataclass(frozen=True)
class Job:
    """What the blocks of a merge have in common."""

    output: Output
    dtype: torch.dtype
    buffers: Buffers
    seed: int
    sources: Mapping[Any, Source]
    """By the key of the model."""
    control_from: Given | None
    """The model whose embedding rows for control tokens are taken over."""
    free: list[Tensor] = field(default_factory=list)
    """Memory of blocks that have been written."""

    def take(self, shape: torch.Size) -> Tensor:
        """A contiguous tensor of the output's dtype on the CPU, for one block."""
        count = shape.numel()
        try:
            flat = self.free.pop()
        except IndexError:
            flat = torch.empty(0, dtype=self.dtype)
        if flat.numel() < count:
            flat = torch.empty(max(count, BLOCK_ELEMENTS), dtype=self.dtype)
        return flat[:count].view(shape)

    def give_back(self, rows: Tensor) -> None:
        """Let the next block have the memory of one that has been written."""
        self.free.append(rows._base if rows._base is not None else rows)

    def part(self, entry: Given, name: str) -> Part:
        return Part(self.sources[entry.key], name)

    def blocks(self, piece: Piece) -> FileBlocks:
        """The blocks that a tensor of the output is merged from."""
        return FileBlocks(
            piece.place,
            piece.shape,
            [self.part(*each) for each in piece.models],
            None if piece.base is None else self.part(*piece.base),
            seed=self.seed,
            buffers=self.buffers,
            alignment=self.output.alignment if piece.name == EMBEDDING else None,
        )


@dataclass(frozen=True)
class Merged:
    """Rows of the output, and ‖merged − reference‖² and ‖reference‖² over them."""

    rows: Tensor
    change: float
    size: float


def merge_block(job: Job, piece: Piece, blocks: FileBlocks, combine: Combine, index: int) -> Merged:
    """Merge one block. Raises: CheckpointError where the result is not finite."""
    given = blocks.read(index)
    before = given.models[0] if given.base is None else given.base
    reference = given.spare("reference").copy_(before).view(-1)
    merged = combine(index, given)
    if piece.name == EMBEDDING and job.control_from is not None:
        _take_control_rows(job, merged, blocks, index)
    if not math.isfinite(float(merged.sum())) and not merged.isfinite().all():
        raise _not_finite(job, piece, blocks, index)
    rows = job.take(merged.shape).copy_(merged)
    change = merged.view(-1).sub_(reference)
    return Merged(rows, float(change.dot(change)), float(reference.dot(reference)))


def _take_control_rows(job: Job, merged: Tensor, blocks: FileBlocks, index: int) -> None:
    assert job.control_from is not None
    start, stop = blocks.bounds[index]
    rows = [int(row) - start for row in job.output.control_rows if start <= row < stop]
    if rows:
        theirs = blocks.read_one(job.part(job.control_from, EMBEDDING), index)
        merged[rows] = theirs[rows]


def _not_finite(job: Job, piece: Piece, blocks: FileBlocks, index: int) -> CheckpointError:
    """Which model is at fault, if it is one."""
    for entry, name in (*piece.models, *([piece.base] if piece.base else [])):
        part = job.part(entry, name)
        rows = blocks.read_one(part, index)
        bad = (~rows.isfinite()).nonzero().tolist()
        if bad:
            row, column = bad[0]
            place = f"row {blocks.bounds[index][0] + row}, column {column}"
            return CheckpointError(
                f"`{part.source.places[name]}` of `{entry.settings.source}` has "
                f"{float(rows[row, column])} in {place}",
                where=entry.folder,
                hint="this model is damaged; evaluate it alone",
            )
    return CheckpointError(
        f"`{piece.place}` is not finite after merging, although all models are",
        hint="weights or factors are too large",
    )
