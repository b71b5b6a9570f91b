"""A GGUF file written as a stream: header by the `gguf` library, tensors one after the other.

Which tensors there are, in which format, and what the metadata say is for others to decide
(`gguf_write.py` for the text model, `mmproj.py` for the vision part).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from singalaut.errors import CheckpointError, RecipeError, from_os_error
from singalaut.model.gguf import CHUNK_ELEMENTS

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCK = 32  # weights in a block of the formats that the library quantises to
ALIGNMENT = 32  # bytes; the format's default


@dataclass(frozen=True)
class GgufEntry:
    """A tensor that will be written; `shape` is outermost first."""

    name: str
    shape: tuple[int, ...]
    format: str


def write_file(
    file: Path,
    architecture: str,
    add_metadata: Callable[[Any], None],
    entries: Sequence[GgufEntry],
    tensors: Iterable[Tensor],
) -> None:
    """Write tensors, given in the order of `entries`; `file` appears only when complete.

    `add_metadata` receives the library's `GGUFWriter`.
    Raises: RecipeError for rows that a format cannot cut into blocks, CheckpointError for values
    that a format cannot hold.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        _write_header(temporary, architecture, add_metadata, entries)
        with temporary.open("ab") as out:
            for entry, tensor in zip(entries, tensors, strict=True):
                assert tuple(tensor.shape) == entry.shape, entry.name
                out.write(b"\0" * (-out.tell() % ALIGNMENT))
                for block in _blocks(entry, tensor):
                    out.write(block.data)
            out.write(b"\0" * (-out.tell() % ALIGNMENT))
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except OSError as error:
        raise from_os_error(error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_header(
    file: Path,
    architecture: str,
    add_metadata: Callable[[Any], None],
    entries: Sequence[GgufEntry],
) -> None:
    """Everything before the first weight."""
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    try:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_metadata(writer)
        for entry in entries:
            kind = gguf.GGMLQuantizationType[entry.format]
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            if entry.shape[-1] % block:
                raise RecipeError(
                    f"`{entry.name}` has rows of {entry.shape[-1]} weights, which {kind.name} "
                    f"cannot cut into blocks of {block}",
                    where="config.json",
                    hint="use BF16, F16 or F32",
                )
            size = int(np.prod(entry.shape)) // block * block_bytes
            writer.add_tensor_info(entry.name, entry.shape, np.dtype("f4"), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _blocks(entry: GgufEntry, tensor: Tensor) -> Iterator[np.ndarray]:
    """The bytes of a tensor, in pieces that bound the memory of large ones."""
    from gguf import GGMLQuantizationType, quantize

    rows = tensor.detach().reshape(-1, tensor.shape[-1])
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        whole = rows[start : start + step].cpu()
        values = whole.to(FLOATS.get(entry.format, torch.float32))
        if not torch.isfinite(values).all():
            raise _not_finite(entry, whole)
        if entry.format in FLOATS:
            yield values.contiguous().view(torch.uint8).numpy()
        else:
            yield quantize(values.numpy(), GGMLQuantizationType[entry.format])


def _not_finite(entry: GgufEntry, rows: Tensor) -> CheckpointError:
    """The error for values that are not finite, be it from the start or in this format only."""
    too_large = bool(torch.isfinite(rows).all())
    found = f" in {entry.format}, such as {rows.abs().max().item():g}" if too_large else ""
    return CheckpointError(
        f"`{entry.name}` holds values that are not finite{found}",
        where=entry.name,
        hint="use BF16 or F32"
        if too_large
        else "the training has diverged; use a checkpoint from before",
    )
