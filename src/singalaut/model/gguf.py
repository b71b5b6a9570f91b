"""GGUF files: header, shapes and names read here, block formats undone by the `gguf` library.

A memory map serves the tensor data; nothing is loaded before it is asked for. Norm weights are
stored as 1 + w in this format. What the format leaves to its reader (local RoPE base, layer
pattern, the 27B's query scale) follows llama.cpp.
"""

from __future__ import annotations

import logging
import math
import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from singalaut.errors import CheckpointError
from singalaut.model.config import Gemma3Config
from singalaut.model.hf import parameter_shapes

log = logging.getLogger("singalaut")

TOP_NAMES = {"embedding": "token_embd", "final_norm": "output_norm"}
LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
}
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
LAYERS_OF_27B = 62
CHUNK_ELEMENTS = 1 << 22  # undone at a time, which bounds the memory of large tensors


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `shape` is outermost first, `start` counts from the file's begin."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    num_bytes: int


class GgufFile:
    """Metadata and tensors of a GGUF file. Raises CheckpointError where it is cut or damaged."""

    def __init__(self, path: Path):
        self.path = path
        if path.stat().st_size < 24:
            raise CheckpointError(
                f"the file has only {path.stat().st_size} bytes", where=path.name, hint=_FETCH_AGAIN
            )
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, IndexError, KeyError, OverflowError) as error:
            raise CheckpointError(
                f"the header breaks off or is damaged at byte {self._at}",
                where=path.name,
                hint=_FETCH_AGAIN,
            ) from error
        self._check_extents()

    def _read_header(self) -> None:
        magic, version = self._map[:4], struct.unpack_from("<I", self._map, 4)[0]
        if magic != b"GGUF" or version not in (2, 3):
            raise CheckpointError(
                f"not a GGUF file of version 2 or 3 (it begins with {magic!r}, version {version})",
                where=self.path.name,
                hint="check that the download is the model and not a web page",
            )
        self._at = 8
        num_tensors, num_entries = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        infos = []
        for _ in range(num_tensors):
            name = self._string()
            shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))[::-1]
            infos.append((name, shape, self._scalar("I"), self._scalar("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise IndexError
        data = -(-self._at // alignment) * alignment
        self.tensors = {
            name: GgufTensor(name, shape, kind, data + offset, self._num_bytes(name, shape, kind))
            for name, shape, kind, offset in infos
        }

    def _scalar(self, code: str) -> Any:
        value = struct.unpack_from(f"<{code}", self._map, self._at)[0]
        self._at += struct.calcsize(code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        if self._at + length > len(self._map):
            raise IndexError
        text = self._map[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._scalar(SCALARS[kind])
        item, count = self._scalar("I"), self._scalar("Q")
        if item == STRING:
            return [self._string() for _ in range(count)]
        if item == ARRAY:
            return [self._value(ARRAY) for _ in range(count)]
        code = SCALARS[item]
        if count > len(self._map):
            raise IndexError
        values = list(struct.unpack_from(f"<{count}{code}", self._map, self._at))
        self._at += struct.calcsize(code) * count
        return values

    def _num_bytes(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError:
            raise CheckpointError(
                f"tensor `{name}` has the unknown block format {kind}",
                where=self.path.name,
                hint="a newer `gguf` package may know it; or use a Q8_0, Q4_K or F16 file",
            ) from None
        return math.prod(shape) // block * block_bytes

    def _check_extents(self) -> None:
        for tensor in self.tensors.values():
            if tensor.start + tensor.num_bytes > len(self._map):
                raise CheckpointError(
                    f"the file has {len(self._map):,} bytes, but tensor `{tensor.name}` ends at "
                    f"byte {tensor.start + tensor.num_bytes:,}",
                    where=self.path.name,
                    hint=_FETCH_AGAIN,
                )

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor with its block format undone, in pieces, straight to `dtype`."""
        from gguf import GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.type)
        raw = np.frombuffer(self._map, np.uint8, tensor.num_bytes, tensor.start)
        rows = raw.reshape(math.prod(tensor.shape[:-1]), -1)
        out = torch.empty(len(rows), tensor.shape[-1], dtype=dtype)
        step = max(1, CHUNK_ELEMENTS // tensor.shape[-1])
        for start in range(0, len(rows), step):
            try:
                values = dequantize(rows[start : start + step], kind)
            except NotImplementedError as error:
                raise CheckpointError(
                    f"tensor `{name}` is {kind.name}, which cannot be read",
                    where=self.path.name,
                    hint="use a Q4_0, Q5_0, Q8_0, Q4_K, Q6_K, F16, BF16 or F32 file",
                ) from error
            out[start : start + step] = torch.from_numpy(
                np.array(values, copy=not values.flags.writeable)
            )
        return out.reshape(tensor.shape)


def gguf_name(name: str) -> str:
    """Our parameter name as this format has it."""
    module, _, leaf = name.rpartition(".")
    if module in TOP_NAMES:
        return f"{TOP_NAMES[module]}.{leaf}"
    _, index, rest = module.split(".", 2)
    return f"blk.{index}.{LAYER_NAMES[rest]}.{leaf}"


def config_from_gguf(file: GgufFile) -> Gemma3Config:
    """The network's shape from the metadata."""
    architecture = file.metadata.get("general.architecture")
    if architecture != "gemma3":
        raise CheckpointError(
            f"the architecture is `{architecture}`; only `gemma3` is supported",
            where=file.path.name,
            hint="give a Gemma 3 text model"
            if architecture != "clip"
            else "this is a projector file; give the text model, and this one with `--mmproj`",
        )

    def get(key: str, default: Any = None) -> Any:
        value = file.metadata.get(f"gemma3.{key}", default)
        if value is None:
            raise CheckpointError(f"metadata `gemma3.{key}` is missing", where=file.path.name)
        if not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(
                f"metadata `gemma3.{key}` is {value}, a number above 0 is needed",
                where=file.path.name,
                hint="the file was made wrongly or is damaged; use another one",
            )
        return value

    if "output.weight" in file.tensors:
        raise CheckpointError(
            "the file has an output head of its own (`output.weight`); Gemma 3 uses its embedding",
            where=file.path.name,
            hint="use a file with a tied head, as llama.cpp's converter writes it",
        )
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError("tensor `token_embd.weight` is missing", where=file.path.name)
    num_layers, head_dim = get("block_count"), get("attention.key_length")
    if num_layers > len(file.tensors):
        raise CheckpointError(
            f"the metadata says {num_layers} blocks, but there are {len(file.tensors)} tensors",
            where=file.path.name,
            hint=_FETCH_AGAIN,
        )
    hidden = get("embedding_length")
    num_heads = get("attention.head_count")
    is_27b = num_layers == LAYERS_OF_27B
    eos = [file.metadata.get(f"tokenizer.ggml.{k}") for k in ("eos_token_id", "eot_token_id")]
    return Gemma3Config(
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=get("attention.head_count_kv"),
        head_dim=head_dim,
        query_scalar=float(hidden / num_heads if is_27b else head_dim),
        window=get("attention.sliding_window"),
        max_positions=get("context_length"),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        rope_factor=float(get("rope.scaling.factor", 1.0)),
        rope_theta=float(get("rope.freq_base", 1e6)),
        rope_local_theta=float(get("rope.freq_base_swa", 1e4)),
        norm_eps=round(get("attention.layer_norm_rms_epsilon"), 12),
        pad_id=file.metadata.get("tokenizer.ggml.padding_token_id", 0),
        bos_id=file.metadata.get("tokenizer.ggml.bos_token_id", 2),
        eos_ids=tuple(dict.fromkeys(i for i in eos if i is not None)) or (1,),
    )


def check_shapes(file: GgufFile, config: Gemma3Config) -> None:
    """Raise CheckpointError unless every parameter of the text model is there as it should be.

    Warns of tensors that have no place in the network: what they did will be missing.
    """
    shapes = parameter_shapes(replace(config, vision=None))
    if unread := sorted(set(file.tensors) - set(map(gguf_name, shapes))):
        more = ", …" if unread[1:] else ""
        log.warning(
            "%s: not read, as Gemma 3 has no such weights: `%s`%s (%d)",
            file.path.name, unread[0], more, len(unread),
        )  # fmt: skip
    for name, shape in shapes.items():
        tensor = file.tensors.get(gguf_name(name))
        if tensor is None:
            raise CheckpointError(
                f"tensor `{gguf_name(name)}` is missing", where=file.path.name, hint=_FETCH_AGAIN
            )
        if tensor.shape != shape:
            raise CheckpointError(
                f"tensor `{tensor.name}` has shape {list(tensor.shape)}, "
                f"the metadata asks for {list(shape)}",
                where=file.path.name,
                hint="the file was made wrongly; use another one",
            )


def read_parameter(file: GgufFile, name: str, dtype: torch.dtype) -> Tensor:
    """One parameter of the text model, by our name for it."""
    if name.endswith("norm.weight"):
        return (file.read(gguf_name(name), torch.float32) - 1.0).to(dtype)
    return file.read(gguf_name(name), dtype)


_FETCH_AGAIN = "the download is incomplete or damaged; fetch it again"
