"""Attention backends by name.

``naive`` is the fp32 oracle, ``gather`` the CPU production backend, ``triton`` the CUDA one (imported only when asked
for).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reference_engine.config import ConfigError

if TYPE_CHECKING:
    import torch

    from reference_engine.attention.base import AttentionBackend

BACKENDS = ("naive", "gather", "triton")


def make_backend(name: str, device: torch.device, *, deterministic: bool = False) -> AttentionBackend:
    """The backend called ``name``.  Raises ConfigError for an unknown name or one that cannot run on ``device``."""
    if name == "naive":
        from reference_engine.attention.naive import NaiveAttention

        return NaiveAttention()
    if name == "gather":
        from reference_engine.attention.gather import GatherAttention

        return GatherAttention()
    if name == "triton":
        try:
            from reference_engine.attention.triton_paged import TritonPagedAttention
        except ImportError as error:
            raise ConfigError(
                f"the triton attention backend needs the package triton ({error}); choose gather or install it"
            ) from None
        return TritonPagedAttention(device, deterministic=deterministic)
    raise ConfigError(f"unknown attention backend {name!r}; choose one of {', '.join(BACKENDS)}")
