"""Huge pages are a request: memory keeps its content, and where the kernel refuses nothing happens."""

from __future__ import annotations

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
    resident = torch.ones(16 << 20, dtype=torch.uint8)
    untouched = torch.empty(256 << 20, dtype=torch.uint8)  # no page of it exists yet
    regions = list(huge_pages._large_resident_regions())

    def is_inside(tensor: torch.Tensor) -> bool:
        middle = tensor.data_ptr() + tensor.nbytes // 2
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
