"""The same schedule from four Ray nodes on this machine and from one process: the same requests, the same rate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.emulator.options import make_options
from harness.emulator.process import spawned
from harness.results.reader import Run, load_run

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.external, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Four nodes of one core each, all on this machine."""
    from ray.cluster_utils import Cluster

    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(3):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()
    if paths is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = paths


def run(url: str, out: Path, *more: str, address: str | None = None) -> Run:
    command = [sys.executable, "-m", "harness.cli", "run", "--engine", f"a={url}", "--no-report", "--out", str(out)]
    command += ["--workload", "concurrency:input=16,output=12", "--rate", "25", "--num-requests", "500", "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if address is not None:
        environment["RAY_ADDRESS"] = address
    done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=280)
    assert done.returncode in (0, 5), done.stderr
    return load_run(out)


def test_four_nodes_send_what_one_process_sends(cluster: Any, tmp_path: Path) -> None:
    with spawned(make_options(ttft_ms=30, itl_ms=5)) as url:
        alone = run(url, tmp_path / "alone")
        team = run(url, tmp_path / "team", "--workers", "ray,4", address=cluster.address)
    one, four = alone.manifest.cells[0], team.manifest.cells[0]
    assert one.workload.digest == four.workload.digest
    assert team.requests.num_rows == alone.requests.num_rows == 500
    assert all(team.requests["ok"].to_pylist())

    def by_index(read: Run, column: str) -> dict[int, Any]:
        pairs = zip(read.requests["request_index"].to_pylist(), read.requests[column].to_pylist(), strict=True)
        return dict(pairs)

    assert by_index(alone, "output_tokens") == by_index(team, "output_tokens")
    assert by_index(alone, "planned_prompt_tokens") == by_index(team, "planned_prompt_tokens")

    def offsets(read: Run) -> np.ndarray:
        """Planned times from the first."""
        times = np.array([t for _, t in sorted(by_index(read, "t_sched").items())])
        return times - times.min()

    assert np.abs(offsets(alone) - offsets(team)).max() == 0

    def rate(read: Run) -> float:
        sends = read.requests["t_send"].to_numpy()
        return float((sends.size - 1) / (sends.max() - sends.min()) * 1e9)

    print(json.dumps({"alone_rate": rate(alone), "ray_rate": rate(team), "asked": 25}))
    assert rate(team) == pytest.approx(rate(alone), rel=0.01)
    names = team.system.filter([label != "" for label in team.system["label"].to_pylist()])["name"].to_pylist()
    assert names.count("clock_offset_ns") == 8  # before and after, four workers
    assert team.metrics.num_rows > 0
