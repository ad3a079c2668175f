"""NVML against a fake of it: bare metal, containers, MIG, WDDM, devices that refuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from harness.telemetry.nvml import NvmlSampler, slowing_reasons


class NVMLError(Exception):
    pass


@dataclass
class FakeNvml:
    """As much of ``pynvml`` as is used.  ``refused`` names calls that the device does not support."""

    processes: list[Any] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    mig: int = 0
    shut: bool = False

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    VALUES = {  # noqa: RUF012  (read only)
        "nvmlInit": None,
        "nvmlSystemGetDriverVersion": b"595.10",
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetName": "Fake H100",
        "nvmlDeviceGetUUID": "GPU-1",
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 << 30, used=9 << 30, free=71 << 30),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=83, memory=41),
        "nvmlDeviceGetPowerUsage": 412_500,
        "nvmlDeviceGetTotalEnergyConsumption": 123_456,
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4,
    }

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any) -> Any:
            if name in self.refused:
                raise NVMLError("Not Supported")
            if name == "nvmlDeviceGetHandleByIndex":
                return "handle"
            if name == "nvmlDeviceGetMigMode":
                return (self.mig, self.mig)
            if name == "nvmlDeviceGetComputeRunningProcesses":
                return self.processes
            if name == "nvmlShutdown":
                self.shut = True
                return None
            return self.VALUES[name]

        if not name.startswith("nvml"):
            raise AttributeError(name)
        return call


def process(pid: int, used: int | None) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def values(sampler: NvmlSampler) -> dict[str, float]:
    return {row["name"]: row["value"] for row in sampler.sample()}


def test_a_device_of_ones_own() -> None:
    nvml = FakeNvml([process(7, 5 << 30), process(8, 1 << 30), process(99, 1 << 30)])
    sampler = NvmlSampler(nvml)
    sampler.pids = lambda: (7, 8)
    told = values(sampler)
    assert told["device_used_bytes"] == 9 << 30
    assert (told["power_w"], told["energy_j"]) == (412.5, 123.456)
    assert (told["utilization_percent"], told["sm_clock_mhz"], told["throttle_reasons"]) == (83, 1980, 4)
    assert (told["process_used_bytes"], told["foreign_processes"]) == (6 << 30, 1)
    (device,) = sampler.devices
    assert (device["process_memory"], device["driver"], device["mig"]) == ("by process", "595.10", False)
    sampler.close()
    assert nvml.shut


@pytest.mark.parametrize("processes", [[], [process(4242, 5 << 30)]], ids=["nobody", "host ids"])
def test_a_container_gives_null_and_a_reason(processes: list[Any]) -> None:
    sampler = NvmlSampler(FakeNvml(processes))
    sampler.pids = lambda: (7,)
    told = values(sampler)
    assert "process_used_bytes" not in told
    assert "foreign_processes" not in told
    assert "cannot be attributed" in sampler.devices[0]["process_memory"]
    assert told["device_used_bytes"] == 9 << 30


def test_mig_gives_null_and_a_reason() -> None:
    sampler = NvmlSampler(FakeNvml(refused={"nvmlDeviceGetComputeRunningProcesses"}, mig=1))
    sampler.pids = lambda: (7,)
    assert "process_used_bytes" not in values(sampler)
    assert "MIG" in sampler.devices[0]["process_memory"]


def test_wddm_gives_null_and_a_reason() -> None:
    sampler = NvmlSampler(FakeNvml([process(7, None)]))
    sampler.pids = lambda: (7,)
    told = values(sampler)
    assert "process_used_bytes" not in told
    assert told["foreign_processes"] == 0
    assert "WDDM" in sampler.devices[0]["process_memory"]


def test_what_a_device_refuses_is_absent() -> None:
    refused = {"nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetMigMode"}
    sampler = NvmlSampler(FakeNvml(refused=refused))
    told = values(sampler)
    assert not {"energy_j", "power_w"} & told.keys()
    assert told["temperature_c"] == 61
    assert sampler.devices[0]["mig"] is None


def test_a_library_that_cannot_start_is_a_reason() -> None:
    sampler = NvmlSampler(FakeNvml(refused={"nvmlInit"}))
    assert (sampler.devices, sampler.reason) == ([], "NVML: Not Supported")
    assert list(sampler.sample()) == []


def test_throttling_in_words() -> None:
    assert slowing_reasons(0x4 | 0x40) == ["software power cap", "hardware thermal slowdown"]
    assert slowing_reasons(0x1) == []  # idle is not slowed
