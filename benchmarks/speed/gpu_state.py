"""The state of the GPU at a measurement: a number that was measured while the clocks were down says so.

It is read from NVIDIA's driver through nvidia-ml-py. Only reasons that lower a clock while there is work are of interest.
An idle GPU lowers its clock by itself, and a clock that somebody fixed is what they asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

# NVML's constants by the name of the reason. Each of them lowers the clocks of a GPU that is at work.
_SLOWED = {
    "power cap": "nvmlClocksThrottleReasonSwPowerCap",
    "hardware slowdown": "nvmlClocksThrottleReasonHwSlowdown",
    "temperature": "nvmlClocksThrottleReasonSwThermalSlowdown",
    "temperature, in hardware": "nvmlClocksThrottleReasonHwThermalSlowdown",
    "power brake": "nvmlClocksThrottleReasonHwPowerBrakeSlowdown",
}

TF32 = "tf32"  # the precision of float32 whose products keep 10 bits of mantissa
_AMPERE = 8  # major number of its compute capability


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


def has_tf32() -> bool:
    """Whether float32 products on the first GPU may be computed in TF32, as NVIDIA's libraries do from Ampere on.

    True where the driver does not say: then more rounding is allowed for, not less.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or pynvml's own error for a machine without a driver
        return True
    try:
        major, _ = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
        return int(major) >= _AMPERE
    except pynvml.NVMLError:
        return True
    finally:
        pynvml.nvmlShutdown()
