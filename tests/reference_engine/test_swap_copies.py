"""The host pool's copies: what comes back is what left, also when both happen in one step."""

from __future__ import annotations

import pytest
import torch

from reference_engine.attention.base import KVCacheLayer, empty_cache_layer
from reference_engine.plan import BlockCopy
from reference_engine.swap_copies import HostPool

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_leave_and_come_back(dtype: torch.dtype) -> None:
    layers = [empty_cache_layer(6, 4, 2, 8, dtype, CPU) for _ in range(3)]
    for layer in layers:
        for tensor in layer.tensors():
            tensor.copy_(torch.randn(tensor.shape))
    before = [tensor.clone() for layer in layers for tensor in layer.tensors()]
    host = HostPool(layers, 4)
    host.swap_out((BlockCopy(1, 3), BlockCopy(4, 0)))
    for tensor in tensors(layers):
        tensor[[1, 4]] = float("nan")
    host.swap_out((BlockCopy(2, 1),))
    host.swap_in((BlockCopy(3, 2), BlockCopy(0, 5)))
    host.swap_in((BlockCopy(1, 1),))
    for now, then in zip(tensors(layers), before, strict=True):
        assert torch.equal(now[2], then[1])
        assert torch.equal(now[5], then[4])
        assert torch.equal(now[1], then[2])
        assert torch.equal(now[[0, 3]], then[[0, 3]])


def tensors(layers: list[KVCacheLayer]) -> list[torch.Tensor]:
    return [tensor for layer in layers for tensor in layer.tensors()]
