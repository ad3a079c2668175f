"""One HTTP exchange as it happened: bytes and the times at which they came, nothing interpreted."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.results.schema import ErrorClass

# Who read the clock when bytes arrived: the kernel as it took in the packet, or this process before it did anything
# else with them.
StampSource = Literal["kernel", "user"]


def _times() -> array[int]:
    return array("q")


@dataclass(slots=True, eq=False)
class Exchange:
    """What the wire did for one request.  Times are ``time.monotonic_ns``.

    ``stamps[i]`` is the moment read ``i`` arrived, by ``stamp_source``; ``ends[i]`` is how much of ``body`` had come by
    then (0 after a read of headers only).  ``late_reads`` are those whose last byte had waited in the kernel for longer
    than ``LATE_READ_NS``.  ``failure`` is what the transport itself saw go wrong.
    """

    index: int
    t_ready: int
    t_sched: int | None = None
    t_send: int | None = None
    t_done: int | None = None
    status: int | None = None
    content_type: str = ""
    content_encoding: str = ""
    stamps: array[int] = field(default_factory=_times)
    ends: array[int] = field(default_factory=_times)
    late_reads: set[int] = field(default_factory=set)
    received: bytearray = field(default_factory=bytearray)  # the body while it comes, as it came
    body: bytes = b""  # the whole of it, any content coding undone, once the exchange is over
    stamp_source: StampSource = "user"
    reused_connection: bool = False
    failure: tuple[ErrorClass, str] | None = None

    def fail(self, error_class: ErrorClass, sentence: str) -> None:
        """Note why the exchange ended; the first reason stands."""
        if self.failure is None:
            self.failure = (error_class, sentence)

    @property
    def has_content(self) -> bool:
        """Whether a byte of the body has come."""
        return bool(self.ends) and self.ends[-1] > 0
