"""What ONNX Runtime's NVIDIA providers are told. What needs a GPU is in docs/tensorrt.md."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.cuda.memory import LEGACY_STREAM
from detr_export.runtimes.backends.ort import session as ort_session
from detr_export.runtimes.backends.ort.providers import (
    linked_tensorrt,
    profile_options,
    provider_list,
    require_right_cumsum,
)
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.tensorrt.profiles import ShapeProfile
from detr_export.runtimes.devices import Device
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError
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


@pytest.mark.parametrize(
    ("precision", "version", "half", "quantised"),
    [
        ("fp32", (8, 6), "0", "0"),
        ("fp16", (8, 6), "1", "0"),
        ("int8", (8, 5), "0", "1"),
        # The flags undo strong typing, by which the precision is the graph's.
        *((precision, version, "0", "0") for precision in ("fp16", "int8") for version in ((10, 0), (10, 9), (11, 4), None)),
    ],
)
def test_tensorrt_comes_first_and_cuda_takes_the_rest(
    precision: str, version: tuple[int, int] | None, half: str, quantised: str
) -> None:
    first, second = provider_list(Device("tensorrt", 2), PROFILES, precision, Path("/cache"), version)
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


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The providers of each session that is started; the CPU's runs in place of all of them."""
    original, seen = onnxruntime.InferenceSession, []

    class Started:
        def __init__(self, *args: Any, providers: Any = None) -> None:
            seen.append(providers)
            self.plain = original(args[0], providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.plain, name)

        def get_providers(self) -> list[str]:
            return [name for name, _ in seen[-1]]

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Started)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return seen


def test_a_tensorrt_session_gets_profiles_and_a_cache_of_the_file(
    started: list[Any], tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_session, "linked_tensorrt", lambda: (10, 7))
    OrtSession(tiny_onnx, "tensorrt", max_batch=2).close()
    options = started[-1][0][1]
    assert options["trt_profile_opt_shapes"].startswith(
        "pixel_values:1x3x96x128,pixel_mask:1x96x128,pixel_values:1x3x128x96,"
    )
    assert options["trt_profile_max_shapes"].endswith("pixel_values:2x3x160x160,pixel_mask:2x160x160")
    folder = Path(options["trt_engine_cache_path"])
    assert folder.parent == tmp_path / "detr-export" / "ort"
    assert folder.is_dir()


# ---- which TensorRT the provider runs, and what it does to CumSum --------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "number", "version"),
    [
        (b"\0libnvonnxparser.so.10\0libnvinfer.so.10\0", 101601, (10, 16)),
        (b"\0libnvinfer.so.11\0", 110400, (11, 4)),
        (b"\0libnvinfer.so.10\0", 100001, (10, 0)),
        (b"\0libnvinfer.so.8\0", 8503, (8, 5)),
        (b"\0nvinfer_10.dll\0", 100900, (10, 9)),
        (b"\0libnvinfer.so.10\0", None, None),  # the loader does not find it
        (b"\0libcudart.so.12\0", 101601, None),
        (None, 101601, None),
    ],
)
def test_the_tensorrt_of_the_provider(
    provider: bytes | None,
    number: int | None,
    version: tuple[int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(name: str) -> Any:
        assert provider is not None
        assert name.encode() in provider
        if number is None:
            raise OSError(f"{name}: cannot open shared object file")
        return types.SimpleNamespace(getInferLibVersion=lambda: number)

    (tmp_path / "capi").mkdir()
    if provider is not None:
        (tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so").write_bytes(provider)
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert linked_tensorrt() == version


def cumsum_pair(file: Path, operator: str = "CumSum") -> Path:
    """Two sums of one tensor along two axes, as in the sine encoding; or two nodes of another operator."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["h", "w"]) for name in ("x", "rows", "columns")]
    axes = [numpy_helper.from_array(np.array(axis), name) for axis, name in enumerate(("vertical", "horizontal"))]
    nodes = [
        helper.make_node(operator, ["x", axis.name], [output.name]) for axis, output in zip(axes, value[1:], strict=True)
    ]
    graph = helper.make_graph(nodes, "CumSums", value[:1], value[1:], axes)  # a name is no operator
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(file))
    return file


@pytest.mark.parametrize(
    ("version", "words"), [((10, 8), "TensorRT 10.8"), ((11, 4), "TensorRT 11.4"), (None, "a TensorRT of unknown version")]
)
def test_a_pair_of_sums_is_refused_where_it_goes_wrong(version: tuple[int, int] | None, words: str, tmp_path: Path) -> None:
    file = cumsum_pair(tmp_path / "old.onnx")
    message = f"old.onnx has CumSum nodes, .* onnxruntime {onnxruntime.__version__} runs {words} here; export the file again"
    with pytest.raises(ArtifactError, match=message):
        require_right_cumsum(file, version)
    require_right_cumsum(cumsum_pair(tmp_path / "new.onnx", "ReduceSum"), version)


@pytest.mark.parametrize("version", [(8, 5), (8, 6), (10, 7)])
def test_before_tensorrt_10_8_a_pair_of_sums_is_right(version: tuple[int, int], tmp_path: Path) -> None:
    require_right_cumsum(cumsum_pair(tmp_path / "old.onnx"), version)


def test_an_older_file_is_not_opened(
    started: list[Any], tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(str(tiny_onnx))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "along"))
    model.graph.node.append(helper.make_node("CumSum", [model.graph.node[0].output[0], "along"], ["unused"]))
    onnx.save(model, str(tmp_path / "old.onnx"))
    monkeypatch.setattr(ort_session, "linked_tensorrt", lambda: (10, 9))
    with pytest.raises(ArtifactError, match=r"old.onnx has CumSum nodes.* runs TensorRT 10.9 here"):
        OrtSession(tmp_path / "old.onnx", "tensorrt")
    OrtSession(tmp_path / "old.onnx", "cuda").close()  # the CUDA provider sums right
    monkeypatch.setattr(ort_session, "linked_tensorrt", lambda: (10, 7))
    OrtSession(tmp_path / "old.onnx", "tensorrt").close()


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


@pytest.mark.parametrize("before", [None, "/mine"])
def test_the_plugins_import_leaves_the_environment_alone(
    before: str | None, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or the programs that this process starts would take their libraries from the plugin's folder."""
    package = tmp_path / "onnxruntime_ep_nv_tensorrt_rtx"
    package.mkdir()
    lines = ["import os", "os.environ['LD_LIBRARY_PATH'] = '/theirs'", "get_ep_name = lambda: 'none'"]
    (package / "__init__.py").write_text("\n".join([*lines, "get_library_path = lambda: '/nowhere.so'"]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if before is None:
        monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    else:
        monkeypatch.setenv("LD_LIBRARY_PATH", before)
    with pytest.raises(BackendError, match="the TensorRT-RTX plugin does not load"):
        OrtSession(tiny_onnx, "tensorrt-rtx")
    assert os.environ.get("LD_LIBRARY_PATH") == before
    del sys.modules["onnxruntime_ep_nv_tensorrt_rtx"]  # monkeypatch would put it back


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
