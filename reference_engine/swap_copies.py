"""The host pool's memory and the copies between it and the device pool.

::

    host pool   [num_host_blocks, layers, tensors of a layer, bytes of a block]     one block of all layers is contiguous
    out         gather the blocks of each layer into a staging buffer of the same layout, then one copy a block
    in          one copy a block into a staging buffer, then scatter it to the layers

On CUDA the host pool is pinned and the copies run on a stream of their own: the compute stream only waits for a swap in,
never for a swap out, and copies in both directions keep their order among themselves.  On a CPU they are plain copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_engine.attention.base import KVCacheLayer
from reference_engine.config import ConfigError
from reference_engine.plan import BlockCopy


class HostPool:
    """Blocks in host memory for the pool ``layers``."""

    def __init__(self, layers: list[KVCacheLayer], num_blocks: int) -> None:
        """Raises ConfigError if the memory cannot be had."""
        self.num_blocks = num_blocks
        self._tensors = [
            tensor.view(tensor.shape[0], -1).view(torch.uint8) for layer in layers for tensor in layer.tensors()
        ]
        widths = [tensor.shape[1] for tensor in self._tensors]
        self._columns = [(sum(widths[:index]), width) for index, width in enumerate(widths)]
        self.block_bytes = sum(widths)
        self._device = self._tensors[0].device
        on_cuda = self._device.type == "cuda"
        try:
            self._host = torch.empty((num_blocks, self.block_bytes), dtype=torch.uint8, pin_memory=on_cuda)
        except (RuntimeError, MemoryError):
            raise ConfigError(
                f"cannot allocate {num_blocks * self.block_bytes / 2**30:.2f} GiB of host memory; lower --swap-space"
            ) from None
        self._stream = torch.cuda.Stream(self._device) if on_cuda else None

    def swap_out(self, copies: tuple[BlockCopy, ...]) -> None:
        """Copy device blocks ``source`` to host blocks ``target``."""
        if not copies:
            return
        sources = torch.tensor([copy.source for copy in copies], device=self._device)
        staging = torch.empty((len(copies), self.block_bytes), dtype=torch.uint8, device=self._device)
        for tensor, (begin, width) in zip(self._tensors, self._columns, strict=True):
            staging[:, begin : begin + width] = tensor.index_select(0, sources)
        if self._stream is None:
            self._host[torch.tensor([copy.target for copy in copies])] = staging
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for row, copy in zip(staging, copies, strict=True):
                self._host[copy.target].copy_(row, non_blocking=True)
        staging.record_stream(self._stream)

    def swap_in(self, copies: tuple[BlockCopy, ...]) -> None:
        """Copy host blocks ``source`` to device blocks ``target``."""
        if not copies:
            return
        targets = torch.tensor([copy.target for copy in copies], device=self._device)
        staging = self._host[[copy.source for copy in copies]] if self._stream is None else self._staged(copies)
        for tensor, (begin, width) in zip(self._tensors, self._columns, strict=True):
            tensor.index_copy_(0, targets, staging[:, begin : begin + width])

    def _staged(self, copies: tuple[BlockCopy, ...]) -> Tensor:
        assert self._stream is not None
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            staging = torch.empty((len(copies), self.block_bytes), dtype=torch.uint8, device=self._device)
            for row, copy in zip(staging, copies, strict=True):
                row.copy_(self._host[copy.source], non_blocking=True)
        compute.wait_stream(self._stream)
        staging.record_stream(compute)
        return staging
