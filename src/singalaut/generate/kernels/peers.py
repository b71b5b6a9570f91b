"""Sums over the devices of a node that read each other's memory: what a decoding step adds up.

Such sums are a few kilobytes, and a collective of a library takes several times as long as the
data need. Here each program copies its part to where the others see it, tells them, waits for their
word, and adds all parts up in the order of ranks, so that every device gets the same bits.

A sum may begin to fill its buffer while another device still reads what was there two sums before
at the latest; hence two halves that take turns, and an even number of sums in every pass.

Shapes: S processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from singalaut.generate.kernels.shared import HANDLE_BYTES, SharedMemory

log = logging.getLogger("singalaut")

HALF_BYTES = 8 << 20  # of what is added up at once
BLOCK = 1024
MOST_PROGRAMS = 64  # all of them must run at once, as they wait for their like elsewhere
FLAG_BYTES = 4096
LATE = 0x3F  # in every byte: a number that no sum has reached yet


class PeerSums:
    """The memory that the devices of all processes read."""

    def __init__(
        self, memory: SharedMemory, places: Sequence[int], rank: int, device: torch.device
    ):
        self.rank, self._memory, self._device = rank, memory, device
        self.size = len(places)
        self._places = torch.tensor(places, dtype=torch.int64, device=device)
        self._counts = torch.zeros(MOST_PROGRAMS, dtype=torch.int32, device=device)
        self._turn = 0

    def fits(self, tensor: Tensor) -> bool:
        return tensor.numel() * tensor.element_size() <= HALF_BYTES

    def give_up(self) -> None:
        """Let no program wait any more for a process that has ended; sums mean nothing then."""
        with torch.cuda.device(self._device):
            self._memory.fill(2 * HALF_BYTES, FLAG_BYTES, LATE)

    def sum(self, tensor: Tensor) -> None:
        """The sum of all processes' tensors, in place."""
        count = tensor.numel()
        programs = min(triton.cdiv(count, BLOCK), MOST_PROGRAMS)
        overlaps = torch.cuda.get_device_capability(tensor.device) >= (9, 0)
        sum_parts[programs,](
            tensor, self._places, self._counts, count, HALF=HALF_BYTES * self._turn,
            RANK=self.rank, SIZE=self.size, BLOCK=BLOCK, FLAGS=2 * HALF_BYTES, OVERLAP=overlaps,
            num_warps=4, **({"launch_pdl": True} if overlaps else {}),
        )  # fmt: skip
        self._turn ^= 1


def open_peers(
    gather: Callable[[bytes], list[bytes]], rank: int, device: torch.device, *, wanted: bool
) -> PeerSums | None:
    """Sums of this kind, or None where some process does not want them or cannot have them.

    All processes have to come here; `gather` gives the bytes of all of them, by rank.
    """
    memory, made = None, None
    try:
        if wanted:
            with torch.cuda.device(device):
                memory = SharedMemory(2 * HALF_BYTES + FLAG_BYTES)
    except (RuntimeError, OSError, AttributeError) as error:
        log.info("no memory to share with other processes: %s", error)
    handles = gather(memory.handle if memory else bytes(HANDLE_BYTES))
    if memory is not None and all(map(any, handles)):
        try:
            with torch.cuda.device(device):
                made = PeerSums(memory, memory.open(handles, rank), rank, device)
        except RuntimeError as error:
            log.info("the memory of another process cannot be read: %s", error)
    everyone = gather(bytes(HANDLE_BYTES) if made is None else b"\1" * HANDLE_BYTES)
    return made if all(map(any, everyone)) else None


@triton.jit
def sum_parts(
    values, places, counts, count,
    HALF: tl.constexpr, RANK: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    FLAGS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    program, step = tl.program_id(0), tl.num_programs(0) * BLOCK
    first = program * BLOCK
    DTYPE: tl.constexpr = values.dtype.element_ty
    own = tl.load(places + RANK)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    target = (own + HALF).to(tl.pointer_type(DTYPE))
    for start in range(first, count, step):
        at = start + tl.arange(0, BLOCK)
        tl.store(
            tl.multiple_of(target + at, 16), tl.load(values + at, mask=at < count), mask=at < count
        )
    number = tl.load(counts + program) + 1
    tl.debug_barrier()  # all parts are written, and the number is read
    tl.store(counts + program, number)
    for other in tl.static_range(SIZE):
        if other != RANK:
            flags = (tl.load(places + other) + FLAGS).to(tl.pointer_type(tl.int32))
            tl.atomic_xchg(flags + program * SIZE + RANK, number, sem="release", scope="sys")
    heard = (own + FLAGS).to(tl.pointer_type(tl.int32)) + program * SIZE
    for other in tl.static_range(SIZE):
        if other != RANK:
            # it may be one ahead already, and numbers begin anew after four thousand million
            while tl.atomic_add(heard + other, 0, sem="acquire", scope="sys") - number < 0:
                pass
    tl.debug_barrier()
    for start in range(first, count, step):
        at = start + tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], tl.float32)
        for other in tl.static_range(SIZE):
            part = (tl.load(places + other) + HALF).to(tl.pointer_type(DTYPE))
            total += tl.load(
                tl.multiple_of(part + at, 16), mask=at < count, cache_modifier=".cg"
            ).to(tl.float32)
        tl.store(values + at, total, mask=at < count)
