"""``/metrics`` in the Prometheus text format: the project's names, each behind ``pagedbench:``.

A model-server gateway finds what its protocol asks for: queued (``requests_waiting``), running (``requests_running``)
and KV utilisation (``kv_usage``), and the pool's shape in ``cache_config_info``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reference_engine.outputs import EngineStats, EngineTimes, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "pagedbench:"

_HISTOGRAMS = {
    "time_to_first_token": "time_to_first_token_seconds",
    "inter_token": "inter_token_latency_seconds",
    "end_to_end": "e2e_request_latency_seconds",
    "step": "engine_step_seconds",
}


def render(stats: EngineStats, times: EngineTimes, cache_config: Mapping[str, object]) -> bytes:
    """The exposition text.  ``cache_config`` becomes the labels of ``cache_config_info``."""
    lines = list(_info("cache_config_info", cache_config))
    for name, value in stats.values.items():
        lines += [f"# TYPE {PREFIX}{name} {'counter' if name.endswith('_total') else 'gauge'}", _sample(name, value)]
    lines.append(f"# TYPE {PREFIX}request_success_total counter")
    lines += [
        f'{PREFIX}request_success_total{{finished_reason="{reason}"}} {count}'
        for reason, count in times.finished.items()
    ]
    for attribute, name in _HISTOGRAMS.items():
        lines += _histogram(name, getattr(times, attribute))
    return ("\n".join(lines) + "\n").encode()


def _sample(name: str, value: float) -> str:
    return f"{PREFIX}{name} {value!r}"


def _info(name: str, labels: Mapping[str, object]) -> Iterator[str]:
    yield f"# TYPE {PREFIX}{name} gauge"
    inside = ",".join(f'{key}="{_escape(str(value))}"' for key, value in labels.items())
    yield f"{PREFIX}{name}{{{inside}}} 1"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _histogram(name: str, histogram: Histogram) -> Iterator[str]:
    counts, total = list(histogram.counts), histogram.sum
    yield f"# TYPE {PREFIX}{name} histogram"
    running = 0
    for bound, count in zip([*map(repr, histogram.bounds), "+Inf"], counts, strict=True):
        running += count
        yield f'{PREFIX}{name}_bucket{{le="{bound}"}} {running}'
    yield f"{PREFIX}{name}_sum {total!r}"
    yield f"{PREFIX}{name}_count {running}"
