"""The machine that a run was made on, for its record."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from harness.results.schema import MachineInfo

# What the client's own times depend on, and the engine that ships with it.
PACKAGES = ("pagedbench", "aiohttp", "uvloop", "orjson", "numpy", "pyarrow", "torch", "triton")


def describe_machine(gpus: list[dict[str, Any]]) -> MachineInfo:
    """This machine.  ``cores`` are those that this process may use."""
    return MachineInfo(
        hostname=socket.gethostname(),
        os=platform.platform(),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=int(psutil.virtual_memory().total),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name)) is not None},
        gpus=gpus,
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model"):
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
