"""Backends by name."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from reference_engine.attention import BACKENDS, make_backend
from reference_engine.config import ConfigError


@pytest.mark.parametrize("name", ["naive", "gather"])
def test_backends_know_their_name(name: str) -> None:
    assert make_backend(name, torch.device("cpu")).name == name


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=f"choose one of {', '.join(BACKENDS)}"):
        make_backend("flash", torch.device("cpu"))


def test_triton_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys, torch; from reference_engine.attention import make_backend;"
        "make_backend('gather', torch.device('cpu')); sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
