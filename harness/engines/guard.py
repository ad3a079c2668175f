"""Kills an engine's process group when the harness is gone, whatever ended it (kill -9 included).

::

    python -I -S guard.py PGID PARENT_PID  < pipe held by the harness

The harness writes one byte when it has stopped the engine itself.  End of file, or another parent than PARENT_PID,
means that it died: the group gets TERM and, five seconds later, KILL.  Only the standard library, so that it starts in
milliseconds; in a session of its own, so that Ctrl-C on the terminal does not reach it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

GRACE_S = 5.0
POLL_S = 1.0


def group_exists(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_group(pgid: int, grace_s: float = GRACE_S) -> None:
    """TERM to the whole group, KILL after ``grace_s`` to what is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pgid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while group_exists(pgid) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(pgid, signal.SIGKILL)


def main() -> None:
    pgid, parent = int(sys.argv[1]), int(sys.argv[2])
    while os.getppid() == parent:
        # The pipe alone would do, were it not for workers that the harness forked: they hold its other end, too.
        ready, _, _ = select.select([0], [], [], POLL_S)
        if ready:
            if os.read(0, 1):
                return
            break
    end_group(pgid)


if __name__ == "__main__":
    main()
