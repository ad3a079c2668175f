"""A stand-in engine for tests of launching: a tiny HTTP server in a process that behaves as its options say."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--die", type=int, help="exit with this status after a line on stderr")
    parser.add_argument("--silent", action="store_true", help="never listen")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGINT and SIGTERM")
    parser.add_argument("--child", action="store_true", help="start a child process that ignores SIGINT and SIGTERM")
    parser.add_argument("--runaway", action="store_true", help="the child leaves the process group")
    parser.add_argument("--model")
    parser.add_argument("--kv-memory")
    parser.add_argument("--show")
    options = parser.parse_args()

    if options.die is not None:
        print("the weights are made of cheese", file=sys.stderr)
        sys.exit(options.die)
    if options.child:
        code = "import signal, time\nfor n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
        child = subprocess.Popen(
            [sys.executable, "-c", code + "print('up', flush=True)\ntime.sleep(300)"],
            stdout=subprocess.PIPE,
            start_new_session=options.runaway,
        )
        assert child.stdout is not None
        child.stdout.readline()
        print(f"child {child.pid}", flush=True)
    if options.deaf:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGINT, lambda *_: stopped("SIGINT"))
        signal.signal(signal.SIGTERM, lambda *_: stopped("SIGTERM"))
    if options.show:
        print(f"{options.show}={os.environ.get(options.show)}", flush=True)
    if options.silent:
        time.sleep(300)
    Handler.status = options.status
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"listening on http://127.0.0.1:{server.server_address[1]}", flush=True)
    time.sleep(300)


def stopped(by: str) -> None:
    print(f"stopped by {by}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
