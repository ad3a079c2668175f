"""What the server can be told, with one help text per option for every command line that offers it.  No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from reference_engine.config import (
    BLOCK_SIZE_RANGE,
    DEFAULT_WATERMARK,
    ConfigError,
    KVPolicy,
    KVType,
    Preemption,
    PrefixIndex,
    QueueOrder,
)

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "naive", "gather", "triton"]

API_KEY_VARIABLE = "PAGEDBENCH_API_KEY"

HELP: dict[str, str] = {
    "model": "Built-in name (smollm2, sentinel), Hugging Face directory, .gguf file, or hub id.",
    "served_model_name": "Name that requests and /v1/models use. Default: the model's.",
    "device": "Device that computes: auto takes CUDA where there is one.",
    "dtype": "Type of weights and KV: auto is float32 on a CPU, bfloat16 on CUDA.",
    "kv_dtype": "Type of the KV pool: auto is --dtype; fp8_e4m3 has a scale a head, int8 a scale a token and head.",
    "kv_memory": "Memory of the KV pool, bytes or with a unit (512MiB, 2GiB). Default: 1GiB, on CUDA 80% of the free.",
    "num_blocks": "Size of the KV pool in blocks; instead of --kv-memory.",
    "block_size": "Token slots in a KV block, 1 to 256 [tokens].",
    "policy": "KV policy: paged; contiguous, static and orca-max reserve max-model-len for every sequence, orca-pow2 and "
    "orca-oracle what it asks for.",
    "attention": "Attention backend: auto takes gather on a CPU, triton on CUDA.",
    "max_model_len": "Longest prompt + output of one sequence [tokens]. Default: the model's, at most the pool.",
    "max_num_seqs": "Sequences that may run at once [count]. Default: 64, or what --simulate's profile says.",
    "max_num_batched_tokens": "Token budget of one engine step, prefill chunks and decodes together [tokens]. "
    "Default: 256 on a CPU, 2048 on CUDA.",
    "prefix_cache": "Share KV blocks between equal prefixes.",
    "prefix_index": "How cached prefixes are found: chained block hashes, or a radix tree.",
    "preemption": "What a sequence that loses its blocks does: compute its tokens again, get them back from host memory, "
    "or whichever costs less (measured at the start).",
    "swap_space": "Host memory for --preemption swap and auto, bytes or with a unit. Default: as the pool, at most 4GiB.",
    "watermark": "Share of the pool kept free when a waiting sequence is admitted, so that running ones can grow [0..1).",
    "order": "Order of the queue: first come first served, or by the request's priority (lower is sooner).",
    "max_waiting": "Sequences that may wait; one more is refused with 429 [count].",
    "max_body_bytes": "Largest request body; a larger one is refused with 413, in bytes or with a unit (16MiB).",
    "host": "Address to listen on.",
    "port": "TCP port; 0 takes a free one and prints it.",
    "api_key": f"Key that clients must send as a bearer token. Default: ${API_KEY_VARIABLE}, else none.",
    "debug_endpoints": "Serve /debug/kv (block tables, reference counts, memory ledger) and /debug/faults.",
    "log_plans": "File that gets every step's plan, one JSON line a step.",
    "audit_every": "Check every invariant of the KV pool after each N-th step [steps]; 0 = never.",
    "cuda_graphs": "Replay decode steps from CUDA graphs (with --attention triton on CUDA).",
    "overlap": "Launch the next decode step before the last one's tokens are booked (CUDA); the texts are the same.",
    "deterministic": "The same request gives the same bits alone and in any batch; slower (--attention triton on CUDA).",
    "inject_fault": "Break this engine on purpose: ID[:key=value,...] of the fault catalogue; repeatable.",
    "benign": "Vary this engine without breaking anything: ID[:key=value,...]; repeatable.",
    "simulate": "Serve without a model, in the times of this profile (a100-opt-13b, h100-llama-3.1-8b, or a .json file).",
    "threads": "CPU threads of the model's arithmetic [count]. Default: torch's choice.",
}


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """All of ``HELP``.  Sizes are text as typed (``parse_size``); None means the default that the help text names."""

    model: str = "smollm2"
    served_model_name: str | None = None
    device: Device = "auto"
    dtype: DType = "auto"
    kv_dtype: KVType = "auto"
    kv_memory: str | None = None
    num_blocks: int | None = None
    block_size: int = 16
    policy: KVPolicy = "paged"
    attention: Attention = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    prefix_cache: bool = True
    prefix_index: PrefixIndex = "hash"
    preemption: Preemption = "recompute"
    swap_space: str | None = None
    watermark: float = DEFAULT_WATERMARK
    order: QueueOrder = "fcfs"
    max_waiting: int = 1024
    max_body_bytes: str = "16MiB"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    debug_endpoints: bool = False
    log_plans: str | None = None
    audit_every: int = 0
    cuda_graphs: bool = True
    overlap: bool = True
    deterministic: bool = False
    inject_fault: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()
    simulate: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("device", Device),
            ("dtype", DType),
            ("attention", Attention),
            ("policy", KVPolicy),
            ("order", QueueOrder),
            ("kv_dtype", KVType),
            ("preemption", Preemption),
            ("prefix_index", PrefixIndex),
        ):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(self, name)!r} is not known; "
                    f"choose one of {', '.join(get_args(allowed))}"
                )
        if self.kv_memory is not None and self.num_blocks is not None:
            raise ConfigError("--kv-memory and --num-blocks both set the size of the KV pool; give one of them")
        if self.swap_space is not None and self.preemption == "recompute":
            raise ConfigError("--swap-space is for --preemption swap or auto; add one of them or leave it out")
        if not 0 <= self.watermark < 1:
            raise ConfigError(f"--watermark {self.watermark} is outside [0, 1); choose a share of the pool, like 0.05")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port} is outside 0..65535; choose one inside (0 takes a free one)")
        low, high = BLOCK_SIZE_RANGE
        if not low <= self.block_size <= high:
            raise ConfigError(f"--block-size {self.block_size} is outside {low}..{high}; choose one inside")
        for name, low in (
            ("num_blocks", 1),
            ("max_model_len", 2),
            ("max_num_seqs", 1),
            ("max_num_batched_tokens", 1),
            ("threads", 1),
            ("audit_every", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {low}, not {value}")
        for name in ("kv_memory", "swap_space", "max_body_bytes"):
            value = getattr(self, name)
            if value is not None:
                parse_size(value, name)


_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("", 1024), ("IB", 1024), ("B", 1000))
}


def parse_size(text: str, option: str) -> int:
    """Bytes of ``text``: ``4096``, ``512MiB``, ``2GB``, ``1.5G``.  Raises ConfigError naming ``option``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        flag = option.replace("_", "-")
        raise ConfigError(f"--{flag} {text!r} is not a size; write bytes or a number with a unit, like 512MiB or 2GiB")
    return int(float(match[1]) * unit)
