"""Fixtures that put the double in TensorRT's and CUDA's place; imported by the conftest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.tensorrt import api as tensorrt_api
from tests.tensorrt_double.host_device import HostDevice
from tests.tensorrt_double.module import Knobs, fake_tensorrt

Install = Callable[..., Knobs]
NEWEST, TEN, OLDEST = "11.4.0.106", "10.16.1.11", "8.5.3.1"
RTX = "1.7.1.116"


@pytest.fixture
def fresh_libraries() -> Iterator[None]:
    """The libraries are looked for anew, in this test and after it."""
    forget_libraries()
    yield
    forget_libraries()


def forget_libraries() -> None:
    tensorrt_api.tensorrt.cache_clear()
    tensorrt_api.tensorrt_rtx.cache_clear()


@pytest.fixture
def install_tensorrt(monkeypatch: pytest.MonkeyPatch, fresh_libraries: None) -> Install:
    """Installs the double in a version: `install_tensorrt("8.5.3.1")`, or of TensorRT-RTX with `rtx=True`."""

    def install(version: str = NEWEST, device: HostDevice | None = None, rtx: bool = False) -> Knobs:
        knobs = Knobs(device or HostDevice())
        module = fake_tensorrt(version, knobs, rtx)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        forget_libraries()
        monkeypatch.setattr(cuda_opening, "open_device", lambda index=0: knobs.device)
        return knobs

    return install


@pytest.fixture
def tensorrt(install_tensorrt: Install) -> Knobs:
    """The double of the newest TensorRT."""
    return install_tensorrt()


@pytest.fixture
def rtx(install_tensorrt: Install) -> Knobs:
    """The double of TensorRT-RTX."""
    return install_tensorrt(RTX, rtx=True)


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch, fresh_libraries: None) -> None:
    """A machine with neither TensorRT nor TensorRT-RTX."""
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
