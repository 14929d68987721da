"""Which type a matrix product is computed in."""

from __future__ import annotations

import pytest
import torch

from batchcam_captum.functional import exact_matmul_dtype


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        (torch.float32, "highest", torch.float32),
        (torch.float32, "high", torch.float64),
        (torch.float32, "medium", torch.float64),
        (torch.float64, "medium", torch.float64),
    ],
)
def test_float32_products_are_never_rounded_more(
    dtype: torch.dtype, precision: str, expected: torch.dtype
) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert exact_matmul_dtype(torch.zeros(2, dtype=dtype)) == expected
    finally:
        torch.set_float32_matmul_precision(before)
