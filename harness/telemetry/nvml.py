"""Device telemetry through NVML.  Whatever a device does not tell is absent, with a reason, and never 0.

``device_used_bytes`` is the device's (``nvmlDeviceGetMemoryInfo``: reserved by the driver included), ``power_w`` the
board's, ``utilization_percent`` the share of time in which any kernel ran, ``energy_j`` a counter since the driver was
loaded.  ``process_used_bytes`` is that of the engine's own processes, where NVML can tell them apart::

    case        what NVML does                                  what we say
    bare metal  lists our processes with their bytes            process_used_bytes, foreign_processes
    container   lists nobody, or host ids that are not ours     null: "processes ... cannot be attributed"
    MIG         refuses without the instance's handle           null: "MIG ..."
    WDDM        lists processes without bytes                   null: "the driver does not attribute memory"
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def installed_nvml() -> Any | None:
    """The module ``pynvml`` of the distribution nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def no_pids() -> Sequence[int]:
    """For engines that were not launched by us."""
    return ()


class NvmlSampler:
    """Rows for every device.  ``reason`` says why there are none, when there are none.

    ``pids`` names the engine's processes at each sample; without it process memory is not asked for.
    """

    def __init__(self, nvml: Any | None = None) -> None:
        """``nvml`` stands in for the module ``pynvml`` in tests."""
        self.devices: list[dict[str, Any]] = []
        self.reason: str | None = None
        self.pids: Callable[[], Sequence[int]] = no_pids
        self._handles: list[Any] = []
        self._seen_ours: set[int] = set()  # devices on which NVML has shown a process of ours
        if nvml is None:
            nvml = installed_nvml()
        if nvml is None:
            self.reason = "nvidia-ml-py is not installed"
            return
        self._nvml: Any = nvml
        try:
            nvml.nvmlInit()
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            for index, handle in enumerate(self._handles):
                self.devices.append(self._describe(index, handle, driver))
        except nvml.NVMLError as error:
            self._handles, self.devices = [], []
            self.reason = f"NVML: {error}"
            return
        if not self.devices:
            self.reason = "NVML sees no device"

    def _describe(self, index: int, handle: Any, driver: str) -> dict[str, Any]:
        nvml = self._nvml
        facts = {
            "index": index,
            "name": _text(nvml.nvmlDeviceGetName(handle)),
            "memory_bytes": int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            "driver": driver,
        }
        optional: dict[str, Callable[[], Any]] = {
            "uuid": lambda: _text(nvml.nvmlDeviceGetUUID(handle)),
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "mig": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),
            "foreign_processes": lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        }
        for name, read in optional.items():
            try:
                facts[name] = read()
            except (nvml.NVMLError, AttributeError):
                facts[name] = None
        return facts

    def sample(self) -> Iterable[Row]:
        """One row a reading; a reading that a device refuses gives none."""
        t = time.monotonic_ns()
        rows: list[Row] = []
        for index, handle in enumerate(self._handles):
            for name, read in self._readings(handle):
                try:
                    value = float(read())
                except (self._nvml.NVMLError, AttributeError):
                    continue  # not supported on this device, or by this release of the library: absent
                rows.append({"t": t, "source": "nvml", "name": name, "label": str(index), "value": value})
            rows += ({"t": t, "source": "nvml", "label": str(index), **row} for row in self._processes(index, handle))
        return rows

    def _readings(self, handle: Any) -> list[tuple[str, Callable[[], float]]]:
        nvml = self._nvml
        return [
            ("device_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            ("utilization_percent", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            ("memory_utilization_percent", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).memory),
            ("power_w", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            ("energy_j", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000),
            ("sm_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            ("memory_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            ("temperature_c", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            ("throttle_reasons", lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        ]

    def _processes(self, index: int, handle: Any) -> list[Row]:
        """Memory of the engine's processes and the number of others; nothing where they cannot be told apart."""
        ours = set(self.pids())
        if not ours:
            return []
        facts = self.devices[index]
        try:
            found = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except (self._nvml.NVMLError, AttributeError) as error:
            why = "MIG: processes are told only to the instance" if facts.get("mig") else f"NVML: {error}"
            facts["process_memory"] = why
            return []
        mine = [process for process in found if process.pid in ours]
        if not mine:
            if index not in self._seen_ours:
                facts["process_memory"] = (
                    "processes on the device cannot be attributed (a container sees none of them, or the host's ids)"
                )
            return []
        self._seen_ours.add(index)
        rows = [{"name": "foreign_processes", "value": float(len(found) - len(mine))}]
        used = [process.usedGpuMemory for process in mine]
        if any(value is None for value in used):
            facts["process_memory"] = "the driver does not attribute memory to processes (WDDM)"
            return rows
        facts["process_memory"] = "by process"
        rows.append({"name": "process_used_bytes", "value": float(sum(used))})
        return rows

    def close(self) -> None:
        if self._handles:
            self._nvml.nvmlShutdown()
            self._handles = []


# Bits of ``throttle_reasons`` that mean a slowed clock, not an idle one (nvml.h, nvmlClocksThrottleReason*).
SLOWING = {
    0x0000000000000004: "software power cap",
    0x0000000000000008: "hardware slowdown",
    0x0000000000000020: "software thermal slowdown",
    0x0000000000000040: "hardware thermal slowdown",
    0x0000000000000080: "hardware power brake",
}


def slowing_reasons(bits: int) -> list[str]:
    """Why a device runs below the clock that was asked for, in words; empty when it does not."""
    return [words for bit, words in SLOWING.items() if bits & bit]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
