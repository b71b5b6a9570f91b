"""The engine's kernels on the device, in both dtypes, at the widths of the published sizes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "generate"))
import kernel_cases as cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
WIDTHS = (640, 1152, 2560, 3840, 5376)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_elementwise(width, dtype):
    cases.check_embed("cuda", dtype, width)
    cases.check_add_norms("cuda", dtype, width)
    cases.check_gelu_mul("cuda", dtype, width)
    cases.check_finish_qkv("cuda", dtype)
    cases.check_set_pages("cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 2, 16])
@pytest.mark.parametrize("shape", [(1, 4, 256), (4, 2, 256), (16, 2, 128)])
@pytest.mark.parametrize("window", [None, 512])
def test_attention(window, shape, splits, dtype):
    key_heads, group, width = shape
    lengths = [1, 32, 33, 511, 512, 513, 1025, 3000]
    cases.check_attention("cuda", dtype, lengths, splits, window, key_heads, group, width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 16])
@pytest.mark.parametrize("shape", [(1, 4, 256), (4, 2, 256), (16, 2, 128)])
@pytest.mark.parametrize("length", [1, 64, 513, 2000])
def test_attention_of_one_row(length, shape, splits, dtype):
    for window in (None, 512):
        cases.check_attend_row("cuda", dtype, length, splits, window, *shape)


@pytest.mark.parametrize("width", WIDTHS)
def test_one_row(width):
    cases.check_single("cuda", torch.bfloat16, width, inner=3 * width)


def test_sampling():
    cases.check_sampling("cuda", vocab=262_144, rows=64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", (640, 2560))
def test_products_in_tiles(width, dtype):
    cases.check_product("cuda", dtype, count=3 * width, width=width, rows=300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "width"), [(1152, 6912), (8192, 2560), (300, 100)])
@pytest.mark.parametrize("rows", (16, 60, 128, 300))
def test_products_with_widened_weights(rows, count, width, dtype):
    cases.check_narrow_product("cuda", dtype, count, width, rows)


@pytest.mark.parametrize("width", (640, 2560))
def test_weights_of_eight_bits(width):
    cases.check_eight_bits_of_one_row("cuda", torch.bfloat16, width)
    cases.check_narrow_rows("cuda", torch.bfloat16, width)


@pytest.mark.parametrize("width", (640, 2560))
@pytest.mark.parametrize("rows", (1, 16, 300))
def test_products_in_fp8(rows, width):
    from singalaut.generate.kernels.matmul import Quantised, fp8_product

    x = cases.draw(rows, width, dtype=torch.bfloat16, device="cuda")
    weight = cases.draw(512, width, dtype=torch.bfloat16, device="cuda", seed=1) / width**0.5
    matrix = Quantised.of(weight, "fp8")
    wanted = x.float() @ matrix.dequantised().T
    found = fp8_product(x, matrix, torch.bfloat16).float()
    assert (found - wanted).abs().mean() < 0.04 * wanted.abs().mean()
    with pytest.raises(AssertionError):  # scales of other rows are noticed
        matrix.scales = matrix.scales.flip(0) * 1.5
        found = fp8_product(x, matrix, torch.bfloat16).float()
        assert (found - wanted).abs().mean() < 0.04 * wanted.abs().mean()
