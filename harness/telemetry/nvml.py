"""Device telemetry through NVML.  Whatever a device does not tell is absent, with a reason, and never 0.

Memory is the device's (``nvmlDeviceGetMemoryInfo``): inside containers and under WDDM NVML cannot attribute it to
processes.  ``power_w`` is the board's, ``utilization_percent`` the share of time in which any kernel ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]


class NvmlSampler:
    """Rows for every device.  ``reason`` says why there are none, when there are none."""

    def __init__(self) -> None:
        self.devices: list[dict[str, Any]] = []
        self.reason: str | None = None
        self._handles: list[Any] = []
        try:
            import pynvml
        except ImportError:
            self.reason = "nvidia-ml-py is not installed"
            return
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            driver = _text(pynvml.nvmlSystemGetDriverVersion())
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            for index, handle in enumerate(self._handles):
                self.devices.append(
                    {
                        "index": index,
                        "name": _text(pynvml.nvmlDeviceGetName(handle)),
                        "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                        "driver": driver,
                    }
                )
        except pynvml.NVMLError as error:
            self._handles, self.devices = [], []
            self.reason = f"NVML: {error}"
            return
        if not self.devices:
            self.reason = "NVML sees no device"

    def sample(self) -> Iterable[Row]:
        t = time.monotonic_ns()
        rows: list[Row] = []
        for index, handle in enumerate(self._handles):
            for name, read in self._readings(handle):
                try:
                    value = float(read())
                except self._nvml.NVMLError:
                    continue  # not supported on this device: absent
                rows.append({"t": t, "source": "nvml", "name": name, "label": str(index), "value": value})
        return rows

    def _readings(self, handle: Any) -> list[tuple[str, Callable[[], float]]]:
        nvml = self._nvml
        return [
            ("device_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            ("utilization_percent", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            ("power_w", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            ("sm_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            ("temperature_c", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            ("throttle_reasons", lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        ]

    def close(self) -> None:
        if self._handles:
            self._nvml.nvmlShutdown()
            self._handles = []


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
