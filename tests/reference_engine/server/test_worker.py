"""The thread that computes: order, results, exceptions, and that the server loads and runs its model on one thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from reference_engine.server import launch
from reference_engine.server.options import ServerOptions
from reference_engine.server.worker import EngineThread


def test_jobs_run_in_order_on_one_thread_that_is_not_the_callers() -> None:
    worker = EngineThread()
    seen: list[tuple[int, int]] = []
    futures: list[Future[None]] = [
        worker.start(lambda number=number: seen.append((number, threading.get_ident()))) for number in range(50)
    ]
    for future in futures:
        future.result(timeout=10)
    assert [number for number, _ in seen] == list(range(50))
    assert len({ident for _, ident in seen} | {threading.get_ident()}) == 2
    worker.join(timeout=10)
    assert not worker._thread.is_alive()


def test_results_and_exceptions_come_back_and_the_thread_goes_on() -> None:
    worker = EngineThread()

    def fail() -> None:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        worker.call(fail)
    assert worker.call(lambda: 7) == 7
    worker.join(timeout=10)


def test_the_model_is_built_on_the_thread_that_will_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built_on: list[int] = []
    given: list[EngineThread] = []

    def build(options: ServerOptions) -> str:
        built_on.append(threading.get_ident())
        return "serving"

    def serve(serving: str, thread: EngineThread, listener: object, options: ServerOptions) -> int:
        assert serving == "serving"
        given.append(thread)
        return 0

    monkeypatch.setattr(launch, "build", build)
    monkeypatch.setattr(launch, "serve", serve)
    monkeypatch.setattr(launch, "_runner", lambda: lambda main: main())
    assert launch.run_server(ServerOptions(port=0)) == 0
    assert built_on == [given[0].call(threading.get_ident)] != [threading.get_ident()]
    given[0].join(timeout=10)
