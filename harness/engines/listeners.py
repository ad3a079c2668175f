"""Whose server answers at a port: the engine that was started there, or one that was faster.

A free port is looked for before an engine starts and bound by the engine seconds later; in between another program can
take it, answer in the engine's place and be measured as it.
"""

from __future__ import annotations

import contextlib

import psutil


def stranger_on(port: int, started_s: float) -> psutil.Process | None:
    """The process that listens on TCP ``port`` of this machine and is older than ``started_s`` (seconds since the epoch).

    None if every listener is younger, as an engine's children and the proxy of its container are, or if the system does
    not say whose the sockets are.
    """
    with contextlib.suppress(psutil.Error, OSError):
        for socket in psutil.net_connections("tcp"):
            if socket.status == psutil.CONN_LISTEN and socket.laddr.port == port and socket.pid is not None:
                holder = psutil.Process(socket.pid)
                if holder.create_time() < started_s:
                    return holder
    return None
