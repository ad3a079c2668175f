"""A soak of the reference server: mixed chat, n > 1, aborts and preemptions for minutes, then: is everything given back?

``python tests/reference_engine/server/soak.py --seconds 600 [server options]`` starts a server, loads it, and prints one
JSON document; exit status 1 if a promise was broken.  The promises: every request ends (answered, or cut by us), allocated
slots return to 0, the invariants of the pool hold (``--audit-every``), and the process does not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

WORKERS = 12
BATCHES = 10
# A pool for a few requests only, so that they take blocks from each other.
POOL = [
    "--num-blocks",
    "96",
    "--block-size",
    "16",
    "--max-model-len",
    "512",
    "--audit-every",
    "20",
    "--debug-endpoints",
]


async def soak(seconds: float, options: list[str], seed: int = 0) -> dict[str, Any]:
    """Load a fresh server for so long; what was seen, with ``broken`` naming the promises that were not kept."""
    command = [sys.executable, "-m", "reference_engine.server", "--port", "0", *POOL, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        line = await asyncio.to_thread(process.stdout.readline)
        if "listening on" not in line:
            raise RuntimeError(f"the server did not start: {' '.join(command)}")
        url = line.split()[-1]
        return await _load(url, process.pid, seconds, seed)
    finally:
        process.terminate()
        process.wait(30)


async def _load(url: str, pid: int, seconds: float, seed: int) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    rss: list[tuple[float, int]] = []
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        until = time.monotonic() + seconds
        watcher = asyncio.create_task(_watch(pid, rss, until))
        await asyncio.gather(*(_worker(session, random.Random(f"{seed}/{i}"), until, seen) for i in range(WORKERS)))
        await watcher
        metrics = await _idle(session)
        async with session.get("/debug/kv", params={"audit": "1"}) as response:
            audited = response.status == 200 and (await response.json())["audited"]
    growth, noise = _slope(rss)
    broken = []
    if seen["started"] != seen["answered"] + seen["cut"] or seen["failed"]:
        broken.append(f"{seen['started']} requests started, {seen['answered']} answered, {seen['cut']} cut")
    if metrics["kv_slots_allocated"] or metrics["requests_running"] or metrics["requests_waiting"]:
        broken.append(f"not given back: {metrics}")
    if not audited:
        broken.append("the audit failed")
    if not metrics["preemptions_total"]:
        broken.append("nothing was preempted, so preemption was not tested")
    if growth > max(3 * noise, 2.0):
        broken.append(f"RSS grows by {growth:.2f} MiB a minute (noise {noise:.2f})")
    return {
        "seconds": seconds,
        "requests": dict(seen),
        "preemptions": metrics["preemptions_total"],
        "generation_tokens": metrics["generation_tokens_total"],
        "allocated_at_end": metrics["kv_slots_allocated"],
        "rss_mib": [round(value / 2**20, 1) for _, value in rss[:: max(len(rss) // 20, 1)]],
        "rss_slope_mib_per_minute": round(growth, 3),
        "rss_slope_noise": round(noise, 3),
        "broken": broken,
    }


async def _worker(session: aiohttp.ClientSession, r: random.Random, until: float, seen: Counter[str]) -> None:
    while time.monotonic() < until:
        words = " ".join(r.choices(("block", "table", "page", "cache", "token", "swap", "beam"), k=r.randint(2, 60)))
        n = r.choice((1, 1, 1, 2, 4))
        body: dict[str, Any] = {
            "max_tokens": r.randint(4, 120),
            "n": n,
            "stream": True,
            "temperature": r.choice((0, 0.8)),
        }
        body["ignore_eos"] = r.random() < 0.5
        if r.random() < 0.6:
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": words}]
        else:
            path, body["prompt"] = "/v1/completions", words
        cut_after = r.randint(1, 6) if r.random() < 0.25 else None
        seen["started"] += 1
        seen["n > 1"] += n > 1
        try:
            async with session.post(path, json=body) as response:
                if response.status != 200:
                    seen["failed"] += 1
                    continue
                chunks, last = 0, b""
                async for line in response.content:
                    chunks += line.startswith(b"data:")
                    last = line.strip() or last
                    if chunks == cut_after:
                        break
                if chunks == cut_after:
                    response.close()
                    seen["cut"] += 1
                else:
                    seen["answered" if last == b"data: [DONE]" else "failed"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            seen["failed"] += 1
            seen[type(error).__name__] += 1


async def _watch(pid: int, rss: list[tuple[float, int]], until: float) -> None:
    page = 4096
    while time.monotonic() < until:
        rss.append((time.monotonic(), int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page))
        await asyncio.sleep(1.0)


async def _idle(session: aiohttp.ClientSession) -> dict[str, float]:
    """Metrics once nothing runs any more, or after 60 s."""
    wanted = (
        "kv_slots_allocated",
        "requests_running",
        "requests_waiting",
        "preemptions_total",
        "generation_tokens_total",
    )
    values: dict[str, float] = {}
    for _ in range(120):
        async with session.get("/metrics") as response:
            text = await response.text()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#" and "{" not in line)
        found = {name.removeprefix("pagedbench:"): float(value) for name, value in samples}
        values = {name: found[name] for name in wanted}
        if not (values["kv_slots_allocated"] or values["requests_running"] or values["requests_waiting"]):
            break
        await asyncio.sleep(0.5)
    return values


def _slope(rss: list[tuple[float, int]]) -> tuple[float, float]:
    """Growth over the second half [MiB/min], and its standard error.

    The size moves in steps that last for minutes, so neighbouring samples tell the same: the error is that of a line
    through the means of ``BATCHES`` equal stretches.
    """
    half = np.array(rss[len(rss) // 2 :], dtype=float)
    if len(half) < 4 * BATCHES:
        return 0.0, 0.0
    means = np.array([batch.mean(axis=0) for batch in np.array_split(half, BATCHES)])
    t, y = (means[:, 0] - means[0, 0]) / 60, means[:, 1] / 2**20
    (slope, _), covariance = np.polyfit(t, y, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments, options = parser.parse_known_args()
    found = asyncio.run(soak(arguments.seconds, options, arguments.seed))
    print(json.dumps(found, indent=1))
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
