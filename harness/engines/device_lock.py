"""One engine at a time on this machine's devices: two that start together size each other's KV memory.

Two vLLM servers started at once took 1.84 GiB of KV instead of 4.72 (vllm-project/vllm#55827).  The lock is a file that the
system lets go of however its holder ends.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.engines.errors import LaunchError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing to lock with
    fcntl = None  # type: ignore[assignment]


def lock_path() -> Path:
    return Path(tempfile.gettempdir()) / f"pagedbench-device-{os.getuid() if hasattr(os, 'getuid') else 0}.lock"


@contextlib.contextmanager
def device_held(engine: str, *, share: bool) -> Iterator[None]:
    """Hold the devices for ``engine``.  Raises LaunchError when another PagedBench process holds them."""
    if share or fcntl is None:
        yield
        return
    descriptor = os.open(lock_path(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "unknown"
            raise LaunchError(
                f"engine {engine!r} was not started: another one that PagedBench launched is on the device ({holder}); "
                "wait for its end, or set share_device: true"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{engine}, harness pid {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)
