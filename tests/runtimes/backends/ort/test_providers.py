"""What ONNX Runtime's NVIDIA providers are told. What needs a GPU is in docs/tensorrt.md."""

from __future__ import annotations

import gc
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.cuda.memory import LEGACY_STREAM
from detr_export.runtimes.backends.ort.providers import profile_options, provider_list
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.tensorrt.profiles import ShapeProfile
from detr_export.runtimes.devices import Device
from detr_export.runtimes.errors import BackendError, InputError
from detr_export.verification.cases import Case, make_inputs
from tests.runtimes.backends.tensorrt.test_session import OnDevice
from tests.tensorrt_double import HostDevice

INPUTS = make_inputs(Case(70, 90, ((70, 90), (50, 61))), 3, True, seed=4)
PROFILES = [
    ShapeProfile({"a": ((1, 2), (1, 4), (1, 8)), "b": ((1,), (1,), (1,))}),
    ShapeProfile({"a": ((2, 2), (3, 4), (3, 8)), "b": ((1,), (3,), (3,))}),
]


def test_profiles_in_the_providers_form() -> None:
    assert profile_options(PROFILES, "trt") == {
        "trt_profile_min_shapes": "a:1x2,b:1,a:2x2,b:1",
        "trt_profile_opt_shapes": "a:1x4,b:1,a:3x4,b:3",
        "trt_profile_max_shapes": "a:1x8,b:1,a:3x8,b:3",
    }


@pytest.mark.parametrize(("precision", "half", "quantised"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "0", "1")])
def test_tensorrt_comes_first_and_cuda_takes_the_rest(precision: str, half: str, quantised: str) -> None:
    first, second = provider_list(Device("tensorrt", 2), PROFILES, precision, Path("/cache"))
    assert first[0] == "TensorrtExecutionProvider"
    assert (
        first[1].items()
        >= {
            "device_id": "2",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "/cache",
            "trt_timing_cache_enable": "1",
            "trt_fp16_enable": half,
            "trt_int8_enable": quantised,
            "trt_profile_max_shapes": "a:1x8,b:1,a:3x8,b:3",
        }.items()
    )
    assert second == ("CUDAExecutionProvider", {"device_id": "2"})
    assert provider_list(Device("cuda", 1), [], "fp16", Path()) == [("CUDAExecutionProvider", {"device_id": "1"})]


def test_a_tensorrt_session_gets_profiles_and_a_cache_of_the_file(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = onnxruntime.InferenceSession, []

    class Started:
        def __init__(self, *args: Any, providers: Any = None) -> None:
            seen.append(providers)
            self.plain = original(args[0], providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.plain, name)

        def get_providers(self) -> list[str]:
            return [name for name, _ in seen[-1]]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Started)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    OrtSession(tiny_onnx, "tensorrt", max_batch=2).close()
    options = seen[-1][0][1]
    assert options["trt_profile_opt_shapes"].startswith(
        "pixel_values:1x3x96x128,pixel_mask:1x96x128,pixel_values:1x3x128x96,"
    )
    assert options["trt_profile_max_shapes"].endswith("pixel_values:2x3x160x160,pixel_mask:2x160x160")
    folder = Path(options["trt_engine_cache_path"])
    assert folder.parent == tmp_path / "detr-export" / "ort"
    assert folder.is_dir()


def test_tensorrt_without_its_provider(tiny_onnx: Path) -> None:
    with pytest.raises(BackendError, match=r"this onnxruntime has no TensorRT provider; run: .*detr-export\[gpu\]"):
        OrtSession(tiny_onnx, "tensorrt")


def test_a_batch_is_of_engines(tiny_onnx: Path) -> None:
    with pytest.raises(BackendError, match="max_batch is for the tensorrt devices, which build engines; leave it out"):
        OrtSession(tiny_onnx, max_batch=2)


# ---- the plugin ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The TensorRT-RTX plugin, which is found once it is registered; returns the registrations."""
    module: Any = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    module.get_ep_name = lambda: "nv_tensorrt_rtx"
    module.get_library_path = lambda: "/there/lib.so"
    registered: list[Any] = []
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", module)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *args: registered.append(args))
    device = types.SimpleNamespace(ep_name="nv_tensorrt_rtx")
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [device] if registered else [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return registered


def test_the_plugin_is_registered_once(tiny_onnx: Path, plugin: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    original = onnxruntime.SessionOptions

    class Options(original):  # type: ignore[misc, valid-type]
        def add_provider_for_devices(self, devices: Any, settings: dict[str, str]) -> None:
            given.append(settings)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    # What runs in place of the plugin is the CPU's provider, whose fallback the session would refuse.
    monkeypatch.setattr(Options, "add_session_config_entry", lambda self, key, value: given.append((key, value)))
    for _ in range(2):
        OrtSession(tiny_onnx, "tensorrt-rtx").close()
    assert plugin == [("nv_tensorrt_rtx", "/there/lib.so")]
    settings = next(item for item in given if isinstance(item, dict))
    assert settings["nv_profile_opt_shapes"].startswith("pixel_values:1x3x96x128,")
    assert ("session.disable_cpu_ep_fallback", "1") in given


def test_a_gpu_that_the_plugin_does_not_see(tiny_onnx: Path, plugin: list[Any]) -> None:
    with pytest.raises(BackendError, match="plugin sees 1 GPUs, but tensorrt-rtx:1 was asked for; check with nvidia-smi"):
        OrtSession(tiny_onnx, "tensorrt-rtx:1")


def test_without_the_plugin(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(BackendError, match="is not installed; run: pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"):
        OrtSession(tiny_onnx, "tensorrt-rtx")


# ---- arrays on the device, with the CPU's memory in the GPU's place -----------------------------------------------------


@pytest.fixture
def on_gpu(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    device = HostDevice()
    monkeypatch.setattr(cuda_opening, "open_device", lambda index: device)
    with OrtSession(tiny_onnx) as session:
        session._device, session._memory = Device("cuda"), "cpu"
        yield session, device


def test_device_arrays(on_gpu: Any) -> None:
    session, device = on_gpu
    expected = session.run(INPUTS)
    arrays = {name: OnDevice(device, array) for name, array in INPUTS.items()}
    for given in (arrays, {**INPUTS, "pixel_values": arrays["pixel_values"]}):
        outputs = session.run_on_device(given)
        for name, array in outputs.items():
            assert array.__cuda_array_interface__["shape"] == expected[name].shape
            assert np.array_equal(array.numpy(), expected[name])


def test_an_output_stays_as_long_as_its_memory_is_read(on_gpu: Any) -> None:
    session, device = on_gpu
    outputs = session.run_on_device(INPUTS)
    read: list[int] = []
    device.enqueue(LEGACY_STREAM.handle, lambda: read.append(1))
    outputs.clear()
    gc.collect()
    assert read
    assert not device.events


def test_refuses_device_arrays(on_gpu: Any) -> None:
    session, device = on_gpu
    with pytest.raises(InputError, match="pixel_mask is int32; expected int64"):
        session.run_on_device({**INPUTS, "pixel_mask": OnDevice(device, INPUTS["pixel_mask"].astype(np.int32))})
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        session.run_on_device(INPUTS)


def test_on_the_cpu_there_is_no_device(tiny_onnx: Path) -> None:
    with OrtSession(tiny_onnx) as session, pytest.raises(BackendError, match="the session is on the CPU; open it with"):
        session.run_on_device(INPUTS)
