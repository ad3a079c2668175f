"""The workloads that there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workloads.chat import Chat
from workloads.concurrency import Concurrency
from workloads.kv_pressure import KvPressure
from workloads.long_output import LongOutput
from workloads.mixed import Mixed
from workloads.parallel_sampling import ParallelSampling
from workloads.request import WorkloadError
from workloads.shared_prefix import SharedPrefix
from workloads.trace import Trace
from workloads.workload import Workload, build, split_spec, suggest

KINDS = (Chat, LongOutput, Concurrency, SharedPrefix, KvPressure, ParallelSampling, Trace, Mixed)
WORKLOADS: dict[str, type[Any]] = {kind.name: kind for kind in KINDS}


def make_workload(name: str, values: Mapping[str, Any]) -> Workload:
    """The workload ``name`` with these parameters.  Raises :class:`WorkloadError` on an unknown name or bad value."""
    if name not in WORKLOADS:
        raise WorkloadError(f"there is no workload {name!r}; {suggest(name, list(WORKLOADS))}")
    return build(WORKLOADS[name], values)


def parse_workload(spec: str) -> Workload:
    """The workload of a command-line spec: ``chat`` or ``chat:turns=3,scale=0.5``."""
    name, values = split_spec(spec)
    return make_workload(name, values)
