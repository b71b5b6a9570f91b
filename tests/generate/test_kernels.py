"""The GPU's kernels in Triton's interpreter: the same comparisons as on a GPU, on small shapes."""

from __future__ import annotations

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("tests/gpu runs these on the device", allow_module_level=True)
pytest.importorskip("triton")

import kernel_cases as cases

DTYPE = torch.float32


def test_elementwise():
    cases.check_embed("cpu", DTYPE)
    cases.check_add_norms("cpu", DTYPE)
    cases.check_gelu_mul("cpu", DTYPE)
    cases.check_finish_qkv("cpu", DTYPE)
    cases.check_set_pages("cpu")


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("window", [None, 40])
def test_attention(splits, window):
    cases.check_attention("cpu", DTYPE, [1, 16, 39, 40, 41, 130], splits, window)


def test_sampling():
    cases.check_sampling("cpu")


def test_sums_of_peers():
    cases.check_sum_of_peers(2, 500, 6)
    cases.check_sum_of_peers(3, 100, 4)


def test_one_row():
    cases.check_single("cpu", DTYPE)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("length", [1, 33, 90])
def test_attention_of_one_row(length, splits, window):
    cases.check_attend_row("cpu", DTYPE, length, splits, window)


def test_products_in_tiles():
    cases.check_product("cpu", DTYPE)


def test_products_with_widened_weights():
    from singalaut.generate.kernels.narrow import Tiling

    assert Tiling.of(20, 70, 1040, DTYPE).splits == 2
    cases.check_narrow_product("cpu", DTYPE, width=1040)
    cases.check_narrow_product("cpu", DTYPE, width=100, rows=140)


def test_weights_of_eight_bits():
    cases.check_eight_bits_of_one_row("cpu", DTYPE)
