"""Fixtures that put the double in TensorRT's and CUDA's place; imported by the conftest."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from detr_export.runtimes.backends import tensorrt as tensorrt_folder
from tests.tensorrt_double.host_device import HostDevice
from tests.tensorrt_double.module import Knobs, fake_tensorrt

Install = Callable[..., Knobs]
NEWEST, TEN, OLDEST = "11.4.0.106", "10.16.1.11", "8.5.3.1"


@pytest.fixture
def install_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs the double in a version: `install_tensorrt("8.5.3.1")`."""

    def install(version: str = NEWEST, device: HostDevice | None = None) -> Knobs:
        knobs = Knobs(device or HostDevice())
        module = fake_tensorrt(version, knobs)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        from detr_export.runtimes.backends.cuda import opening as cuda_opening
        from detr_export.runtimes.backends.tensorrt import api as tensorrt_api

        monkeypatch.setattr(tensorrt_api, "trt", module)
        tensorrt_api.log.errors.clear()
        monkeypatch.setattr(cuda_opening, "open_device", lambda index=0: knobs.device)
        return knobs

    return install


@pytest.fixture
def tensorrt(install_tensorrt: Install) -> Knobs:
    """The double of the newest TensorRT."""
    return install_tensorrt()


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without TensorRT, whatever was imported before."""
    for name in [name for name in sys.modules if name.startswith(f"{tensorrt_folder.__name__}.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(tensorrt_folder, name.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
