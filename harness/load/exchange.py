"""One HTTP exchange as it happened: bytes and the times at which they came, nothing interpreted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.results.schema import ErrorClass


@dataclass(slots=True, eq=False)
class Exchange:
    """What the wire did for one request.  Times are ``time.monotonic_ns``.

    ``stamps[i]`` is the moment read ``i`` arrived, taken before any decoding; ``ends[i]`` is how much of ``body``
    had come by then (0 after a read of headers only).  ``failure`` is what the transport itself saw go wrong.
    """

    index: int
    t_ready: int
    t_sched: int | None = None
    t_send: int | None = None
    t_done: int | None = None
    status: int | None = None
    content_type: str = ""
    stamps: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    body: bytes = b""
    reused_connection: bool = False
    failure: tuple[ErrorClass, str] | None = None

    def fail(self, error_class: ErrorClass, sentence: str) -> None:
        """Note why the exchange ended; the first reason stands."""
        if self.failure is None:
            self.failure = (error_class, sentence)
