"""Start, serve, stop: the life of the server process."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

from aiohttp import web

from reference_engine.config import ConfigError
from reference_engine.server.app import create_app
from reference_engine.server.build import Serving, build
from reference_engine.server.errors import ApiError
from reference_engine.server.loop import EngineLoop
from reference_engine.server.options import API_KEY_VARIABLE, ServerOptions, parse_size
from reference_engine.server.worker import EngineThread

# How long calls in flight may go on after SIGINT or SIGTERM, in seconds; a second signal ends them at once.
DRAIN_SECONDS = 3.0


def run_server(options: ServerOptions) -> int:
    """Serve until told to stop; the process's exit status.  Raises ConfigError or ModelLoadError before it serves.

    Prints ``listening on http://HOST:PORT`` once it is ready to answer.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    listener = bind(options.host, options.port)
    with listener:
        thread = EngineThread()
        if not (options.inject_fault or options.benign):
            serving = thread.call(lambda: build(options))
            return _runner()(lambda: serve(serving, thread, listener, options))
        from reference_engine.faults.lab import Injection

        injection = Injection.parse(options.inject_fault, options.benign)
        logging.getLogger(__name__).warning("faults injected: %s", ", ".join(options.inject_fault + options.benign))
        changed = injection.options(options)
        serving = thread.call(lambda: injection.build(changed))
        return _runner()(lambda: serve(serving, thread, listener, changed, injection.report))


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: a busy port is found before a model is loaded.  Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use; stop the other server or choose another --port"
            ) from None
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --host or --port"
        ) from None
    return listener


async def serve(
    serving: Serving,
    thread: EngineThread,
    listener: socket.socket,
    options: ServerOptions,
    faults: Callable[[], list[dict[str, object]]] = list,
) -> int:
    """Answer on ``listener`` until a signal or a breakdown of the engine; 0, or 1 after a breakdown.

    ``faults``: what GET /debug/faults tells.
    """
    stopping = asyncio.Event()
    at_once = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (at_once if stopping.is_set() else stopping).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    engine_loop = EngineLoop(serving.engine, thread, on_failure=stopping.set)
    app = create_app(
        serving.model,
        engine_loop,
        serving.tokens,
        max_body_bytes=parse_size(options.max_body_bytes, "max_body_bytes"),
        api_key=options.api_key or os.environ.get(API_KEY_VARIABLE) or None,
        debug_endpoints=options.debug_endpoints,
        faults=faults,
    )
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.SockSite(runner, listener, backlog=1024)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        engine_loop.stop()
        raise ConfigError(f"cannot listen ({error.strerror}); choose another --port") from None
    host, port = listener.getsockname()[:2]
    print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    await stopping.wait()
    await site.stop()
    await _drain(engine_loop, at_once)
    engine_loop.fail_all(ApiError("the server is shutting down", status=503))
    await runner.cleanup()
    engine_loop.stop()
    return 0 if engine_loop.failure is None else 1


async def _drain(engine_loop: EngineLoop, at_once: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DRAIN_SECONDS
    while engine_loop.num_open and loop.time() < deadline and not at_once.is_set() and engine_loop.failure is None:
        await asyncio.sleep(0.02)


def _runner() -> Callable[[Callable[[], object]], int]:
    """``asyncio.run`` on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return lambda main: asyncio.run(main())  # type: ignore[arg-type]
    return lambda main: uvloop.run(main())  # type: ignore[arg-type]
