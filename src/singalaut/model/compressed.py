"""Checkpoints in the compressed-tensors format: 8-bit floats and packed integers undone on reading.

FP8: `X.weight` in float8_e4m3 and `X.weight_scale`, one for the tensor or one for each row.
W4A16: `X.weight_packed`, eight 4-bit integers in an int32, with `X.weight_shape` and a scale for
each group of neighbours in a row. A weight is the product rounded to the dtype of its scale, as the
format's own library undoes it. Scales of activations are left alone: we compute in bfloat16 or
float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from singalaut.errors import CheckpointError
from singalaut.model.tensors import TensorReader

FLOAT8, PACKED = "F8_E4M3", "I32"
PARTS = (
    "weight_scale",
    "weight_packed",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "k_scale",
    "v_scale",
)
UNSUPPORTED = {
    "weight_zero_point": "zero points (asymmetric integers)",
    "weight_g_idx": "groups in order of activation",
    "weight_global_scale": "4-bit floats",
}
BITS = (4, 8)


def dequantize_float8(weight: Tensor, scale: Float[Tensor, "..."]) -> Float[Tensor, "rows columns"]:
    """weight · scale, with one scale or one for each row, in the dtype of the scale."""
    return (weight.float() * scale.float().reshape(-1, 1)).to(scale.dtype)


def unpack_integers(
    packed: Int32[Tensor, "rows words"], columns: int, bits: int
) -> Float[Tensor, "rows columns"]:
    """Integers of `bits` bits, lowest first in each word, stored with 2^(bits-1) added."""
    per_word, zero = 32 // bits, 1 << (bits - 1)
    values = torch.empty(*packed.shape, per_word)
    for place in range(per_word):
        values[..., place] = ((packed >> (place * bits)) & ((1 << bits) - 1)) - zero
    return values.flatten(1)[:, :columns]


def dequantize_packed(
    packed: Int32[Tensor, "rows words"],
    scale: Float[Tensor, "rows groups"],
    columns: int,
    bits: int,
) -> Float[Tensor, "rows columns"]:
    """Integer · scale of its group, in the dtype of the scale; groups of a row are equally long."""
    rows, groups = scale.shape
    values = unpack_integers(packed, columns, bits).reshape(rows, groups, columns // groups)
    return (values * scale.float()[..., None]).reshape(rows, columns).to(scale.dtype)


class CompressedReader(TensorReader):
    """A `TensorReader` that shows compressed weights as if they were stored whole.

    Whatever is not compressed is read as it is, so this reads plain checkpoints as well.
    """

    def __contains__(self, name: str) -> bool:
        return super().__contains__(name) or self._packed(name) in self._places

    def __iter__(self) -> Iterator[str]:
        for name in self._places:
            stem, _, leaf = name.rpartition(".")
            if leaf == "weight_packed":
                yield f"{stem}.weight"
            elif leaf not in PARTS:
                yield name

    def file(self, name: str) -> Path:
        return super().file(self._stored(name))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._layout(name)[0] if self._is_packed(name) else super().shape(name)

    def dtype(self, name: str) -> str:
        """The dtype of what a compressed weight stands for; `BF16`, as it was before."""
        return "BF16" if self._is_compressed(name) else super().dtype(name)

    def stored_as(self, name: str) -> str:
        """Of a compressed weight, what it is compressed to, such as `F8_E4M3` or `INT4`."""
        if self._is_packed(name):
            return f"INT{self._layout(name)[1]}"
        return super().dtype(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or these rows of it; what was compressed comes in the dtype of its scale."""
        if not self._is_compressed(name):
            return super().read(name, rows)
        self._refuse_unsupported(name)
        scale = super().read(f"{name}_scale")
        if self._is_packed(name):
            (count, columns), bits = self._layout(name)
            if scale.ndim != 2 or scale.shape[0] != count or columns % scale.shape[1]:
                raise self._misshapen(name, scale.shape, f"[{count}, groups of equal length]")
            scale = scale if rows is None else scale[rows]
            packed = super().read(self._packed(name), rows)
            return dequantize_packed(packed, scale, columns, bits)
        count = super().shape(name)[0]
        if scale.numel() not in (1, count) or scale.shape not in ((), (1,), (1, 1), (count, 1)):
            raise self._misshapen(name, scale.shape, f"[1] or [{count}, 1]")
        scale = scale if rows is None or scale.numel() == 1 else scale[rows]
        return dequantize_float8(super().read(name, rows), scale)

    def _release(self, file: Path) -> None:
        """Let go of a file, unless a weight and its scale lie in different ones."""
        files: dict[str, set[Path]] = {}
        for place, (at, _) in self._places.items():
            files.setdefault(place.rpartition(".")[0], set()).add(at)
        if not any(file in places and len(places) > 1 for places in files.values()):
            super()._release(file)

    @staticmethod
    def _packed(name: str) -> str:
        return f"{name}_packed" if name.endswith(".weight") else ""

    def _is_packed(self, name: str) -> bool:
        return self._packed(name) in self._places

    def _is_compressed(self, name: str) -> bool:
        return self._is_packed(name) or super().dtype(name) == FLOAT8

    def _stored(self, name: str) -> str:
        return self._packed(name) if self._is_packed(name) else name

    def _layout(self, name: str) -> tuple[tuple[int, ...], int]:
        """Shape and bits of packed integers; the words of a row must agree with them."""
        packed = self._packed(name)
        found, words = super().dtype(packed), super().shape(packed)
        if found == PACKED and len(words) == 2 and f"{name}_shape" in self._places:
            shape = tuple(super().read(f"{name}_shape").long().reshape(-1).tolist())
            for bits in BITS:
                if len(shape) == 2 and words == (shape[0], -(-shape[1] * bits // 32)):
                    return shape, bits
        raise CheckpointError(
            f"`{packed}` of {found} {list(words)} is not int32 of 4 or 8 bits that agree with "
            f"`{name}_shape`",
            where=self.file(name).name,
            hint="W4A16 and W8A16 in the format `pack-quantized` can be read",
        )

    def _refuse_unsupported(self, name: str) -> None:
        for part, what in UNSUPPORTED.items():
            if f"{name.removesuffix('weight')}{part}" in self._places:
                raise CheckpointError(
                    f"`{name}` is quantised with {what}, which cannot be read",
                    where=self.file(name).name,
                    hint="use the FP8, the symmetric W4A16 or the bfloat16 checkpoint",
                )
        if f"{name}_scale" not in self._places:
            raise CheckpointError(
                f"`{name}_scale` is missing",
                where=self.file(name).name,
                hint="the checkpoint is incomplete; fetch it again",
            )

    def _misshapen(self, name: str, found: torch.Size, needed: str) -> CheckpointError:
        return CheckpointError(
            f"`{name}_scale` has shape {list(found)}, needed {needed}",
            where=self.file(name).name,
            hint="scales of rows and tensors (FP8) or of groups in a row (W4A16) can be read",
        )
