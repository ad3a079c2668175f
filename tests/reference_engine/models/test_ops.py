"""Row counts that the CPU's linear layers see, and that padding changes no result."""

from __future__ import annotations

import pytest
import torch

from reference_engine.models.ops import OneDnnOps, TorchOps

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@onednn
def test_a_servers_steps_have_few_different_sizes() -> None:
    """Each size costs memory for good, so their number is bounded, and so is what padding adds to a step."""
    ops = OneDnnOps()
    sizes = {ops.padded_rows(rows) for rows in range(1, 257)}
    assert len(sizes) <= 24
    assert all(0 <= ops.padded_rows(rows) - rows < max(4, rows / 4) for rows in range(1, 5000))
    assert all(ops.padded_rows(size) == size for size in sizes)


@onednn
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 33, 65, 250, 257])
def test_padding_leaves_rows_as_they_are(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 24, generator=generator), torch.randn(10, 24, generator=generator)
    bias = torch.randn(10, generator=generator)
    found = OneDnnOps().linear(x, OneDnnOps().prepare_linear(weight, bias))
    assert found.shape == (rows, 10)
    assert torch.allclose(found, TorchOps().linear(x, (weight, bias)), atol=1e-5)
