"""Writing runs: nothing lost when the writer is killed, nothing half-written for a reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.results.reader import TABLES, load_run
from harness.results.schema import CellInfo, LoadInfo, MachineInfo, RunManifest, WorkloadInfo
from harness.results.writer import RunWriteError, RunWriter, compact


def manifest() -> RunManifest:
    machine = MachineInfo(hostname="h", os="o", cpu="c", cores=2, memory_bytes=1, python="3", packages={})
    workload = WorkloadInfo(name="chat", parameters={}, seed=0, digest="d")
    cell = CellInfo(cell_id="c", engine="e", workload=workload, load=LoadInfo(mode="closed", concurrency=1))
    return RunManifest(
        run_id="r", created_utc="2026", tool_version="0", command=[], seed=0, machine=machine, engines=[], cells=[cell]
    )


def request_row(index: int) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(TABLES["requests"].names)
    return row | {"cell_id": "c", "request_index": index, "t_ready": index, "ok": True, "chunks": 0, "warmup": False}


def test_rows_survive_into_parquet(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    writer.append("requests", [request_row(0), request_row(1)])
    writer.append("metrics", [{"cell_id": "c", "t": 5, "name": "kv_usage", "value": 0.25}])
    assert load_run(tmp_path / "run").requests.num_rows == 2  # readable while it is written
    writer.manifest.status = "complete"
    writer.close()
    run = load_run(tmp_path / "run")
    assert run.manifest.status == "complete"
    assert run.requests["request_index"].to_pylist() == [0, 1]
    assert run.metrics["value"].to_pylist() == [0.25]
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"run.json", *(f"{name}.parquet" for name in TABLES)}


def test_a_killed_writer_loses_no_finished_row(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import importlib.util
spec = importlib.util.spec_from_file_location("t", {__file__!r}); t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
from pathlib import Path
writer = t.RunWriter(Path({str(tmp_path / "run")!r}), t.manifest())
for index in range(10**9):
    writer.append("requests", [t.request_row(index)])
    print(index, flush=True)
"""
    root = Path(__file__).resolve().parents[3]
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 50:
            break
    child.send_signal(signal.SIGKILL)
    last = max((int(line) for line in child.stdout.read().split("\n")[:-1] if line), default=50)
    child.wait()
    child.stdout.close()
    run = load_run(tmp_path / "run")
    assert run.manifest.status == "killed"
    indices = run.requests["request_index"].to_pylist()
    assert indices == list(range(len(indices)))
    assert len(indices) >= last + 1
    compact(tmp_path / "run")
    assert load_run(tmp_path / "run").requests.num_rows == len(indices)


def test_threads_do_not_mix_lines(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())

    def write(source: str) -> None:
        for t in range(300):
            row = {"cell_id": "c", "t": t, "source": source, "name": "x" * 50, "label": "", "value": 1.0}
            writer.append("system", [row, row])

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert load_run(tmp_path / "run").system.num_rows == 4 * 300 * 2


def test_a_directory_that_holds_a_run_is_left_alone(tmp_path: Path) -> None:
    RunWriter(tmp_path, manifest()).close()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunWriteError, match="already holds a run"):
        RunWriter(tmp_path, manifest())
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs /proc")
def test_an_unwritable_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunWriteError, match="cannot write the run directory"):
        RunWriter(Path("/proc/pagedbench"), manifest())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunWriteError, match="cannot write the run directory"):
        RunWriter(tmp_path / "file" / "run", manifest())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence_and_keeps_what_was_written(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    writer.append("requests", [request_row(0)])
    os.symlink("/dev/full", tmp_path / "full.jsonl")
    journal = writer._journals["requests"]
    kept = journal._file
    journal._file = (tmp_path / "full.jsonl").open("ab", buffering=0)
    with pytest.raises(RunWriteError, match="what was written so far is kept"):
        writer.append("requests", [request_row(1)])
    journal._file.close()
    journal._file = kept
    writer.close()
    assert load_run(tmp_path / "run").requests.num_rows == 1


def test_a_line_that_a_full_disk_cuts_short_is_taken_back(tmp_path: Path) -> None:
    code = f"""
import importlib.util, resource, signal, sys
spec = importlib.util.spec_from_file_location("t", {__file__!r}); t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = t.RunWriter(Path({str(tmp_path / "run")!r}), t.manifest())
writer.append("requests", [t.request_row(0)])
size = Path({str(tmp_path / "run" / "requests.jsonl")!r}).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
try:
    writer.append("requests", [t.request_row(1)])
except t.RunWriteError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.append("requests", [t.request_row(2)])
writer.close()
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert "what was written so far is kept" in done.stdout, done.stderr
    assert load_run(tmp_path / "run").requests["request_index"].to_pylist() == [0, 2]
