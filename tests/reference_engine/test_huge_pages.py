"""Huge pages are a request: memory keeps its content, and where the kernel refuses nothing happens."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch

from reference_engine import huge_pages


def test_content_survives() -> None:
    tensor = torch.arange(6_000_000)
    huge_pages.prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
    huge_pages.collapse_into_huge_pages()
    assert torch.equal(tensor, torch.arange(6_000_000))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_resident_memory_is_found_and_holes_are_not() -> None:
    # Neighbouring regions of equal flags merge in the kernel's map; an advice of its own keeps each apart.
    resident = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    resident.madvise(mmap.MADV_DONTFORK)
    resident.write(b"\x01" * len(resident))
    untouched = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # no page of it exists yet
    untouched.madvise(mmap.MADV_DONTDUMP)
    regions = list(huge_pages._large_resident_regions())

    def is_inside(area: mmap.mmap) -> bool:
        middle = ctypes.addressof(ctypes.c_char.from_buffer(area)) + len(area) // 2
        return any(begin <= middle < end for begin, end in regions)

    assert is_inside(resident)
    assert not is_inside(untouched)


def test_ranges_without_a_whole_huge_page_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: object) -> object:
        raise AssertionError("no call was due")

    monkeypatch.setattr(huge_pages.ctypes, "CDLL", refuse)
    huge_pages.prefer_huge_pages(3 << 20, (1 << 20) - 1)
    huge_pages.prefer_huge_pages(1 << 20, 2 << 20)


def test_elsewhere_than_linux_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages.sys, "platform", "darwin")
    monkeypatch.setattr(huge_pages, "_large_resident_regions", lambda: iter([(0, 64 << 20)]))
    assert huge_pages.collapse_into_huge_pages() == 0
