"""K-quants through llama.cpp's own quantiser, from the optional package `llama-cpp-python`."""

from __future__ import annotations

import ctypes
import logging
import os
from collections import Counter
from pathlib import Path
from types import ModuleType

from singalaut.errors import CheckpointError, MachineError
from singalaut.model.gguf import GgufFile

log = logging.getLogger("singalaut")
KQUANTS = {  # and llama.cpp's file types
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
}
BLOCK = 256


def open_llama_cpp(quant: str) -> ModuleType:
    """The package. Raises MachineError where it is not installed or cannot be loaded."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise MachineError(
            f"{quant} is made by llama.cpp's own quantiser, whose package cannot be used: {error}",
            hint="pip install 'singalaut[llama]' (it is compiled: cmake and a C++ compiler are "
            "needed), or use Q8_0 or Q4_0",
        ) from error
    return llama_cpp


def quantize(source: Path, target: Path, quant: str) -> None:
    """Quantise the GGUF file `source` of floating-point weights; `target` appears when complete.

    Rows that are no multiple of 256 weights long cannot be K-quants: llama.cpp takes larger blocks
    of 32 for them, which the log says. Raises CheckpointError where llama.cpp gives up.
    """
    llama_cpp = open_llama_cpp(quant)
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: object) -> None:
        lines.append(text.decode("utf-8", "replace"))

    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = KQUANTS[quant]
    params.nthread = 0
    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(keep, None)
    try:
        llama_cpp.llama_backend_init()
        code = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(temporary), ctypes.byref(params)
        )
        if code:
            last = "".join(lines[-3:]).strip() or f"code {code}"
            raise CheckpointError(
                f"llama.cpp could not quantise to {quant}: {last}",
                where=target,
                hint="use Q8_0 or Q4_0, or a newer llama-cpp-python",
            )
        _log_fallback(GgufFile(temporary), quant)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        llama_cpp.llama_log_set(before, data)
        temporary.unlink(missing_ok=True)


def _log_fallback(gguf: GgufFile, quant: str) -> None:
    """Say which rows were too short for the format, and what they became."""
    from gguf import GGMLQuantizationType

    matrices = [tensor for tensor in gguf.tensors.values() if len(tensor.shape) > 1]
    short = [tensor for tensor in matrices if tensor.shape[-1] % BLOCK]
    if short:
        kinds = Counter(GGMLQuantizationType(tensor.type).name for tensor in short)
        log.warning(
            "%d of %d matrices have rows that are no multiple of %d weights long and cannot be %s; "
            "llama.cpp wrote them as %s",
            len(short),
            len(matrices),
            BLOCK,
            quant,
            ", ".join(f"{name} ({count})" for name, count in kinds.most_common()),
        )
