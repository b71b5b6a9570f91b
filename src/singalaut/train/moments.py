"""What an optimiser remembers of gradients in 8 bits a number, with a scale for each block.

A block is `BLOCK` neighbours in a row. A code c stands for scale · (c / 127)³ where numbers have a
sign, and for scale · (c / 255)⁴ where they have none; scale is the largest magnitude of the block.
So numbers near the largest are right to 1 %, and the smallest that can be told from nothing is
5·10⁻⁷ or 2·10⁻¹⁰ of it.

Source: arXiv 2110.02861. Where we differ: powers instead of a table, which kernels compute without
looking anything up; blocks lie within a row, so that rows can go to any number of processes; and
numbers are rounded up or down at random with the right mean (arXiv 2010.06192): a mean of squares
moves by less than the distance of two codes in most steps, and rounding to the nearest would
hold it where it is. A square is never rounded to nothing, or what is divided by its root would
explode.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 128


class Coded(NamedTuple):
    """Numbers of a matrix: codes [R, C], int8 with a sign or uint8, and scales [R, ⌈C / BLOCK⌉]."""

    codes: Tensor
    scales: Tensor

    def decoded(self) -> Tensor:
        """The numbers, float32."""
        top, power = _law(self.codes)
        scales = self.scales.repeat_interleave(BLOCK, 1)[:, : self.codes.shape[1]]
        return self.codes.float().div_(top).pow_(power).mul_(scales)

    def encode(self, numbers: Tensor, generator: torch.Generator) -> None:
        """Keep other numbers instead."""
        top, power = _law(self.codes)
        rows, columns = numbers.shape
        padded = pad(numbers.abs(), (0, -columns % BLOCK))
        blocks = padded.view(rows, -1, BLOCK)
        scales = blocks.amax(-1)
        shares = blocks.div(scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None])
        low = shares.pow(1 / power).mul_(top).floor_().clamp_(0, top - 1)
        least, most = low.pow(power), (low + 1).pow(power)
        chance = (shares * top**power - least) / (most - least)
        draws = torch.rand(
            shares.shape, dtype=torch.float32, device=shares.device, generator=generator
        )
        codes = low + (draws < chance)
        if self.codes.dtype == torch.uint8:
            codes = torch.where(shares > 0, codes.clamp(min=1), codes)
        codes = codes.view(rows, -1)[:, :columns]
        signed = self.codes.dtype == torch.int8
        self.codes.copy_(codes.copysign(numbers) if signed else codes)
        self.scales.copy_(scales)


def blocks_of(columns: int) -> int:
    """Blocks in a row."""
    return -(-columns // BLOCK)


def _law(codes: Tensor) -> tuple[int, int]:
    """The largest code, and the power that codes are taken to."""
    return (127, 3) if codes.dtype == torch.int8 else (255, 4)
