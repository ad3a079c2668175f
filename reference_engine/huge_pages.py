"""Weights and KV pool in 2 MiB pages (Linux).

A decode step streams all weights through the cores once.  With 4 KiB pages the page walks of that stream, which under
virtualisation are walks in two dimensions, cost about a tenth of the step.  Linux offers huge pages on request
(``transparent_hugepage`` = ``madvise``, the usual setting); where it does not, everything here does nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_SMALLEST_REGION = 2 * HUGE_PAGE


def prefer_huge_pages(address: int, num_bytes: int) -> None:
    """Ask for huge pages in ``[address, address + num_bytes)``, before it is first touched."""
    _advise(address, address + num_bytes, _MADV_HUGEPAGE)


def collapse_into_huge_pages() -> int:
    """Move this process's large, mostly resident private memory into huge pages; returns the bytes that were offered.

    Weights that a library packed into buffers of its own can only be found through the process's memory map.
    """
    offered = 0
    if sys.platform.startswith("linux"):
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: what was freed should not be moved
        if malloc_trim is not None:
            malloc_trim(ctypes.c_size_t(0))
    for begin, end in _large_resident_regions():
        if _advise(begin, end, _MADV_HUGEPAGE):
            _advise(begin, end, _MADV_COLLAPSE)
            offered += end - begin
    return offered


def _large_resident_regions() -> Iterator[tuple[int, int]]:
    """Private anonymous writable regions of which more than half is resident."""
    try:
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    begin = end = 0
    for line in lines:
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            begin = end = 0
            is_anonymous = len(fields) == 5 or fields[5] == "[heap]"
            if fields[1] == "rw-p" and is_anonymous:
                begin, end = (int(part, 16) for part in fields[0].split("-"))
        elif fields[0] == "Rss:" and end - begin >= _SMALLEST_REGION and int(fields[1]) * 2048 > end - begin:
            yield begin, end


def _advise(begin: int, end: int, advice: int) -> bool:
    """madvise on the whole huge pages inside the range.  False where there are none or the kernel refuses."""
    begin, end = -(-begin // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
    if not sys.platform.startswith("linux") or end <= begin:
        return False
    madvise = ctypes.CDLL(None).madvise
    return int(madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(advice))) == 0
