from __future__ import annotations

import sys
from types import ModuleType

import pytest

from detr_export.benchmarks.speed.gpu_state import GpuState, has_tf32, read_gpu_state


class NvmlError(Exception):
    pass


def driver(reasons: int, fails: str = "", capability: tuple[int, int] = (9, 0)) -> ModuleType:
    """Stands in for nvidia-ml-py on a machine with one GPU; its real module supplies the constants."""
    real = pytest.importorskip("pynvml")
    module = ModuleType("pynvml")
    module.__dict__.update({name: value for name, value in vars(real).items() if isinstance(value, int)})
    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetHandleByIndex": "gpu",
        "nvmlDeviceGetCurrentClocksThrottleReasons": reasons,
        "nvmlDeviceGetTemperature": 64,
        "nvmlDeviceGetPowerUsage": 412_500,
        "nvmlDeviceGetCudaComputeCapability": capability,
    }
    for name, answer in answers.items():
        assert hasattr(real, name)  # a stand-in for what does not exist proves nothing
        setattr(module, name, lambda *_, name=name, answer=answer: raising() if name == fails else answer)
    module.nvmlDeviceGetClockInfo = lambda _, kind: {real.NVML_CLOCK_SM: 1980, real.NVML_CLOCK_MEM: 3201}[kind]
    module.NVMLError = NvmlError

    def raising() -> None:
        raise NvmlError("not supported")

    return module


def test_reads_clocks_and_what_holds_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytest.importorskip("pynvml")
    idle = real.nvmlClocksThrottleReasonGpuIdle
    monkeypatch.setitem(sys.modules, "pynvml", driver(idle))
    assert read_gpu_state() == GpuState(1980, 3201, 64, 412.5, ())
    monkeypatch.setitem(
        sys.modules,
        "pynvml",
        driver(real.nvmlClocksThrottleReasonSwPowerCap | real.nvmlClocksThrottleReasonHwThermalSlowdown),
    )
    state = read_gpu_state()
    assert state is not None
    assert state.slowed_by == ("power cap", "temperature, in hardware")


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetPowerUsage"])
def test_none_where_the_driver_does_not_say(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(0, fails))
    assert read_gpu_state() is None


def test_none_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpu_state() is None


def test_tf32_came_with_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setitem(sys.modules, "pynvml", driver(0, capability=capability))
        assert has_tf32() is expected
    # Where nobody says, more rounding is allowed for.
    monkeypatch.setitem(sys.modules, "pynvml", driver(0, fails="nvmlDeviceGetHandleByIndex"))
    assert has_tf32()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert has_tf32()
