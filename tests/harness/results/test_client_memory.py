"""The client's curve of live tokens, stalls, energy and what is left over, against closed forms."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.results.cells import CellData
from harness.results.client_memory import live_curve, stalls
from harness.results.metrics import summarise


def load_log() -> Any:
    spec = importlib.util.spec_from_file_location("metric_logs", Path(__file__).with_name("test_metrics.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["metric_logs"] = module
    spec.loader.exec_module(module)
    return module


logs = load_log()
MS, S, T0 = logs.MS, logs.S, logs.T0


def row(index: int, first_ms: float, token_ms: list[float], done_ms: float, prompt: int, **more: Any) -> dict[str, Any]:
    return {
        "cell_id": "a.cell",
        "request_index": index,
        "t_send": T0,
        "t_ready": T0,
        "t_first": T0 + round(first_ms * MS),
        "t_last": T0 + round(token_ms[-1] * MS),
        "t_done": T0 + round(done_ms * MS),
        "ok": True,
        "prompt_tokens": prompt,
        "planned_prompt_tokens": prompt,
        "output_tokens": len(token_ms),
        "planned_output_tokens": len(token_ms),
        "chunks": len(token_ms),
        "token_source": "usage",
        "warmup": False,
        **more,
    }


def run_of(requests: dict[int, tuple[dict[str, Any], list[float]]], **settings: Any) -> Any:
    log = logs.Log(logs.cell_info("a", concurrency=2))
    for request, times in requests.values():
        log.rows["requests"].append(request)
        for number, t in enumerate(times):
            log.rows["chunks"].append(
                {
                    "cell_id": "a.cell",
                    "request_index": request["request_index"],
                    "chunk": number,
                    "t": T0 + round(t * MS),
                    "tokens": None,
                    "coalesced": False,
                }
            )
    return log


def two_requests(**more: Any) -> Any:
    """One holds 100 tokens and more from 10 ms to 50 ms, another 40 and more from 30 ms to 70 ms."""
    one, other = [10.0, 20.0, 30.0, 40.0], [30.0, 40.0, 50.0, 60.0]
    return run_of({0: (row(0, 10, one, 50, 100, **more), one), 1: (row(1, 30, other, 70, 40), other)})


def data_of(log: Any) -> CellData:
    run = log.run()
    return CellData.of(run, run.manifest.cells[0])


def test_the_curve_follows_prompts_tokens_and_ends() -> None:
    curve = live_curve(data_of(two_requests()))
    assert curve is not None
    at = dict(zip((curve.t - T0).tolist(), curve.v.tolist(), strict=True))
    assert at[10 * MS] == 101
    assert at[30 * MS] == 103 + 41
    assert at[40 * MS] == 104 + 42
    assert at[50 * MS] == 43
    assert at[70 * MS] == 0
    assert curve.v.max() == 146


def test_cached_prompt_tokens_count_once() -> None:
    curve = live_curve(data_of(two_requests(cached_tokens=60)))
    assert curve is not None
    assert curve.v.max() == 146 - 60


def test_the_cached_history_of_a_conversation_is_its_own() -> None:
    curve = live_curve(data_of(two_requests(cached_tokens=60, turn=1, conversation=0)))
    assert curve is not None
    assert curve.v.max() == 146


def test_use_of_a_pool_that_the_engine_does_not_tell() -> None:
    log = two_requests()
    run = log.run()
    engine = logs.RunManifest.model_fields["engines"].annotation.__args__[0]
    settings = {"kv_tokens": 200, "kv_bytes_per_token": 1 << 20}
    run.manifest.engines.append(engine(name="a", url="http://h", settings=settings))
    (cell,) = summarise(run).cells
    assert cell.kv_live_source == "client"
    assert cell.kv_reserved == 200
    assert cell.kv_utilisation_peak == pytest.approx(146 / 200)
    assert cell.client_live_peak == 146
    assert cell.kv_utilisation is not None
    assert cell.tokens_held_per_gib == pytest.approx(cell.kv_utilisation * 200 / (200 / 1024))


def test_the_engines_own_number_stays() -> None:
    log = two_requests()
    for name, value in (("kv_slots_reserved", 1000.0), ("kv_slots_live", 500.0), ("kv_slots_allocated", 600.0)):
        log.rows["metrics"] += [{"cell_id": "a.cell", "t": T0 + t * MS, "name": name, "value": value} for t in (1, 60)]
    log.rows["metrics"].append({"cell_id": "a.cell", "t": T0 + 90 * MS, "name": "kv_slots_allocated", "value": 32.0})
    (cell,) = summarise(log.run()).cells
    assert (cell.kv_live_source, cell.kv_utilisation) == ("engine", 0.5)
    assert cell.kv_left_over == 32


def test_a_stall_is_a_gap_in_which_others_went_on() -> None:
    steady = [float(t) for t in range(10, 1000, 10)]
    stuck = [10.0, 20.0, 30.0, 500.0, 510.0]
    log = run_of({0: (row(0, 10, steady, 1000, 10), steady), 1: (row(1, 10, stuck, 520, 10), stuck)})
    assert stalls(data_of(log)) == (1, pytest.approx(0.46))
    both = [10.0, 20.0, 30.0, 500.0, 510.0]
    together = run_of({0: (row(0, 10, both, 520, 10), both), 1: (row(1, 10, both, 520, 10), both)})
    assert stalls(data_of(together)) == (0, 0.0)


def test_energy_from_the_counter_or_else_from_power() -> None:
    log = two_requests()
    log.rows["system"] += [
        {"cell_id": "a.cell", "t": T0 + t * MS, "source": "nvml", "name": "power_w", "label": "0", "value": 300.0}
        for t in range(0, 80, 10)
    ]
    (cell,) = summarise(log.run()).cells
    assert cell.window_s is not None
    assert cell.energy_j == pytest.approx(300 * cell.window_s, rel=1e-6)
    for t, joules in ((0, 5.0), (35, 9.0), (70, 17.0)):
        log.rows["system"].append(
            {"cell_id": "a.cell", "t": T0 + t * MS, "source": "nvml", "name": "energy_j", "label": "0", "value": joules}
        )
    (cell,) = summarise(log.run()).cells
    assert cell.energy_j == pytest.approx(12)
    assert cell.energy_j_per_output_token == pytest.approx(12 / 8)
