"""Telemetry: what is not there is absent with a reason, what is there is sampled off the load loop."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
import pytest

from harness.telemetry.machine import describe_machine
from harness.telemetry.nvml import NvmlSampler
from harness.telemetry.periodic import Periodic
from harness.telemetry.process import ProcessSampler
from harness.telemetry.scrape import Scraper
from harness.telemetry.watch import Watch


class Rows:
    """Keeps appended rows."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Mapping[str, Any]]] = {"metrics": [], "system": []}
        self.threads: set[int] = set()

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.tables[table] += rows
        self.threads.add(threading.get_ident())


def wait_for(condition: Any, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_periodic_samples_at_once_regularly_and_at_the_end() -> None:
    calls: list[float] = []
    thread = Periodic("test", 0.05, lambda: calls.append(time.monotonic()))
    thread.start()
    wait_for(lambda: len(calls) >= 4)
    thread.stop()
    after = len(calls)
    assert after >= 5  # and the last one when it stopped
    time.sleep(0.12)
    assert len(calls) == after


def test_periodic_stops_at_an_error_and_keeps_it() -> None:
    def broken() -> None:
        raise OSError("disk full")

    thread = Periodic("test", 0.01, broken)
    thread.start()
    wait_for(lambda: thread.error is not None)
    thread.stop()
    assert str(thread.error) == "disk full"


def test_scraping_names_values_in_our_vocabulary(server_thread: Any) -> None:
    server_thread.running = 3
    scraper = Scraper(server_thread.url)
    rows = {row["name"]: row["value"] for row in scraper.sample()}
    assert rows["requests_running"] == 3.0
    assert rows["kv_slots_reserved"] == 1024.0
    assert "kv_usage" not in rows  # not exposed: absent
    assert scraper.latest["kv_slots_live"] == 36.0
    connections = server_thread.connections
    for _ in range(5):
        assert scraper.sample()
    assert server_thread.connections == connections
    scraper.close()


@pytest.mark.parametrize("text", ["", "<html>not metrics</html>", "unknown_metric 3\n"])
def test_an_exposition_without_our_words_gives_no_row(server_thread: Any, text: str) -> None:
    server_thread.metrics_text = lambda: text
    scraper = Scraper(server_thread.url)
    assert list(scraper.sample()) == []
    scraper.close()


def test_a_failed_scrape_gives_no_row_and_a_reason(server_thread: Any) -> None:
    scraper = Scraper(server_thread.url, path="/nothing-here")
    assert list(scraper.sample()) == []
    assert (scraper.failures, scraper.samples) == (1, 0)
    assert scraper.problem == "/nothing-here: HTTP 404"
    nobody = Scraper("http://127.0.0.1:9")
    assert list(nobody.sample()) == []
    assert nobody.problem is not None
    # A broken line must not become a number either.
    server_thread.metrics_text = lambda: "pagedbench:kv_slots_live forty\n"
    broken = Scraper(server_thread.url)
    assert list(broken.sample()) == []
    assert broken.failures == 1
    scraper.close()
    broken.close()


def test_processes_that_come_and_go() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(0.001)"])
    try:
        sampler = ProcessSampler(lambda: [os.getpid(), child.pid, 2**22 + 1])
        first = list(sampler.sample())
        names = {(row["label"], row["name"]) for row in first}
        assert (str(child.pid), "rss_bytes") in names
        assert not any(row["name"] == "cpu_percent" for row in first)  # nothing to compare with yet
        assert {row["label"] for row in first} == {str(os.getpid()), str(child.pid)}
        own = next(row for row in first if row["name"] == "rss_bytes" and row["label"] == str(os.getpid()))
        assert own["value"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
        used = time.process_time()
        while time.process_time() < used + 0.1:  # of the CPU, not of the clock: a busy machine may give us none
            pass
        second = list(sampler.sample())
        cpu = {row["label"]: row["value"] for row in second if row["name"] == "cpu_percent"}
        assert cpu[str(os.getpid())] > 0
    finally:
        child.kill()
        child.wait()
    assert str(child.pid) not in {row["label"] for row in sampler.sample()}


def test_without_a_device_there_is_a_reason_and_no_row() -> None:
    sampler = NvmlSampler()
    if sampler.devices:
        pytest.skip("this machine has a device")
    assert sampler.reason
    assert list(sampler.sample()) == []
    sampler.close()


@pytest.mark.gpu
def test_a_device_tells_its_memory() -> None:
    sampler = NvmlSampler()
    assert sampler.reason is None
    used = [row for row in sampler.sample() if row["name"] == "device_used_bytes"]
    assert len(used) == len(sampler.devices)
    for row, device in zip(used, sampler.devices, strict=True):
        assert 0 < row["value"] < device["memory_bytes"]
    sampler.close()


def test_watch_tags_rows_and_runs_off_the_calling_thread(server_thread: Any) -> None:
    rows = Rows()
    with Watch("cell", rows.append, scrapers=[Scraper(server_thread.url)], pids=lambda: [os.getpid()]) as watch:
        wait_for(lambda: len({row["t"] for row in rows.tables["metrics"]}) >= 3)
    assert watch.error is None
    assert all(row["cell_id"] == "cell" for table in rows.tables.values() for row in table)
    assert threading.get_ident() not in rows.threads
    assert {row["source"] for row in rows.tables["system"]} == {"client", "process", "machine"}
    times = [row["t"] for row in rows.tables["metrics"] if row["name"] == "requests_running"]
    assert times == sorted(times)


def test_a_gauge_is_read_during_the_load_not_after_it(server_thread: Any) -> None:
    """Peak KV use equals the script's, although the pool is empty again when the watch ends."""
    rows = Rows()
    with Watch("cell", rows.append, scrapers=[Scraper(server_thread.url)]):
        server_thread.running = 40
        wait_for(lambda: any(row["name"] == "kv_slots_live" and row["value"] == 480 for row in rows.tables["metrics"]))
        server_thread.running = 0
    assert max(row["value"] for row in rows.tables["metrics"] if row["name"] == "kv_slots_live") == 480


def test_a_full_disk_is_reported(server_thread: Any) -> None:
    def full(table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        raise OSError("no space left on device")

    with Watch("cell", full, scrapers=[Scraper(server_thread.url)]) as watch:
        wait_for(lambda: watch.error is not None)
    assert "no space left" in str(watch.error)


def test_the_machine_is_described() -> None:
    machine = describe_machine([])
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert machine.cpu
    assert "aiohttp" in machine.packages
