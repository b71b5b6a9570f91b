"""Memory of a CUDA device that other processes of the machine can read, by the runtime's handles.

PyTorch shares tensors only with processes that it has started, and its symmetric memory can be set
up once in a process; the runtime itself needs five calls.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

HANDLE_BYTES = 64
ENABLE_PEER_ACCESS = 1
Handle = ctypes.c_byte * HANDLE_BYTES


class _Handle(ctypes.Structure):
    _fields_ = [("data", Handle)]


class SharedMemory:
    """Zeroed bytes on the current device, and where those of other processes appear here."""

    def __init__(self, count: int):
        """Raises: RuntimeError where the runtime refuses."""
        self._runtime = _runtime()
        place = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(place), ctypes.c_size_t(count))
        assert place.value is not None
        self.place = place.value
        self._at_end(self._runtime.cudaFree, place)
        self._call("cudaMemset", place, ctypes.c_int(0), ctypes.c_size_t(count))
        torch.cuda.synchronize()
        handle = _Handle()
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), place)
        self.handle = bytes(handle)

    def open(self, handles: Sequence[bytes], own: int) -> list[int]:
        """Where the memory of each process lies for kernels here, by rank; `own` is this one's.

        Raises: RuntimeError where the runtime refuses.
        """
        places = []
        for rank, data in enumerate(handles):
            if rank == own:
                places.append(self.place)
                continue
            place = ctypes.c_void_p()
            handle = _Handle.from_buffer_copy(data)
            flags = ctypes.c_uint(ENABLE_PEER_ACCESS)
            self._call("cudaIpcOpenMemHandle", ctypes.byref(place), handle, flags)
            assert place.value is not None
            self._at_end(self._runtime.cudaIpcCloseMemHandle, place)
            places.append(place.value)
        return places

    def fill(self, first: int, count: int, byte: int) -> None:
        """Overwrite some bytes beside whatever the device is doing."""
        place, stream = ctypes.c_void_p(self.place + first), torch.cuda.Stream()
        stream_place = ctypes.c_void_p(stream.cuda_stream)
        self._call(
            "cudaMemsetAsync", place, ctypes.c_int(byte), ctypes.c_size_t(count), stream_place
        )

    def _at_end(self, let_go: Callable[[ctypes.c_void_p], int], place: ctypes.c_void_p) -> None:
        """Let go of memory with this object; the end of the process does so anyway."""
        weakref.finalize(self, let_go, place).atexit = False

    def _call(self, name: str, *arguments: object) -> None:
        if code := getattr(self._runtime, name)(*arguments):
            self._runtime.cudaGetErrorString.restype = ctypes.c_char_p
            reason = self._runtime.cudaGetErrorString(code).decode()
            self._runtime.cudaGetLastError()  # else PyTorch would report it later as its own
            raise RuntimeError(f"{name}: {reason}")


def _runtime() -> ctypes.CDLL:
    """The CUDA runtime that PyTorch has loaded."""
    maps = Path("/proc/self/maps").read_text().split()
    loaded = [word for word in maps if "libcudart" in word]
    return ctypes.CDLL(loaded[0] if loaded else "libcudart.so")
