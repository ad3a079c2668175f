"""The arithmetic a Llama-family block is made of, behind one small protocol.

A model is written once against ``Ops``; an implementation chooses how weights are laid out and which kernels run.
``TorchOps`` runs anywhere torch does.  ``OneDnnOps`` is the fast one on a CPU: ``torch.nn.functional.linear`` goes to
MKL in fp32, which reaches a third to a half of the memory bandwidth on AMD processors, while oneDNN with weights
packed once reaches most of it.  On Intel processors MKL is the faster one up to three rows and the slower one from
four on, so ``OneDnnOps`` keeps both layouts there.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Linear(Protocol):
    """A weight ``[out, in]`` with optional bias, laid out by the ``Ops`` that prepared it; opaque to the model."""

    @property
    def out_features(self) -> int: ...


class Ops(Protocol):
    """What a block needs.  Rows are tokens: ``T``.  All share one dtype; only ``logits`` returns fp32."""

    name: str

    def padded_rows(self, rows: int) -> int:
        """How many rows a forward pass of ``rows`` is padded to; at least ``rows``."""
        ...

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> Any:
        """Lay out ``weight [out, in]`` once at load time.  The caller keeps no other reference to it."""
        ...

    def prepare_norm(self, weight: Tensor, eps: float) -> Any:
        """What ``rms_norm`` takes as its weight, made once from ``weight [H]``."""
        ...

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        """``x [T, in]`` -> ``[T, out]``."""
        ...

    def rms_norm(self, x: Tensor, weight: Any, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add ``x`` to the residual stream, then normalise.  Returns ``(normed, residual)``; without residual, ``x``
        becomes it.

        The residual passed in may be updated in place: the caller uses only the one returned.
        """
        ...

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate ``x [T, H, D]`` in half-split order; ``cos, sin [T, 1, D]``.  ``x`` may be a view into a wider row."""
        ...

    def head_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMS norm of every head ``x [T, H, D]`` over D (Qwen3's QK norm)."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """``[T, 2I]`` holding gate then up -> ``silu(gate) * up [T, I]``."""
        ...

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        """Rows of ``table [V, H]`` at ``ids [T]``."""
        ...

    def logits(self, x: Tensor, weight: Any) -> Tensor:
        """``x [R, H]`` -> fp32 ``[R, V]``."""
        ...


class TorchOps:
    """Plain torch; any device, any floating dtype.  Norms accumulate in fp32."""

    name = "torch"

    def padded_rows(self, rows: int) -> int:
        return rows

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> Any:
        return (weight, bias)

    def prepare_norm(self, weight: Tensor, eps: float) -> Any:
        return weight

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        return functional.linear(x, weight[0], weight[1])

    def rms_norm(self, x: Tensor, weight: Any, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        residual = x if residual is None else residual.add_(x)
        return _rms_norm(residual, weight, eps), residual

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        rotated = x * cos
        rotated[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        rotated[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return rotated

    def head_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _rms_norm(x, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        return functional.embedding(ids, table)

    def logits(self, x: Tensor, weight: Any) -> Tensor:
        return self.linear(x, weight).to(torch.float32)


class OneDnnOps(TorchOps):
    """CPU, fp32 or bf16: products through oneDNN with weights packed once, and fewer, larger elementwise steps.

    With ``keep_rows`` the weights (the first ``MOST_KEPT_BYTES`` of them) stay in memory as they came, too, and serve
    products of up to ``MOST_KEPT_ROWS`` rows: twice the memory for a faster decode of few sequences.  On two threads of
    an Intel Xeon that reads 24 GB/s, all products of one SmolLM2 step in fp32 took 22 ms as rows and 28 ms packed for
    one row of activations, 41 and 29 ms for four (``python -m reference_engine.bench_linear``).
    """

    name = "onednn"
    MOST_KEPT_ROWS = 3
    MOST_KEPT_BYTES = 4 << 30  # a large model's weights would not fit twice

    def __init__(self, *, keep_rows: bool = False) -> None:
        # Bound here: a torch built without oneDNN has no such operators.
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._pack = torch.ops.mkldnn._reorder_linear_weight.default
        self._keeps_rows = keep_rows
        self._bytes_to_keep = self.MOST_KEPT_BYTES if keep_rows else 0

    def padded_rows(self, rows: int) -> int:
        """The next multiple of 4, above 32 rows of 8, above 64 of 16, above 256 of 64; few rows as they are where their
        weights are kept as rows, too.

        oneDNN compiles a kernel for every number of rows it sees and keeps about 0.6 MiB for it, for each weight shape:
        a server whose steps may have any size up to 256 would grow by hundreds of MiB in its first hour.
        One packed row is also slower than four: 32 ms a step on one thread of an AMD EPYC, 27 ms padded.
        """
        return rows if self._keeps_rows and rows <= self.MOST_KEPT_ROWS else _packed_rows(rows)

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> Any:
        weight = weight.contiguous()
        keeps = weight.nbytes <= self._bytes_to_keep
        self._bytes_to_keep -= weight.nbytes if keeps else 0
        return (self._pack(weight, None), bias, weight if keeps else None)

    def prepare_norm(self, weight: Tensor, eps: float) -> Any:
        """``w * sqrt(n)`` and ``sqrt(n * eps)``: then ``rms_norm(x) = x / hypot(|x|, sqrt(n * eps)) * (w * sqrt(n))``."""
        width = weight.shape[0]
        if weight.dtype != torch.float32:
            return (weight, None)
        return (weight * math.sqrt(width), torch.tensor([[math.sqrt(width * eps)]]))

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        rows = x.shape[0]
        if weight[2] is not None and rows <= self.MOST_KEPT_ROWS:
            return functional.linear(x, weight[2], weight[1])
        if (wanted := _packed_rows(rows)) > rows:
            padded = x.new_zeros((wanted, x.shape[1]))
            padded[:rows] = x
            return self._product(padded, weight[0], weight[1], "none", [], None)[:rows]
        product: Tensor = self._product(x, weight[0], weight[1], "none", [], None)
        return product

    def rms_norm(self, x: Tensor, weight: Any, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scaled, floor = weight
        if floor is None:
            return super().rms_norm(x, scaled, eps, residual)
        residual = x if residual is None else residual.add_(x)
        length = torch.linalg.vector_norm(residual, dim=-1, keepdim=True).hypot_(floor)
        return torch.div(residual, length).mul_(scaled), residual


def _packed_rows(rows: int) -> int:
    step = 4 if rows <= 32 else 8 if rows <= 64 else 16 if rows <= 256 else 64
    return -(-rows // step) * step


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype == torch.float32:
        return functional.rms_norm(x, (x.shape[-1],), weight, eps)
    wide = x.to(torch.float32)
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(eps))
    return wide.mul_(scale).to(x.dtype).mul_(weight)


def make_ops(device: torch.device, dtype: torch.dtype, *, deterministic: bool = False) -> Ops:
    """The fastest implementation for ``device`` and ``dtype``.

    ``deterministic`` (CUDA only): a row's bits do not depend on how many rows there are.
    """
    if device.type == "cuda" and find_spec("triton") is not None:
        from reference_engine.kernels.ops import TritonOps

        return TritonOps(deterministic=deterministic)
    packs = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()
    if not packs:
        return TorchOps()
    return OneDnnOps(keep_rows=dtype == torch.float32 and torch.backends.mkl.is_available() and is_intel_processor())


def is_intel_processor() -> bool:
    """Whether this machine's first processor is Intel's; False where Linux's ``/proc/cpuinfo`` does not say so."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            vendor = next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return False
    return "GenuineIntel" in vendor
