"""A model's arithmetic on a GPU: the fused Triton kernels around the library's matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reference_engine.kernels.linear import linear_launch
from reference_engine.kernels.rms_norm import head_norm_launch, rms_norm_launch
from reference_engine.kernels.rope import rope_launch
from reference_engine.kernels.silu_mul import silu_mul_launch
from reference_engine.models.ops import TorchOps

# torch.mm can return wider numbers than it is given from 2.8 on.
WIDE_PRODUCTS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)


class TritonOps(TorchOps):
    """:class:`~reference_engine.models.ops.Ops` with fused norms, RoPE in place and a fused activation.

    ``deterministic``: matrix products too run in an order that does not depend on the number of rows.
    """

    name = "triton"

    def __init__(self, *, deterministic: bool = False) -> None:
        self.deterministic = deterministic

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        if not self.deterministic:
            return super().linear(x, weight)
        matrix, bias = weight
        x = x if x.stride(1) == 1 else x.contiguous()
        out = torch.empty(x.shape[0], matrix.shape[0], dtype=x.dtype, device=x.device)
        if x.shape[0]:
            linear_launch(out, x, matrix, bias).run()
        return out

    def logits(self, x: Tensor, weight: Any) -> Tensor:
        matrix, bias = weight
        if self.deterministic or bias is not None or not x.is_cuda or x.dtype == torch.float32 or not WIDE_PRODUCTS:
            return self.linear(x, weight).to(torch.float32)
        # The product's own fp32 sums: more exact than rounding first, and one pass over the logits less.
        return torch.mm(x, matrix.t(), out_dtype=torch.float32)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if x.shape[0]:
            rms_norm_launch(normed, x, residual, weight, eps).run()
        return normed, x if residual is None else residual

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As in the protocol, in place: ``x`` is returned."""
        if x.shape[0]:
            rope_launch(x, cos, sin).run()
        return x

    def head_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if x.shape[0]:
            head_norm_launch(out, x, weight, eps).run()
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=gate_up.dtype, device=gate_up.device)
        if out.shape[0]:
            silu_mul_launch(out, gate_up).run()
        return out
