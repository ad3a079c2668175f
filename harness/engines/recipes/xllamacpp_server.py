"""Run llama.cpp's HTTP server from the ``xllamacpp`` wheel: the recipe ``xllamacpp`` starts this file with that
environment's Python, so it imports nothing of ours and nothing but the standard library and ``xllamacpp``."""

from __future__ import annotations

import argparse
import signal
import sys
import threading


def build_parser() -> argparse.ArgumentParser:
    """Option names follow ``llama-server``, so that both recipes read alike."""
    parser = argparse.ArgumentParser(prog="xllamacpp_server", description="llama.cpp's server from a wheel")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--alias", help="model id that the API shows")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, default=0, help="KV slots over all sequences [tokens]")
    parser.add_argument("--parallel", type=int, default=1, help="sequences at once")
    parser.add_argument("--threads", type=int, default=-1, help="CPU threads; -1 = llama.cpp's choice")
    parser.add_argument("--kv-unified", action="store_true", help="one KV pool shared by all sequences")
    parser.add_argument("--cache-type-k", help="element type of K, such as f16 or f32")
    parser.add_argument("--cache-type-v", help="element type of V, such as f16 or f32")
    parser.add_argument("--batch-size", type=int, help="logical batch [tokens]")
    parser.add_argument("--ubatch-size", type=int, help="physical batch [tokens]")
    parser.add_argument("--version", action="store_true", help="print the version of the wheel and exit")
    return parser


def main() -> None:
    options = build_parser().parse_args()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.kv_unified = options.kv_unified
    params.endpoint_metrics = True
    params.endpoint_slots = True
    if options.alias:
        params.model_alias = {options.alias}
    if options.threads > 0:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    if options.batch_size:
        params.n_batch = options.batch_size
    if options.ubatch_size:
        params.n_ubatch = options.ubatch_size
    for name in ("cache_type_k", "cache_type_v"):
        if value := getattr(options, name):
            kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{value.upper()}", None)
            if kind is None:
                sys.exit(f"--{name.replace('_', '-')} {value!r} is no type that llama.cpp knows; try f16 or f32")
            setattr(params, name, kind)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    stop.wait()


if __name__ == "__main__":
    main()
