from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from reports.kernels_page import Axis, render_kernels_page

TIMING = {"median_us": 182.0, "p10_us": 181.5, "p90_us": 183.0, "samples": 30, "calls": 10, "graph": True}
RESULTS: dict[str, Any] = {
    "schema": 1,
    "date": "2026-01-01T00:00:00+00:00",
    "environment": {"device": "Some <GPU>", "torch": "2", "driver": None},
    "seed": 7,
    "ceilings": {"copy_bytes_per_s": 3.0e12, "bf16_matmul_flop_per_s": 7.5e14},
    "check": [{"case": "c", "deterministic": False, "error": 1e-7, "tolerance": 1e-5, "passed": True}],
    "attention": {
        "rows": [
            {
                "case": "decode",
                "kernel": kernel,
                "error": 1e-3,
                "passed": True,
                "timing": TIMING,
                "min_bytes": 5e8,
                "kv_bytes": 5e8,
                "flops": 2e9,
                "bytes_per_s": rate,
                "flop_per_s": rate * 4,
                "share_of_copy": rate / 3.0e12,
                "share_of_matmul": 0.01,
            }
            for kernel, rate in (("triton", 2.9e12), ("sdpa after gather", 0.9e12))
        ]
        + [{"case": "decode", "kernel": "flash-attn", "skipped": "not installed (flash_attn)"}],
        "against_peers": {"cells": {"decode": {"peer": "sdpa", "ratio": 3.1}}, "geometric_mean": 3.1, "worst": 3.1},
    },
}


def test_page_is_one_file_with_the_numbers_and_the_roof() -> None:
    page = render_kernels_page(RESULTS)
    assert not re.search(r"""src\s*=|href\s*=\s*"(?!#|data:,")|@import|url\((?!#)""", page)
    assert "<script" not in page
    assert "Some &lt;GPU&gt;" in page
    assert "96.7 %" in page
    assert "not installed (flash_attn)" in page
    assert page.count("<circle") == 1
    assert "3.10x" in page


def test_page_without_a_gpu_says_what_is_missing() -> None:
    bare = {key: RESULTS[key] for key in ("schema", "date", "environment", "seed", "check")}
    page = render_kernels_page({**bare, "not_measured": ["times: no CUDA device"]})
    assert "<svg" not in page
    assert "times: no CUDA device" in page


def test_points_lie_under_the_roof_they_reach() -> None:
    """A kernel at the copy's full rate lies on the slope, one at half of it under."""
    results = copy.deepcopy(RESULTS)
    row = results["attention"]["rows"][0]
    heights = []
    for rate in (3.0e12, 1.5e12):
        row |= {"bytes_per_s": rate, "flop_per_s": rate * row["flops"] / row["min_bytes"]}
        found = re.search(r'<circle cx="[\d.]+" cy="([\d.]+)"', render_kernels_page(results))
        assert found is not None
        heights.append(float(found[1]))
    assert heights[0] < heights[1]


@pytest.mark.parametrize(("value", "pixel"), [(1.0, 10.0), (10.0, 60.0), (100.0, 110.0)])
def test_axis_is_logarithmic(value: float, pixel: float) -> None:
    axis = Axis(1.0, 100.0, 10.0, 100.0)
    assert axis.at(value) == pytest.approx(pixel)
    assert axis.ticks() == [1.0, 10.0, 100.0]
