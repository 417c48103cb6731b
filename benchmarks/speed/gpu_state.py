"""Clocks of the GPU beside a measurement: a number that was measured while the clocks were down says so.

Read from NVIDIA's driver through nvidia-ml-py. What this is for are the reasons that bring a clock down while there is work;
an idle GPU lowers it by itself, and a clock that somebody fixed is as it was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

# By name, NVML's constant. Each takes clocks away from a GPU that is at work.
_SLOWED = {
    "power cap": "nvmlClocksThrottleReasonSwPowerCap",
    "hardware slowdown": "nvmlClocksThrottleReasonHwSlowdown",
    "temperature": "nvmlClocksThrottleReasonSwThermalSlowdown",
    "temperature, in hardware": "nvmlClocksThrottleReasonHwThermalSlowdown",
    "power brake": "nvmlClocksThrottleReasonHwPowerBrakeSlowdown",
}


@dataclass(frozen=True)
class GpuState:
    """The first GPU at one moment."""

    sm_clock_mhz: int
    memory_clock_mhz: int
    temperature_c: int
    power_w: float
    slowed_by: tuple[str, ...]  # why the clocks are lower than they could be; empty when nothing holds them back


def read_gpu_state() -> GpuState | None:
    """What the driver says now; None without an NVIDIA GPU or nvidia-ml-py, or where the driver does not say."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or pynvml's own error for a machine without a driver
        return None
    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)
        return GpuState(
            sm_clock_mhz=int(pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM)),
            memory_clock_mhz=int(pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_MEM)),
            temperature_c=int(pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU)),
            power_w=pynvml.nvmlDeviceGetPowerUsage(device) / 1e3,  # it is in milliwatts
            slowed_by=tuple(name for name, constant in _SLOWED.items() if reasons & getattr(pynvml, constant)),
        )
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
