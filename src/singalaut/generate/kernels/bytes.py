"""Products of one row with int8 weights by sums of four bytes at once.

Widening a byte takes more instructions than a device can issue while its memory brings the next
one. So the weights stay as they are, four to a word, and the row becomes bytes instead: two for
each entry, as on a CPU (`model/linear.py`), which keep 15 bits of the row's largest entry. Sums of
products are exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAGIC = tl.constexpr(12582912.0)  # 1.5 · 2²³: a small number added to it is rounded to an integer


@triton.jit
def split_in_bytes(x, BLOCK: tl.constexpr):
    """x = step · (high + low / 254): high and low, [BLOCK / 4], four bytes to a word, and step."""
    largest = tl.maximum(tl.max(tl.abs(x), 0), 1e-12)
    exact = x * (127 / largest)
    high = exact + MAGIC
    low = (exact - (high - MAGIC)) * 254 + MAGIC
    step = largest / 127 + 0 * tl.sum(x, 0)  # bytes would hide what is not a number
    return _packed(high, BLOCK), _packed(low, BLOCK), step


@triton.jit
def _packed(values, BLOCK: tl.constexpr):
    """The lowest bytes of the bits of four neighbours in a word, the first in its lowest byte."""
    bits = tl.reshape(values.to(tl.int32, bitcast=True) & 255, [BLOCK // 4, 2, 2])
    even, odd = tl.split(bits)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first | (second << 8) | (third << 16) | (fourth << 24)


@triton.jit
def row_sums(w, high, low, step, NATIVE: tl.constexpr):
    """Sums over each row of words `w` [ROWS, BLOCK / 4] times the row that was split."""
    of_high = tl.sum(_dot4(w, high[None, :], NATIVE), 1)
    of_low = tl.sum(_dot4(w, low[None, :], NATIVE), 1)
    return step * (of_high.to(tl.float32) + of_low.to(tl.float32) / 254)


@triton.jit
def _dot4(a, b, NATIVE: tl.constexpr):
    """Sums of the products of four signed bytes; a device has an instruction for it."""
    if NATIVE:
        total = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, 0;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        total = tl.zeros_like(a)
        for place in tl.static_range(4):
            total += ((a << (24 - 8 * place)) >> 24) * ((b << (24 - 8 * place)) >> 24)
    return total
