"""Clients that go away or do not read: their work stops, their blocks come back, the others notice nothing."""

from __future__ import annotations

import json
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

ENDLESS = {"max_tokens": 480, "ignore_eos": True, "temperature": 1.0}


@pytest.fixture
def rng() -> random.Random:
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def send(port: int, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """A connection on which a call was sent and nothing was read."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(head + data)
    return connection


def wait_for(condition: Any, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
def test_closing_a_call_frees_its_blocks(start_server: Any, stream: bool, record_property: Any) -> None:
    server = start_server(step_seconds=0.02)
    connection = send(server.port, {"prompt": "hello", "stream": stream, **ENDLESS})
    wait_for(lambda: server.metrics()["kv_slots_allocated"] > 0)
    connection.close()
    seconds = server.seconds_until_idle(timeout=60)
    record_property("seconds_until_blocks_were_free", seconds)
    print(f"blocks free after {seconds:.3f} s")
    assert server.engine.times.finished["abort"] == 1


def test_a_killed_client_frees_its_blocks(start_server: Any, record_property: Any) -> None:
    server = start_server(step_seconds=0.02)
    body = json.dumps({"prompt": ["one", "two"], "stream": True, "n": 3, **ENDLESS})
    script = (
        "import sys, urllib.request\n"
        f"r = urllib.request.urlopen(urllib.request.Request('{server.url}/v1/completions', data={body.encode()!r}))\n"
        "print(r.readline(), flush=True)\n"
        "r.read()\n"
    )
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert client.stdout is not None
    client.stdout.readline()
    wait_for(lambda: server.metrics()["requests_running"] == 6)
    client.kill()
    seconds = server.seconds_until_idle(timeout=60)
    client.wait()
    client.stdout.close()
    record_property("seconds_until_blocks_were_free", seconds)
    print(f"blocks free after {seconds:.3f} s")


def test_a_waiting_call_can_go_away(start_server: Any) -> None:
    server = start_server(step_seconds=0.02, max_num_seqs=1)
    first = send(server.port, {"prompt": "first", "stream": True, **ENDLESS})
    wait_for(lambda: server.metrics()["requests_running"] == 1)
    second = send(server.port, {"prompt": "second", **ENDLESS})
    wait_for(lambda: server.metrics()["requests_waiting"] == 1)
    second.close()
    wait_for(lambda: server.metrics()["requests_waiting"] == 0)
    assert server.metrics()["requests_running"] == 1
    first.close()
    server.seconds_until_idle()


def test_200_random_aborts_leave_nothing(start_server: Any, rng: random.Random) -> None:
    server = start_server(
        num_blocks=96, block_size=4, max_model_len=256, max_num_seqs=8, max_num_batched_tokens=48, step_seconds=0.001
    )
    survivors: list[dict[str, Any]] = []
    shared = "a prefix that many share, "

    def abort_some(count: int, seed: int) -> None:
        local = random.Random(seed)
        for _ in range(count):
            prompt = shared * local.randint(0, 2) + "x" * local.randint(1, 40)
            body = {
                "prompt": [prompt, prompt[:5]] if local.random() < 0.2 else prompt,
                "stream": local.random() < 0.6,
                "n": local.choice([1, 1, 1, 2, 3]),
                "max_tokens": local.randint(1, 100),
                "ignore_eos": True,
                "prompt_logprobs": local.choice([None, None, 0]),
            }
            connection = send(server.port, body)
            time.sleep(local.choice([0, 0, 0.002, 0.01, 0.05]))
            if local.random() < 0.3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close with RST
            connection.close()

    def finish_some(count: int) -> None:
        for _ in range(count):
            answer = server.complete(shared + "and end", max_tokens=10, ignore_eos=True)
            survivors.append(answer)

    threads = [threading.Thread(target=abort_some, args=(50, rng.getrandbits(32))) for _ in range(4)]
    threads.append(threading.Thread(target=finish_some, args=(15,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.seconds_until_idle()
    status, dump, _ = server.call("/debug/kv?audit=1")
    assert status == 200
    assert dump["audited"] is True
    assert dump["sequences"] == []
    assert dump["ledger"]["token_states"] == dump["ledger"]["internal"] == 0
    assert dump["ledger"]["cached"] + dump["ledger"]["free"] == 96 * 4
    assert len({answer["choices"][0]["text"] for answer in survivors}) == 1
    assert server.failures == []
    assert server.call("/health")[0] == 200


def test_a_client_that_does_not_read_stops_nobody_else(start_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reference_engine.server.loop.MAX_BACKLOG", 200)
    server = start_server(num_blocks=4096, max_model_len=4096, max_num_seqs=80)
    body = {"prompt": "x", "stream": True, "n": 60, "max_tokens": 4000, "ignore_eos": True, "logprobs": 20}
    connection = send(server.port, body)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wait_for(lambda: server.metrics()["requests_running"] > 0)
    assert server.complete("y", max_tokens=10, ignore_eos=True)["usage"]["completion_tokens"] == 10
    server.seconds_until_idle(timeout=60)  # it was given up, not waited for
    assert server.metrics()["generation_tokens_total"] < 60 * 4000
    connection.close()
