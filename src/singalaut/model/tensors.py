"""Safetensors files: read by memory map, written as a stream that never holds a whole model.

The `safetensors` library reads; it can only write what is in memory at once, so the writer is
ours: an 8-byte header length, a JSON header, then the tensors' bytes in the header's order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from singalaut.artifact import write_json
from singalaut.errors import CheckpointError, from_os_error

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


class TensorReader:
    """The tensors of one file or of a sharded folder, mapped into memory and read on demand."""

    def __init__(self, files: Iterable[Path]):
        self._stack = ExitStack()
        self._places: dict[str, tuple[Path, safe_open]] = {}
        for file in files:
            try:
                handle = self._stack.enter_context(safe_open(file, "pt"))
            except SafetensorError as error:
                raise CheckpointError(
                    f"not a whole safetensors file ({error})",
                    where=file.name,
                    hint=_why_unreadable(file),
                ) from error
            except OSError as error:
                raise from_os_error(error) from error
            for name in handle.keys():  # noqa: SIM118 (a handle is not a mapping)
                self._places[name] = (file, handle)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The weights of a Hugging Face directory, in one file or in shards."""
        if (folder / SINGLE).exists():
            return cls([folder / SINGLE])
        index = folder / INDEX
        if not index.exists():
            raise CheckpointError(
                f"found neither `{SINGLE}` nor `{INDEX}`",
                where=folder,
                hint="give a Hugging Face directory with safetensors weights; "
                "pickled `.bin` files are never read",
            )
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                "the shard index is not readable", where=index, hint="fetch the file again"
            ) from error
        for shard in shards:
            if Path(shard).name != shard:
                raise CheckpointError(
                    f"the shard index names `{shard}`, which is no file of this directory",
                    where=index,
                    hint="fetch the index again, from a source that you trust",
                )
            if not (folder / shard).is_file():
                raise CheckpointError(
                    f"shard `{shard}` is named in the index but missing",
                    where=folder,
                    hint="fetch the missing shard",
                )
        return cls(folder / shard for shard in shards)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def file(self, name: str) -> Path:
        return self._places[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._places[name][1].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The dtype as safetensors writes it, such as `BF16`."""
        return self._places[name][1].get_slice(name).get_dtype()

    def stored_as(self, name: str) -> str:
        """How the file holds the numbers, for a reader to be shown."""
        return self.dtype(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or these rows of it."""
        handle = self._places[name][1]
        return handle.get_tensor(name) if rows is None else handle.get_slice(name)[rows]

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors by name, file by file; the map of a file is let go of after its last one.

        So the host holds the pages of one shard at a time, however large the model.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.file(name), []).append(name)
        for file, inside in by_file.items():
            for name in inside:
                yield name, self.read(name)
            self._release(file)

    def _release(self, file: Path) -> None:
        handles = {handle for place, handle in self._places.values() if place == file}
        self._places = {name: at for name, at in self._places.items() if at[0] != file}
        for handle in handles:
            handle.__exit__(None, None, None)

    def close(self) -> None:
        self._stack.close()
        self._places.clear()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def file_header(specs: list[TensorSpec], metadata: dict[str, str] | None = None) -> bytes:
    """What a safetensors file begins with; the tensors' bytes follow in the order of `specs`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.num_bytes],
        }
        offset += spec.num_bytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def write_tensors(
    file: Path,
    specs: list[TensorSpec],
    tensors: Iterable[Tensor],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write tensors, given in the order of `specs`, so that `file` appears only when complete."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("wb") as out:
            out.write(file_header(specs, metadata))
            for spec, tensor in zip(specs, tensors, strict=True):
                assert tuple(tensor.shape) == spec.shape and tensor.dtype == spec.dtype, spec.name
                flat = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8)
                out.write(flat.numpy().data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except OSError as error:
        raise from_os_error(error) from error
    finally:
        temporary.unlink(missing_ok=True)


def split_shards(
    specs: list[TensorSpec], max_bytes: int | None = None
) -> dict[str, list[TensorSpec]]:
    """The files of a model and what is in each, in order: one, or shards of `max_bytes` at most."""
    shards: list[list[TensorSpec]] = [[]]
    room = max_bytes = max_bytes or MAX_SHARD_BYTES
    for spec in specs:
        if shards[-1] and spec.num_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(spec)
        room -= spec.num_bytes
    if len(shards) == 1:
        return {SINGLE: specs}
    count = len(shards)
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def write_index(folder: Path, shards: dict[str, list[TensorSpec]]) -> None:
    """Write which tensor is in which shard, where there is more than one."""
    if len(shards) > 1:
        weight_map = {spec.name: file for file, specs in shards.items() for spec in specs}
        total = sum(spec.num_bytes for specs in shards.values() for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX, index)


def write_shards(folder: Path, specs: list[TensorSpec], tensors: Iterable[Tensor]) -> None:
    """Write a model's weights as one file, or as shards of at most 5 GB with an index."""
    shards = split_shards(specs)
    stream = iter(tensors)
    for file, shard in shards.items():
        write_tensors(folder / file, shard, (next(stream) for _ in shard))
    write_index(folder, shards)


def _why_unreadable(file: Path) -> str:
    with file.open("rb") as opened:
        start = opened.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return "this is a pointer of Git LFS in place of the file: `git lfs pull` fetches it"
    return "the file is cut short or damaged; fetch or write it again"
