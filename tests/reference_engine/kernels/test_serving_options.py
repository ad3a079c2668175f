from __future__ import annotations

import pytest
import torch

from reference_engine.config import ConfigError
from reference_engine.server.build import build
from reference_engine.server.options import ServerOptions


@pytest.mark.parametrize("attention", ["auto", "gather"])
def test_deterministic_without_its_kernels_is_refused_before_a_model_is_loaded(attention: str) -> None:
    with pytest.raises(ConfigError, match="--deterministic works with --attention triton"):
        build(ServerOptions(model="no such model", device="cpu", attention=attention, deterministic=True))  # type: ignore[arg-type]


def test_triton_attention_on_a_cpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from reference_engine.attention import make_backend

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="choose --attention gather"):
        make_backend("triton", torch.device("cpu"))
