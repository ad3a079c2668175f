"""External engines: environments and models under ``PAGEDBENCH_EXT`` (docs/engines.md says how to make them)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.engines.catalogue import find
from harness.engines.installed import installed_version

THREADS = 2


@dataclass(frozen=True)
class External:
    """One engine as the tests launch it."""

    recipe: str
    settings: dict[str, Any]


def settings_of(models: Path) -> dict[str, External]:
    """The same fp32 weights for all, small KV pools, two threads."""
    directory, gguf = str(models / "smollm2-135m-fp32"), str(models / "smollm2-135m-f32.gguf")
    return {
        "vllm-cpu": External(
            "vllm-cpu",
            {
                "model": directory,
                "served_model_name": "smollm2",
                "kv_memory": "200MiB",
                "max_model_len": 512,
                "max_num_seqs": 8,
                "enforce_eager": True,
                "thread_binding": "nobind",
            },
        ),
        "xllamacpp": External(
            "xllamacpp",
            {"model": gguf, "served_model_name": "smollm2", "kv_tokens": 4096, "max_num_seqs": 8, "threads": THREADS},
        ),
        "transformers": External("transformers", {"model": directory, "threads": THREADS}),
        "transformers-cb": External(
            "transformers-cb",
            {
                "model": directory,
                "threads": THREADS,
                "kv_blocks": 256,
                "block_size": 32,
                "max_num_batched_tokens": 256,
            },
        ),
        "reference": External(
            "reference",
            {"model": directory, "served_model_name": "smollm2", "kv_memory": "200MiB", "threads": THREADS},
        ),
    }


@pytest.fixture(scope="session")
def models() -> Path:
    root = os.environ.get("PAGEDBENCH_EXT")
    if not root:
        pytest.skip("set PAGEDBENCH_EXT to the folder with the engines' environments and models (docs/engines.md)")
    folder = Path(root) / "models"
    if not (folder / "smollm2-135m-fp32" / "config.json").is_file():
        pytest.skip(f"{folder} has no models; make them with tests/external/make_models.py")
    return folder


@pytest.fixture
def external(request: pytest.FixtureRequest, models: Path, monkeypatch: pytest.MonkeyPatch) -> External:
    """The engine named by the test's parameter; skipped when it is not installed."""
    engine = settings_of(models)[request.param]
    # Set for our own tests; an engine has to choose its threads itself.
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    recipe = find(engine.recipe)
    if installed_version(recipe) is None:
        pytest.skip(f"{engine.recipe} is not installed; {recipe.install}")
    return engine
