"""The TensorRT session, on engines that compute in ONNX Runtime: numbers, memory, threads, graphs, and what is refused."""

from __future__ import annotations

import dataclasses
import gc
import json
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from detr_export.runtimes.backends.cuda.arrays import DeviceArray
from detr_export.runtimes.backends.cuda.memory import LEGACY_STREAM, Stream
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.tensorrt.admission import require_version
from detr_export.runtimes.backends.tensorrt.api import Library
from detr_export.runtimes.backends.tensorrt.sidecar import read_sidecar, sidecar_path
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError
from detr_export.runtimes.opening import ENGINE_SUFFIXES, open_session
from detr_export.runtimes.predictor import Predictor
from detr_export.verification.cases import Case, make_inputs
from tests.tensorrt_double import HostDevice, Knobs
from tests.tensorrt_double.engines import LANDSCAPE, PORTRAIT, SQUARE, write_engine
from tests.tensorrt_double.fixtures import NEWEST, OLDEST, RTX, TEN, Install

INPUTS = make_inputs(Case(70, 120, ((70, 120), (50, 61))), 3, True, seed=4)
SIZES = [(1, 64, 128), (2, 96, 160), (1, 150, 70), (3, 100, 110), (2, 96, 96), (1, 96, 97)]


def inputs(batch: int, height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    valid = tuple((height, width - 5 * index) for index in range(batch))
    return make_inputs(Case(height, width, valid), 3, True, seed)


@pytest.fixture(scope="module")
def reference(tiny_onnx: Path) -> Any:
    with OrtSession(tiny_onnx, threads=1, spinning=False) as session:
        yield session


@pytest.fixture
def engine(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> Path:
    return write_engine(tiny_onnx, tmp_path / "tiny.engine", NEWEST)


def open_engine(path: Path, **options: Any) -> Any:
    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

    return TensorRTSession(path, **options)


def require_same(given: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(given) == set(expected)
    for name, array in expected.items():
        assert given[name].dtype == array.dtype
        assert np.abs(given[name] - array).max() <= 1e-5, name


# ---- numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [NEWEST, TEN, OLDEST])
def test_gives_the_models_numbers(
    version: str, install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path, reference: OrtSession
) -> None:
    """On 8.5 the engine declares int32 masks, and the contract's int64 ones are converted."""
    knobs = install_tensorrt(version)
    with open_engine(write_engine(tiny_onnx, tmp_path / "a.engine", version)) as session:
        assert session.inputs == reference.inputs
        assert session.outputs == reference.outputs
        assert session.metadata == reference.metadata
        for seed, size in enumerate(SIZES):
            given = inputs(*size, seed)
            require_same(session.run(given), reference.run(given))
        assert [spec.dtype for spec in session.inputs] == ["float32", "int64"]
    pixels, mask = (INPUTS[name].size for name in ("pixel_values", "pixel_mask"))
    knobs.device.counts.uploads.clear()
    with open_engine(tmp_path / "a.engine") as session:
        session.run(INPUTS)
    assert knobs.device.counts.uploads == [4 * pixels, (4 if version == OLDEST else 8) * mask]


def test_the_caller_owns_the_outputs(engine: Path) -> None:
    with open_engine(engine) as session:
        first = session.run(INPUTS)
        kept = {name: value.copy() for name, value in first.items()}
        session.run(inputs(2, 70, 120, seed=9))
        for name, value in first.items():
            assert np.array_equal(value, kept[name])
            value[:] = 0
        require_same(session.run(INPUTS), kept)


def test_inputs_of_any_memory_layout(engine: Path, reference: OrtSession) -> None:
    frozen = np.asfortranarray(INPUTS["pixel_values"])
    frozen.setflags(write=False)
    with open_engine(engine) as session:
        require_same(session.run({**INPUTS, "pixel_values": frozen}), reference.run(INPUTS))


def test_predictor_opens_engines(engine: Path, tensorrt: Knobs, tiny_onnx: Path, photo: Path) -> None:
    with Predictor.load(engine, device="cuda") as predictor, Predictor.load(tiny_onnx) as expected:
        found, wanted = predictor.detect(photo, 0.2), expected.detect(photo, 0.2)
        assert len(found.scores) > 0
        assert np.abs(found.boxes - wanted.boxes).max() <= 0.01
        assert found.names == wanted.names


@pytest.mark.parametrize("suffix", ENGINE_SUFFIXES)
def test_open_session_knows_engines_by_their_suffix(suffix: str, tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    with open_session(write_engine(tiny_onnx, tmp_path / f"a{suffix}", NEWEST), "cuda") as session:
        assert session.run(INPUTS)["logits"].shape == (2, 9, 6)


# ---- profiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "profile"),
    [
        ((1, 64, 128), 0),
        ((2, 96, 160), 0),
        ((2, 160, 96), 1),
        ((1, 32, 96), 0),
        ((3, 96, 160), 2),  # too large a batch for the landscape one
        ((1, 97, 97), 2),
        ((1, 96, 96), 1),  # landscape and portrait fit alike, and the portrait's tuned size is as near; see below
    ],
)
def test_takes_the_tightest_profile(size: tuple[int, int, int], profile: int, engine: Path) -> None:
    with open_engine(engine) as session:
        shapes = tuple((name, array.shape) for name, array in inputs(*size).items())
        chosen = session._choose(shapes)
        if size == (1, 96, 96):
            assert chosen in (0, 1)
        else:
            assert chosen == profile


@pytest.mark.parametrize("size", [(5, 96, 96), (1, 31, 100), (1, 96, 161), (1, 161, 161)])
def test_a_shape_outside_of_all_profiles_names_them(size: tuple[int, int, int], engine: Path, reference: OrtSession) -> None:
    with open_engine(engine) as session:
        with pytest.raises(InputError) as caught:
            session.run(inputs(*size))
        message = str(caught.value)
        assert f"no profile for pixel_values {size[0]}x3x{size[1]}x{size[2]}" in message
        assert "profile 0: pixel_values 1x3x32x96 to 2x3x96x160" in message
        assert "profile 2: pixel_values 1x3x96x96 to 4x3x160x160" in message
        require_same(session.run(INPUTS), reference.run(INPUTS))  # and goes on


def test_checks_its_inputs(engine: Path) -> None:
    with open_engine(engine) as session:
        with pytest.raises(InputError, match="expected pixel_values, pixel_mask"):
            session.run({"pixel_values": INPUTS["pixel_values"]})
        with pytest.raises(InputError, match="pixel_mask is int32; expected int64"):
            session.run({**INPUTS, "pixel_mask": INPUTS["pixel_mask"].astype(np.int32)})


# ---- memory -------------------------------------------------------------------------------------------------------------


def test_memory_is_reused_and_given_back(engine: Path, tensorrt: Knobs) -> None:
    device = tensorrt.device
    session = open_engine(engine, contexts=1, cuda_graphs=0)
    session.run(inputs(3, 150, 150))
    allocated, pinned, contexts = device.counts.allocations, device.counts.pinned, tensorrt.contexts
    for size in SIZES:
        session.run(inputs(*size))
    assert (device.counts.allocations, device.counts.pinned, tensorrt.contexts) == (allocated, pinned, contexts)
    session.run(inputs(4, 160, 160))  # larger than all before: grows, and gives the smaller back
    assert device.counts.allocations > allocated
    assert len(device.blocks) == 1 + 4
    session.close()
    session.close()
    assert not device.blocks
    assert not device.pinned
    assert not device.streams
    assert not device.events
    with pytest.raises(BackendError, match="the session is closed"):
        session.run(INPUTS)


def test_out_of_memory_is_one_line(install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path) -> None:
    knobs = install_tensorrt(NEWEST, HostDevice(limit=200_000))
    with open_engine(write_engine(tiny_onnx, tmp_path / "a.engine", NEWEST)) as session:
        session.run(inputs(1, 40, 96))
        with pytest.raises(BackendError, match=r"the GPU has \d+ of 0 MiB free and \d MiB were needed; use fewer"):
            session.run(inputs(2, 96, 160))
        session.run(inputs(1, 40, 96))
    assert not knobs.device.blocks


def test_what_tensorrt_refuses_is_one_line(engine: Path, tensorrt: Knobs) -> None:
    with open_engine(engine) as session:
        tensorrt.refuses_profiles = True
        with pytest.raises(BackendError, match="the engine does not take profile 0: TensorRT gave no reason"):
            session.run(INPUTS)
        tensorrt.refuses_profiles, tensorrt.refuses_runs = False, True
        with pytest.raises(BackendError, match=r"the engine failed: Cuda Runtime \(launch failure\)"):
            session.run(INPUTS)
        tensorrt.refuses_runs = False
        session.run(INPUTS)
    assert not tensorrt.device.blocks
    assert not tensorrt.device.events


def test_no_memory_for_a_context(engine: Path, tensorrt: Knobs) -> None:
    tensorrt.refuses_contexts = True
    with pytest.raises(BackendError, match=r"no execution context: Cuda Runtime \(out of memory\); use fewer contexts"):
        open_engine(engine)
    assert not tensorrt.device.blocks


def test_activations_need_the_memory_of_the_profile_that_runs(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    device = tensorrt.device
    with open_engine(engine, contexts=1) as session:
        sizes = [session._loaded[1].get_device_memory_size_for_profile_v2(index) for index in range(3)]
        assert sizes[0] == sizes[1] < sizes[2]

        def activations() -> list[int]:
            return [block.nbytes for block in device.blocks.values() if block.nbytes in sizes]

        assert activations() == []
        for size, expected in (((1, 64, 128), sizes[0]), ((1, 128, 64), sizes[1]), ((1, 97, 97), sizes[2])):
            for seed in range(3):
                given = inputs(*size, seed)
                require_same(session.run(given), reference.run(given))
            assert activations() == [expected]
        given = inputs(1, 64, 128)
        require_same(session.run(given), reference.run(given))
        assert activations() == [sizes[2]]


def test_activations_grow_after_the_runs_that_use_them(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    device = tensorrt.device
    with device.active():
        stream = device.create_stream()
    works = [inputs(1, 64, 128), inputs(4, 160, 160), inputs(1, 128, 64)]
    with open_engine(engine, contexts=1) as session:
        outputs = [session.run_on_device(work, stream=stream.handle) for work in works]
        for given, work in zip(outputs, works, strict=True):
            require_same({name: array.numpy() for name, array in given.items()}, reference.run(work))


# ---- threads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "contexts"), [(NEWEST, 1), (NEWEST, 3), (NEWEST, 8), (OLDEST, 3)])
def test_eight_threads(
    version: str, contexts: int, install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path, reference: OrtSession
) -> None:
    knobs = install_tensorrt(version)
    work = [inputs(*SIZES[index % len(SIZES)], seed=index) for index in range(8)]
    expected = [reference.run(item) for item in work]
    engine = write_engine(tiny_onnx, tmp_path / "a.engine", version)
    with open_engine(engine, contexts=contexts, cuda_graphs=0) as session, ThreadPoolExecutor(8) as pool:
        for given, wanted in zip(pool.map(session.run, work * 3), expected * 3, strict=True):
            require_same(given, wanted)
        assert 1 <= len(knobs.device.streams) <= contexts
    assert not knobs.device.blocks


def test_an_array_that_is_collected_inside_the_pool_does_not_lock_it(engine: Path) -> None:
    """The garbage collector runs wherever it wants, also in a thread that is about to take memory."""
    session = open_engine(engine)
    held = session.run_on_device(INPUTS)

    def collect() -> None:
        with session._pool._lock:
            held.clear()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    session.close()


def test_threads_run_side_by_side(engine: Path, tensorrt: Knobs) -> None:
    """Two runs meet in the middle of their work, which two contexts allow and one does not."""
    meeting = threading.Barrier(2, timeout=20)
    original = tensorrt.device.upload
    met = []

    def upload(address: int, source: np.ndarray, stream: Stream) -> None:
        if source.nbytes == 8 * INPUTS["pixel_mask"].size:
            meeting.wait()
            met.append(stream.handle)
        original(address, source, stream)

    tensorrt.device.upload = upload  # type: ignore[method-assign]
    with open_engine(engine, contexts=2) as session, ThreadPoolExecutor(2) as pool:
        list(pool.map(session.run, [INPUTS, INPUTS]))
    assert len(set(met)) == 2


def test_closing_waits_for_runs(engine: Path, tensorrt: Knobs) -> None:
    entered, go_on = threading.Event(), threading.Event()
    original = tensorrt.device.upload

    def upload(address: int, source: np.ndarray, stream: Stream) -> None:
        entered.set()
        assert go_on.wait(20)
        original(address, source, stream)

    tensorrt.device.upload = upload  # type: ignore[method-assign]
    session = open_engine(engine)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(session.run, INPUTS)
        assert entered.wait(20)
        closing = pool.submit(session.close)
        assert not closing.done()
        go_on.set()
        assert running.result(20)["logits"].shape == (2, 9, 6)
        closing.result(20)
    assert not tensorrt.device.blocks


# ---- CUDA graphs --------------------------------------------------------------------------------------------------------


def test_the_second_run_of_a_shape_is_captured_and_the_third_replayed(
    engine: Path, tensorrt: Knobs, reference: OrtSession
) -> None:
    counts = tensorrt.device.counts
    seen = []
    with open_engine(engine, contexts=1) as session:
        for seed in range(4):
            given = inputs(2, 70, 120, seed)
            require_same(session.run(given), reference.run(given))
            seen.append((counts.captures, counts.launches))
    assert seen == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert not tensorrt.device.graphs


def test_graphs_stay_right_between_other_shapes(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    """Each has a context of its own: the double refuses to replay a graph whose context was changed."""
    with open_engine(engine, contexts=1) as session:
        session.run(inputs(4, 160, 160))  # all memory that there will be, or addresses would change
        for seed in range(5):
            for size in SIZES:
                given = inputs(*size, seed)
                require_same(session.run(given), reference.run(given))
    assert tensorrt.device.counts.captures == len(SIZES)
    assert tensorrt.device.counts.launches == 3 * len(SIZES)


def test_graphs_are_bounded(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    with open_engine(engine, contexts=1, cuda_graphs=2) as session:
        session.run(inputs(4, 160, 160))
        for size in SIZES[:3] * 3:
            for _ in range(2):
                given = inputs(*size)
                require_same(session.run(given), reference.run(given))
            assert len(tensorrt.device.graphs) <= 2
        assert tensorrt.contexts == 3
    assert tensorrt.device.counts.captures == 2  # shapes in turns do not drive each other out


def test_a_graph_that_is_not_used_gives_way(
    engine: Path, tensorrt: Knobs, reference: OrtSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its context serves the next one: making contexts is slow."""
    from detr_export.runtimes.backends.tensorrt import execution

    assert execution._STALE > execution._SEEN_KEPT  # or shapes in turns would drive each other out
    monkeypatch.setattr(execution, "_STALE", 6)
    with open_engine(engine, contexts=1, cuda_graphs=1) as session:
        session.run(inputs(4, 160, 160))
        launches = []
        for size in (SIZES[0], SIZES[1]):
            for seed in range(10):
                given = inputs(*size, seed)
                require_same(session.run(given), reference.run(given))
            launches.append(tensorrt.device.counts.launches)
        assert tensorrt.device.counts.captures == 2
        assert tensorrt.contexts == 2
        assert launches == [8, 8 + 3]  # the first, seven runs later, is stale


def test_graphs_go_when_the_memory_grows(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    """They have the old addresses; and the larger profile needs more memory for activations, too."""
    counts = tensorrt.device.counts
    with open_engine(engine, contexts=1) as session:
        small, large = inputs(1, 64, 128), inputs(4, 160, 160)
        for _ in range(3):
            require_same(session.run(small), reference.run(small))
        assert (counts.captures, counts.launches, len(tensorrt.device.graphs)) == (1, 1, 1)
        require_same(session.run(large), reference.run(large))
        assert len(tensorrt.device.graphs) == 0
        for _ in range(3):
            require_same(session.run(small), reference.run(small))
        assert (counts.captures, counts.launches) == (2, 3)
        assert tensorrt.contexts == 2


def test_a_callers_memory_is_not_captured(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    """Its addresses change from call to call."""
    with open_engine(engine, contexts=1) as session:
        for _ in range(4):
            outputs = session.run_on_device(on_device(tensorrt.device, INPUTS))
            require_same({name: array.numpy() for name, array in outputs.items()}, reference.run(INPUTS))
            session.run_on_device(INPUTS)
    assert (tensorrt.device.counts.captures, tensorrt.contexts) == (0, 1)


def test_without_graphs(engine: Path, tensorrt: Knobs) -> None:
    with open_engine(engine, cuda_graphs=0) as session:
        for _ in range(4):
            session.run(INPUTS)
    assert tensorrt.device.counts.captures == 0


def test_a_capture_that_fails_is_said_and_done_without(
    engine: Path, tensorrt: Knobs, reference: OrtSession, caplog: pytest.LogCaptureFixture
) -> None:
    tensorrt.device.refuses_capture = True
    with open_engine(engine, contexts=1) as session:
        for _ in range(4):
            require_same(session.run(INPUTS), reference.run(INPUTS))
    assert caplog.text.count("no CUDA graph could be captured") == 1


def test_graphs_that_cannot_be_had_are_refused(install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path) -> None:
    knobs = install_tensorrt(OLDEST)
    engine = write_engine(tiny_onnx, tmp_path / "a.engine", OLDEST)
    with pytest.raises(BackendError, match="CUDA graphs need TensorRT 10 and cuda-python"):
        open_engine(engine, cuda_graphs=4)
    with open_engine(engine) as session:
        for _ in range(3):
            session.run(INPUTS)
    assert knobs.device.counts.captures == 0


# ---- arrays on the device -----------------------------------------------------------------------------------------------


class OnDevice:
    """Another library's array, with the interface of PyCUDA and Numba."""

    def __init__(self, device: HostDevice, array: np.ndarray, **changes: Any) -> None:
        with device.active():
            self.address = device.allocate(array.nbytes)
        np.copyto(device.memory(self.address, array.nbytes), np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        self.interface = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            **changes,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface


def on_device(device: HostDevice, arrays: dict[str, np.ndarray]) -> dict[str, OnDevice]:
    return {name: OnDevice(device, array) for name, array in arrays.items()}


def test_device_arrays_go_in_and_come_out_without_a_copy(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    expected = reference.run(INPUTS)
    with open_engine(engine) as session:
        given = on_device(tensorrt.device, INPUTS)
        outputs = session.run_on_device(given)
        assert tensorrt.device.counts.uploads == []
        require_same({name: array.numpy() for name, array in outputs.items()}, expected)
        interface = outputs["logits"].__cuda_array_interface__
        assert interface["shape"] == (2, 9, 6)
        assert interface["typestr"] == "<f4"
        assert interface["stream"] is None
        data = tensorrt.device.memory(interface["data"][0], outputs["logits"].nbytes)
        assert np.abs(data.view(np.float32).reshape(2, 9, 6) - expected["logits"]).max() <= 1e-5


def test_host_and_device_arrays_mix(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    with open_engine(engine) as session:
        pixels = OnDevice(tensorrt.device, INPUTS["pixel_values"])
        outputs = session.run_on_device({**INPUTS, "pixel_values": pixels})
        require_same({name: array.numpy() for name, array in outputs.items()}, reference.run(INPUTS))
        assert len(tensorrt.device.counts.uploads) == 1


def test_outputs_are_the_callers_until_dropped(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    with open_engine(engine) as session:
        other = inputs(2, 70, 120, seed=8)
        first = session.run_on_device(INPUTS)
        second = session.run_on_device(other)
        require_same({name: array.numpy() for name, array in first.items()}, reference.run(INPUTS))
        require_same({name: array.numpy() for name, array in second.items()}, reference.run(other))
        addresses = {array.address for array in first.values()}
        del first
        gc.collect()
        allocated = tensorrt.device.counts.allocations
        third = session.run_on_device(INPUTS)
        assert {array.address for array in third.values()} == addresses
        assert tensorrt.device.counts.allocations == allocated
    assert all(isinstance(array, DeviceArray) for array in third.values())
    del second, third
    gc.collect()
    assert not tensorrt.device.blocks


def test_a_stream_of_the_callers_returns_at_once(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    device = tensorrt.device
    with device.active():
        stream = device.create_stream()
    with open_engine(engine, contexts=1) as session:
        works = [inputs(2, 70, 120, seed) for seed in range(5)]
        outputs = []
        for work in works:
            outputs.append(session.run_on_device(work, stream=stream.handle))
            assert device.streams[stream.handle], "nothing is left to do, so the call waited"
        assert outputs[0]["logits"].stream == stream.handle
        with device.active():
            device.synchronize(stream)
        for given, work in zip(outputs, works, strict=True):
            require_same({name: array.numpy() for name, array in given.items()}, reference.run(work))
        require_same(session.run(works[0]), reference.run(works[0]))
        del outputs, given
        gc.collect()
        with device.active():
            device.synchronize(stream)


def test_runs_are_queued_without_waiting(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    """Neither for inputs on the device, which the slot only reads, nor for the first copies from pinned memory."""
    device = tensorrt.device
    with device.active():
        stream = device.create_stream()
    works = [inputs(2, 70, 120, seed) for seed in range(6)]
    with open_engine(engine, contexts=1) as session:
        given = [on_device(device, work) for work in works]
        outputs = [session.run_on_device(arrays, stream=stream.handle) for arrays in given]
        outputs += [session.run_on_device(work, stream=stream.handle) for work in works[:4]]
        assert device.counts.host_waits == 0
        outputs += [session.run_on_device(work, stream=stream.handle) for work in works[4:]]
        assert 0 < device.counts.host_waits <= 8
        assert device.streams[stream.handle], "nothing is left to do, so the last call waited"
        assert device.counts.pinned == 2 * 4  # four sets
        with device.active():
            device.synchronize(stream)
        for found, work in zip(outputs, works + works, strict=True):
            require_same({name: array.numpy() for name, array in found.items()}, reference.run(work))


def test_inputs_are_held_until_the_run_is_done(engine: Path, tensorrt: Knobs) -> None:
    device = tensorrt.device
    with device.active():
        stream = device.create_stream()
    with open_engine(engine, contexts=1) as session:
        given = on_device(device, INPUTS)
        held = [weakref.ref(array) for array in given.values()]
        session.run_on_device(given, stream=stream.handle)
        del given
        session.run_on_device(INPUTS, stream=stream.handle)
        gc.collect()
        assert all(reference() is not None for reference in held)
        with device.active():
            device.synchronize(stream)
        session.run_on_device(INPUTS, stream=stream.handle)
        gc.collect()
        assert all(reference() is None for reference in held)


def test_streams_do_not_wait_for_each_other(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    """As long as there are contexts. Then they do, on the device."""
    device = tensorrt.device
    with device.active():
        streams = [device.create_stream() for _ in range(3)]
    works = [inputs(2, 70, 120, seed) for seed in range(3)]
    with open_engine(engine, contexts=2) as session:
        outputs = [session.run_on_device(on_device(device, work), stream=work_stream.handle)
                   for work, work_stream in zip(works, streams, strict=True)]  # fmt: skip
        assert device.counts.host_waits == 0
        with device.active():
            device.synchronize(streams[1])
        assert device.streams[streams[0].handle], "the second stream waited for the first"
        for found, work in zip(outputs, works, strict=True):
            require_same({name: array.numpy() for name, array in found.items()}, reference.run(work))


@pytest.mark.parametrize("own_stream", [False, True])
@pytest.mark.parametrize("reader", ["default", "of the thread", "blocking", "named"])
def test_memory_is_not_used_again_while_somebody_reads(
    reader: str, own_stream: bool, engine: Path, tensorrt: Knobs, reference: OrtSession
) -> None:
    """What a consumer has queued in its stream still finds the array, although the host has dropped it."""
    device = tensorrt.device
    with device.active():
        made = device.create_stream(blocking=reader == "blocking")
        queue = device.create_stream().handle if own_stream else None
    stream = {"default": LEGACY_STREAM, "of the thread": Stream(2)}.get(reader, made)
    with open_engine(engine) as session:
        array = session.run_on_device(INPUTS, stream=queue).pop("logits")
        if reader == "named":
            array.__dlpack__(stream=stream.handle)
        elif queue is not None:  # as a consumer of __cuda_array_interface__ does
            event = device.record(Stream(array.__cuda_array_interface__["stream"]))
            device.wait(stream, event)
            device.release_event(event)
        copied, address = np.full(array.shape, np.nan, array.dtype), array.address
        device.download(copied, address, stream)
        del array
        gc.collect()
        again = session.run_on_device(inputs(2, 70, 120, seed=9), stream=queue)
        assert address in {array.address for array in again.values()}
        for array in again.values():
            array.numpy()
        with device.active():
            device.synchronize(stream)
        assert np.abs(copied - reference.run(INPUTS)["logits"]).max() <= 1e-5


def test_arrays_outlive_the_session(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    device = tensorrt.device
    with device.active():
        stream = device.create_stream()
    with open_engine(engine) as session:
        outputs = session.run_on_device(INPUTS)
        late = session.run_on_device(INPUTS, stream=stream.handle)
    expected = reference.run(INPUTS)
    require_same({name: array.numpy() for name, array in outputs.items()}, expected)
    require_same({name: array.numpy() for name, array in late.items()}, expected)
    copied = np.full(outputs["logits"].shape, np.nan, np.float32)
    device.download(copied, outputs["logits"].address, LEGACY_STREAM)
    del outputs, late
    gc.collect()
    assert np.abs(copied - expected["logits"]).max() <= 1e-5  # the copy came before the memory was freed
    assert not device.blocks
    assert not device.events


def test_after_a_run_that_fails_nothing_is_left_in_the_callers_stream(
    engine: Path, tensorrt: Knobs, reference: OrtSession
) -> None:
    """Its copies would read pinned memory that is freed."""
    device = tensorrt.device
    with device.active():
        stream = device.create_stream()
    with open_engine(engine) as session:
        earlier = session.run_on_device(inputs(2, 70, 120, seed=1), stream=stream.handle)
        tensorrt.refuses_runs = True
        with pytest.raises(BackendError, match="the engine failed"):
            session.run_on_device(INPUTS, stream=stream.handle)
        tensorrt.refuses_runs = False
        with device.active():
            device.synchronize(stream)
        require_same({name: array.numpy() for name, array in earlier.items()}, reference.run(inputs(2, 70, 120, seed=1)))
        require_same(session.run(INPUTS), reference.run(INPUTS))
    del earlier
    gc.collect()
    assert not device.blocks
    assert not device.pinned
    assert not device.events


def test_a_producers_stream_is_waited_for(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    device = tensorrt.device
    with device.active():
        producer = device.create_stream()
    pixels = INPUTS["pixel_values"]
    late = OnDevice(device, np.zeros_like(pixels), stream=producer.handle)
    data = device.memory(late.address, pixels.nbytes)
    device.enqueue(producer.handle, lambda: np.copyto(data, pixels.reshape(-1).view(np.uint8)))
    with open_engine(engine) as session:
        outputs = session.run_on_device({**INPUTS, "pixel_values": late})
        require_same({name: array.numpy() for name, array in outputs.items()}, reference.run(INPUTS))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pixel_values", {"typestr": "<f2"}, "pixel_values is float16 on the device; the engine takes float32 there"),
        ("pixel_values", {"strides": (4, 8, 16, 32)}, "pixel_values is not contiguous on the device"),
        ("pixel_values", {"shape": (2, 3, 70)}, r"pixel_values has shape \(2, 3, 70\); expected"),
        ("pixel_values", {"shape": (2, 3, 70, 119)}, "pixel_mask has shape"),
        ("pixel_mask", {"typestr": "<i4"}, "pixel_mask is int32 on the device; the engine takes int64 there"),
    ],
)
def test_refuses_device_arrays(name: str, change: dict[str, Any], message: str, engine: Path, tensorrt: Knobs) -> None:
    with open_engine(engine) as session:
        arrays = on_device(tensorrt.device, INPUTS)
        arrays[name].interface.update(change)
        with pytest.raises(InputError, match=message):
            session.run_on_device(arrays)
        session.run(INPUTS)


def test_an_array_that_tensorrt_cannot_address(engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    """A part of another one, say; TensorRT wants multiples of 256 bytes."""
    with open_engine(engine) as session:
        arrays = on_device(tensorrt.device, INPUTS)
        arrays["pixel_values"].interface["data"] = (arrays["pixel_values"].address + 4, False)
        with pytest.raises(InputError, match=r"pixel_values begins at 0x\w+, which is no multiple of 256; with torch, pass"):
            session.run_on_device(arrays)


def test_arrays_of_another_gpu(engine: Path, tensorrt: Knobs) -> None:
    with open_engine(engine) as session:
        arrays = on_device(tensorrt.device, INPUTS)
        tensorrt.device.foreign[arrays["pixel_mask"].address] = 1
        with pytest.raises(InputError, match="pixel_mask lies on GPU 1, and the session runs on GPU 0; copy it there first"):
            session.run_on_device(arrays)


def test_an_engine_that_needs_a_plugin(install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path) -> None:
    """InstanceNormalization is one in TensorRT 8: the double refuses such an engine as long as none is registered."""
    model = onnx.load(tiny_onnx)
    ones = onnx.numpy_helper.from_array(np.ones(3, np.float32), "ones")
    model.graph.initializer.append(ones)
    model.graph.node.append(onnx.helper.make_node("InstanceNormalization", ["pixel_values", "ones", "ones"], ["normed"]))
    onnx.save(model, tmp_path / "normed.onnx")
    for version in (OLDEST, NEWEST):
        knobs = install_tensorrt(version)
        engine = write_engine(tmp_path / "normed.onnx", tmp_path / f"{version}.engine", version)
        open_engine(engine).close()
        assert knobs.plugins == (version == OLDEST)


def test_on_8_5_a_mask_on_the_device_is_int32(install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path) -> None:
    knobs = install_tensorrt(OLDEST)
    with open_engine(write_engine(tiny_onnx, tmp_path / "a.engine", OLDEST)) as session:
        expected = session.run(INPUTS)
        mask = OnDevice(knobs.device, INPUTS["pixel_mask"].astype(np.int32))
        outputs = session.run_on_device({**INPUTS, "pixel_mask": mask})
        require_same({name: array.numpy() for name, array in outputs.items()}, expected)
        with pytest.raises(InputError, match="pixel_mask is int64 on the device; the engine takes int32"):
            session.run_on_device({**INPUTS, "pixel_mask": OnDevice(knobs.device, INPUTS["pixel_mask"])})


# ---- what is refused at the door ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "is a TensorRT engine and runs on a GPU; add --device cuda"),
        ({"device": "tensorrt"}, "device is 'tensorrt:0', but .* is a TensorRT engine and runs on a GPU; add --device cuda"),
        ({"device": "gpu"}, "device is 'gpu'; expected"),
        ({"contexts": 0}, "contexts is 0; expected at least 1"),
        ({"cuda_graphs": -1}, "cuda_graphs is -1; expected 0 or more"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str, engine: Path) -> None:
    with pytest.raises(BackendError, match=message):
        open_engine(engine, **options)


def test_threads_of_a_cpu_are_refused(engine: Path) -> None:
    with pytest.raises(BackendError, match="does not take threads: an engine runs on the GPU"):
        open_session(engine, "cuda", threads=2)


@pytest.mark.usefixtures("no_tensorrt")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"tensorrt is not installed; run: pip install 'detr-export\[trt\]'"),
        ({"library": "tensorrt_rtx"}, r"tensorrt_rtx is not installed; run: pip install 'detr-export\[rtx\]'"),
        ({"library": "tensorrt_9"}, "for the library 'tensorrt_9'; expected tensorrt or tensorrt_rtx: update detr-export"),
    ],
)
def test_without_its_library(changes: dict[str, Any], message: str, tiny_onnx: Path, tmp_path: Path) -> None:
    engine = write_engine(tiny_onnx, tmp_path / "a.engine", NEWEST, **changes)
    with pytest.raises(BackendError, match=message):
        open_session(engine, "cuda")


@pytest.mark.usefixtures("no_tensorrt")
@pytest.mark.parametrize(("plan", "extra"), [(b"ftrt", "trt"), (b"vtrt", "rtx")])
def test_a_plan_without_a_sidecar_tells_its_library(plan: bytes, extra: str, tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(plan)
    with pytest.raises(BackendError, match=rf"is not installed; run: pip install 'detr-export\[{extra}\]'"):
        open_session(tmp_path / "a.engine", "cuda", trust_engine=True)


def test_refuses_what_is_no_file(tensorrt: Knobs, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist or is not a file"):
        open_engine(tmp_path / "a.engine")


def test_an_engine_without_a_sidecar(engine: Path, reference: OrtSession) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(ArtifactError, match=r"a plan is executable code; .*--trust-engine"):
        open_engine(engine)
    with open_engine(engine, trust_engine=True) as session:
        assert str(session.inputs[0]) == "pixel_values float32 (?, 3, ?, ?)"
        assert session.metadata is None
        require_same(session.run(INPUTS), reference.run(INPUTS))
    with pytest.raises(ArtifactError, match="no detr-export metadata"):
        Predictor.load(engine, device="cuda", trust_engine=True)


def test_an_engine_that_was_changed(engine: Path, tensorrt: Knobs, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.write_bytes(engine.read_bytes() + b" ")
    original = Library.load_engine
    monkeypatch.setattr(Library, "load_engine", lambda *_: pytest.fail("it was deserialised"))
    with pytest.raises(ArtifactError, match=r"is not the file that tiny\.engine\.json describes"):
        open_engine(engine)
    monkeypatch.setattr(Library, "load_engine", original)
    open_engine(engine, trust_engine=True).close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 99}'])
def test_a_damaged_sidecar(content: str, engine: Path) -> None:
    sidecar_path(engine).write_text(content)
    for trust in (False, True):
        with pytest.raises(ArtifactError, match=r"tiny.engine.json.*build the engine again: detr-export trt"):
            open_engine(engine, trust_engine=trust)


@pytest.mark.parametrize(
    ("built", "compatible", "message"),
    [
        ("11.3.0.99", False, "built with TensorRT 11.3.0.99, and this is 11.4.0.106; build it again"),
        ("10.16.1.11", False, "built with TensorRT 10.16.1.11"),
        ("8.6.1.6", True, "built with TensorRT 8.6.1.6, version-compatible with later ones of 8, and this is 11.4.0.106"),
        ("11.5.0.1", True, "built with TensorRT 11.5.0.1, version-compatible with later ones of 11, and this is 11.4.0.106"),
    ],
)
def test_another_tensorrt(
    built: str, compatible: bool, message: str, tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path
) -> None:
    engine = write_engine(
        tiny_onnx, tmp_path / "a.engine", NEWEST, library_version=built, version_compatible=compatible, precision="fp32"
    )
    with pytest.raises(BackendError, match=message):
        open_engine(engine)


def of_version(version: str) -> Any:
    """As much of a `Library` as its version."""
    return types.SimpleNamespace(version=version, title="TensorRT", package="tensorrt")


def test_a_version_compatible_engine_runs_later(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    for built in ("11.0.0.114", "10.16.1.11", "10.1.0.27"):
        engine = write_engine(tiny_onnx, tmp_path / "a.engine", NEWEST, library_version=built, version_compatible=True)
        open_engine(engine).close()  # the double refuses it when its host code was not allowed


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("8.6.1.6", "8.6.1.6", True),
        ("8.6.0.12", "8.6.1.6", True),
        ("8.6.1.6", "8.6.0.12", False),
        ("8.5.3.1", "8.6.1.6", False),  # 8.5 built no such engines
        ("8.6.1.6", "10.16.1.11", False),  # NVIDIA allows it, and the session calls what 8.6 lacks
        ("8.6.1.6", "11.4.0.106", False),
        ("10.1.0.27", "10.16.1.11", True),
        ("10.16.1.11", "10.1.0.27", False),
        ("10.1.0.27", "11.0.0.114", True),
        ("10.16.1.11", "11.4.0.106", True),
        ("11.0.0.114", "10.16.1.11", False),
        ("11.0.0.114", "11.4.0.106", True),
        ("11.4.0.106", "11.0.0.114", False),
        ("11.4.0.106", "12.0.0.1", False),  # nobody has said so yet
        ("10.16.1.11", "12.0.0.1", False),
    ],
)
def test_pairs_of_versions(built: str, here: str, fits: bool, tiny_onnx: Path, tmp_path: Path) -> None:
    sidecar = read_sidecar(
        write_engine(tiny_onnx, tmp_path / "a.engine", NEWEST, library_version=built, version_compatible=True)
    )
    assert sidecar is not None
    plain = dataclasses.replace(sidecar, version_compatible=False)
    if fits:
        require_version(sidecar, of_version(here))
    else:
        with pytest.raises(
            BackendError, match=f"built with TensorRT {built}, version-compatible with .* this is {here}; build"
        ):
            require_version(sidecar, of_version(here))
    if built != here:
        with pytest.raises(BackendError, match=f"built with TensorRT {built}, and this is {here}; build it again"):
            require_version(plain, of_version(here))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": ((8, 9),), "gpu": "RTX 4090"},
            r"built for RTX 4090 \(compute capability 8.9\), and this GPU is",
        ),
        ({"targets": ((8, 0),), "gpu": "A100", "hardware_compatible": True}, None),
        ({"gpu": "H100"}, None),
    ],
)
def test_another_gpu(
    changes: dict[str, Any], message: str | None, tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path, caplog: Any
) -> None:
    engine = write_engine(tiny_onnx, tmp_path / "a.engine", NEWEST, **changes)
    if message:
        with pytest.raises(BackendError, match=message):
            open_engine(engine)
    else:
        open_engine(engine).close()
        assert ("was tuned on H100" in caplog.text) == (changes["gpu"] == "H100")


@pytest.mark.parametrize("version", ["8.4.3.1", "7.2.3.4", "9.3.0.1", "10.0.1.6"])
def test_a_tensorrt_that_is_too_old(version: str, install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path) -> None:
    install_tensorrt(version)
    with pytest.raises(BackendError, match=rf"TensorRT is {version}; expected 8.5, 8.6, or 10.1 and later"):
        open_engine(write_engine(tiny_onnx, tmp_path / "a.engine", version))


def test_an_engine_that_tensorrt_refuses(tensorrt: Knobs, engine: Path) -> None:
    engine.write_bytes(b"not a plan")
    with pytest.raises(BackendError, match="does not load the engine: Magic tag does not match; build it on this machine"):
        open_engine(engine, trust_engine=True)


def test_profiles_cover_what_they_say() -> None:
    """Or the tests above would compare other shapes than they name."""
    for low, best, high in (LANDSCAPE, PORTRAIT, SQUARE):
        assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))


# ---- DLPack -------------------------------------------------------------------------------------------------------------


class Capsule:
    """What torch and CuPy offer: DLPack on device 2, CUDA. numpy makes the capsule, over the double's device memory."""

    def __init__(self, device: HostDevice, array: np.ndarray) -> None:
        with device.active():
            address = device.allocate(array.nbytes)
        self.data = device.memory(address, array.nbytes).view(array.dtype).reshape(array.shape)
        self.data[:] = array
        self.asked: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: int) -> Any:
        self.asked.append(stream)
        return self.data.__dlpack__()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dlpack(dtype: Any, engine: Path, tensorrt: Knobs, reference: OrtSession) -> None:
    with open_engine(engine) as session:
        arrays = {name: Capsule(tensorrt.device, array) for name, array in INPUTS.items()}
        if dtype == np.float16:
            arrays["pixel_values"] = Capsule(tensorrt.device, INPUTS["pixel_values"].astype(dtype))
            with pytest.raises(InputError, match="pixel_values is float16 on the device; the engine takes float32"):
                session.run_on_device(arrays)
            return
        outputs = session.run_on_device(arrays)
        require_same({name: array.numpy() for name, array in outputs.items()}, reference.run(INPUTS))
        assert tensorrt.device.counts.uploads == []
        assert all(capsule.asked[0] in tensorrt.device.streams for capsule in arrays.values())


def test_the_default_stream_is_named_as_the_protocols_do(engine: Path, tensorrt: Knobs) -> None:
    """Its handle is 0, which they do not allow."""
    tensorrt.device.streams[0] = []
    with open_engine(engine) as session:
        arrays = {name: Capsule(tensorrt.device, array) for name, array in INPUTS.items()}
        outputs = session.run_on_device(arrays, stream=0)
        assert [capsule.asked for capsule in arrays.values()] == [[1], [1]]
        assert outputs["logits"].__cuda_array_interface__["stream"] == 1
        outputs["logits"].numpy()


def test_dlpack_that_is_not_contiguous(engine: Path, tensorrt: Knobs) -> None:
    with open_engine(engine) as session:
        pixels = Capsule(tensorrt.device, INPUTS["pixel_values"])
        pixels.data = pixels.data.transpose(0, 1, 3, 2)
        with pytest.raises(InputError, match=r"pixel_values is not contiguous on the device; with torch, pass .*contiguous"):
            session.run_on_device({**INPUTS, "pixel_values": pixels})


def test_numpy_arrays_are_the_hosts(engine: Path, reference: OrtSession) -> None:
    """They have DLPack, too, of the CPU's memory."""
    with open_engine(engine) as session:
        outputs = session.run_on_device(INPUTS)
        require_same({name: array.numpy() for name, array in outputs.items()}, reference.run(INPUTS))


# ---- TensorRT-RTX, and what was never run -------------------------------------------------------------------------------


@pytest.fixture
def rtx_gpu(rtx: Knobs) -> Knobs:
    """The double of TensorRT-RTX, with a GPU that it compiles for."""
    rtx.device.compute_capability = (8, 9)
    return rtx


@pytest.mark.usefixtures("rtx_gpu")
def test_an_rtx_engine_gives_the_models_numbers(tiny_onnx: Path, tmp_path: Path, reference: OrtSession) -> None:
    engine = write_engine(tiny_onnx, tmp_path / "a.engine", RTX, rtx=True)
    with open_engine(engine) as session:
        require_same(session.run(INPUTS), reference.run(INPUTS))
    sidecar_path(engine).unlink()
    with open_engine(engine, trust_engine=True) as session:  # the plan itself says whose it is
        require_same(session.run(INPUTS), reference.run(INPUTS))


@pytest.mark.parametrize(
    ("rtx_plan", "library", "version", "refusing"),
    [(False, "tensorrt_rtx", RTX, "TensorRT-RTX 1.7.1.116"), (True, "tensorrt", NEWEST, "TensorRT 11.4.0.106")],
)
def test_a_library_refuses_the_plan_of_the_other(
    rtx_plan: bool,
    library: str,
    version: str,
    refusing: str,
    install_tensorrt: Install,
    tiny_onnx: Path,
    tmp_path: Path,
) -> None:
    install_tensorrt(RTX, rtx=True)
    install_tensorrt(NEWEST)
    engine = write_engine(
        tiny_onnx,
        tmp_path / "a.engine",
        RTX if rtx_plan else NEWEST,
        rtx=rtx_plan,
        library=library,
        library_version=version,
        targets=((9, 0),),
    )
    with pytest.raises(BackendError, match=rf"^{refusing} does not load the engine: Magic tag does not match"):
        open_engine(engine)


@pytest.mark.usefixtures("rtx_gpu")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"library_version": "1.6.1.120"}, "built with TensorRT-RTX 1.6.1.120, and this is 1.7.1.116; .*tensorrt-rtx==1.6"),
        (
            {"targets": ((8, 6), (12, 0))},
            r"compiled for the compute capabilities 8.6, 12.0, and this GPU is Test GPU \(8.9\); .*--compute-capability 8.9",
        ),
    ],
)
def test_an_rtx_engine_for_something_else(changes: dict[str, Any], message: str, tiny_onnx: Path, tmp_path: Path) -> None:
    engine = write_engine(tiny_onnx, tmp_path / "a.engine", RTX, rtx=True, **changes)
    with pytest.raises(BackendError, match=message):
        open_engine(engine)


@pytest.mark.parametrize("is_rtx", [True, False])
def test_an_engine_that_was_never_run(
    is_rtx: bool, install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It opens with one warning, and with strict it is refused."""
    knobs = install_tensorrt(RTX if is_rtx else NEWEST, rtx=is_rtx)
    knobs.device.compute_capability = (8, 9)
    version = RTX if is_rtx else NEWEST
    engine = write_engine(
        tiny_onnx, tmp_path / "a.engine", version, rtx=is_rtx, verified=False, targets=((8, 9),), gpu="Test GPU"
    )
    for _ in range(2):
        Predictor.load(engine, device="cuda").close()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        f"{engine} was built and never compared with its checkpoint, so its results may be wrong; "
        f"check it on this machine: detr-export verify {engine}"
    ]
    with pytest.raises(ArtifactError, match=r"never compared with its checkpoint; .*leave strict \(--strict\) out"):
        Predictor.load(engine, device="cuda", strict=True)


def test_strict_takes_what_was_verified(engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    Predictor.load(engine, device="cuda", strict=True).close()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    sidecar_path(engine).unlink()
    with pytest.raises(ArtifactError, match="is missing, so nobody knows whether the engine is right"):
        open_session(engine, "cuda", trust_engine=True, strict=True)


@pytest.mark.parametrize("parity", [True, False])
def test_a_sidecar_of_format_1_still_opens(parity: bool, engine: Path, reference: OrtSession) -> None:
    new = json.loads(sidecar_path(engine).read_text())
    old = {name: value for name, value in new.items() if name not in NEW_IN_2}
    old |= {"format_version": 1, "tensorrt": NEWEST, "compute_capability": [9, 0], "gpu": "Test GPU", "cuda": "13.0"}
    old["metadata"]["parity"] = {"cases": 8} if parity else None
    sidecar_path(engine).write_text(json.dumps(old))
    with open_engine(engine) as session:
        require_same(session.run(INPUTS), reference.run(INPUTS))
    found = read_sidecar(engine)
    assert found is not None
    assert (found.library, found.library_version, found.targets) == ("tensorrt", NEWEST, ((9, 0),))
    assert found.verified == parity


NEW_IN_2 = {"library", "library_version", "targets", "attestation", "kernels", "verified"}
