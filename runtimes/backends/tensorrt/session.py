"""TensorRT as a session. It copies and allocates only what it must."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.cuda.arrays import DeviceArray, DeviceView, device_view, is_device_array
from detr_export.runtimes.backends.cuda.memory import Stream
from detr_export.runtimes.backends.tensorrt import api as tensorrt_api
from detr_export.runtimes.backends.tensorrt.admission import require_gpu, require_known, require_version
from detr_export.runtimes.backends.tensorrt.execution import ExecutionSlot, OutputPool, Shapes, Work
from detr_export.runtimes.backends.tensorrt.profiles import ShapeProfile, describe_profiles, tightest
from detr_export.runtimes.backends.tensorrt.sidecar import read_sidecar
from detr_export.runtimes.devices import CUDA, parse_device
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError
from detr_export.runtimes.files import require_regular
from detr_export.runtimes.session import UNKNOWN, Session, TensorSpec, check_inputs

_DEFAULT_GRAPHS = 8  # for each context, if CUDA graphs are available and the caller gave no number
_ALIGNMENT = 256  # bytes, of a tensor's address (NvInferRuntime.h, setTensorAddress)
_SHAPES_KEPT = 256  # inputs whose output shapes are remembered


class TensorRTSession(Session):
    """An engine on a GPU. Several threads may call `run` at the same time; each run has its own context.

    Args:
        path: the engine, a plain TensorRT plan with its sidecar `<path>.json`.
        device: `cuda` or `cuda:N`.
        trust_engine: whether to open a plan whose sidecar is missing or describes another file. A plan is executable code.
        contexts: how many runs may happen at the same time. Each needs memory for the activations of the largest profile
            that it has run, allocated on first use.
        cuda_graphs: how many shapes each context keeps as CUDA graphs, which start faster, for `run`. 0 keeps none; None
            keeps 8, if the installed libraries have graphs.

    Attributes:
        profiles: the shapes that the engine takes.

    Raises:
        ArtifactError: the file or its sidecar is missing or damaged, or they do not belong together.
        BackendError: a GPU, its driver or TensorRT is missing or is not what the engine was built for, or memory runs out.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cuda",
        trust_engine: bool = False,
        contexts: int = 2,
        cuda_graphs: Optional[int] = None,
    ) -> None:
        file = Path(path)
        require_regular(file, ArtifactError)
        place = parse_device(device)
        if place.kind != CUDA:
            raise BackendError(
                f"device is '{place}', but {file} is a TensorRT engine and runs on a GPU; add --device cuda (device='cuda')"
            )
        if contexts < 1:
            raise BackendError(f"contexts is {contexts}; expected at least 1")

        self.source = str(file)

        # Whether the engine may be opened here
        plan = file.read_bytes()
        sidecar = read_sidecar(file)
        if not trust_engine:
            sidecar = require_known(file, plan, sidecar)
        self._library = (
            tensorrt_api.library_of_plan(plan) if sidecar is None else tensorrt_api.library_named(sidecar.library)
        )
        if not trust_engine and sidecar is not None:
            require_version(sidecar, self._library)
        self._device = cuda_opening.open_device(place.index)
        if not trust_engine and sidecar is not None:
            require_gpu(sidecar, self._device)

        # The engine
        self._graphs = self._allowed_graphs(cuda_graphs)
        self._host_code = sidecar is not None and sidecar.version_compatible
        # Before version 10 each context needs its own engine, which is loaded from this plan.
        self._plan = plan if not self._library.generation.shares_profiles and contexts > 1 else b""
        with self._device.active():
            runtime, engine = self._library.load_engine(plan, self._host_code)
        self._loaded: Optional[tuple[Any, Any]] = (runtime, engine)

        # Its inputs, outputs and profiles
        self._input_names = self._library.tensor_names(engine, inputs=True)
        self._output_names = self._library.tensor_names(engine, inputs=False)
        names = (*self._input_names, *self._output_names)
        self._dtypes = {name: tensorrt_api.numpy_dtype(engine, name) for name in names}
        self.profiles = tuple(
            ShapeProfile({name: _sizes(engine.get_tensor_profile_shape(name, number)) for name in self._input_names})
            for number in range(engine.num_optimization_profiles)
        )
        described = {spec.name: spec for spec in (*sidecar.inputs, *sidecar.outputs)} if sidecar is not None else {}
        specs = {name: described.get(name) or _spec(engine, name, self._dtypes[name]) for name in names}
        self.inputs = tuple(specs[name] for name in self._input_names)
        self.outputs = tuple(specs[name] for name in self._output_names)
        self.metadata = None if sidecar is None else sidecar.metadata

        # The slots that it runs in
        self._contexts = contexts
        self._idle: list[ExecutionSlot] = []
        self._made = 0
        self._closed = False
        self._changed = threading.Condition()
        self._pool = OutputPool(self._device)
        self._shapes: dict[Work, dict[str, tuple[int, ...]]] = {}
        with self._slot():  # if there is no execution context to be had, it is better to fail now
            pass

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        super().check(inputs)
        self._choose(self._shapes_of(inputs))

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = self._shapes_of(inputs)
        work = Work(self._choose(shapes), shapes)
        with self._slot() as slot:
            slot.start(slot.stream)
            addresses = [
                (name, slot.upload(name, inputs[name], self._dtypes[name], slot.stream)) for name in self._input_names
            ]
            outputs = self._outputs(slot, work, slot.stream)
            addresses += [(name, slot.output_address(name, *what)) for name, what in outputs.items()]
            slot.execute_staged(work, tuple(addresses))
            return slot.download(outputs)

    def run_on_device(self, inputs: Mapping[str, Any], stream: Any = None) -> dict[str, DeviceArray]:
        """Runs the model once. Inputs may lie on the GPU and outputs stay there; neither is copied.

        Args:
            inputs: as in `run`, or contiguous arrays on the session's GPU with DLPack or `__cuda_array_interface__`, of the
                dtype that the engine declares.
            stream: a stream of the caller. The run is queued there and the call returns at once. It waits for earlier runs
                only if it needs more memory than they did, or if the copies of four sets of inputs from the host are still
                ahead. Arrays on the device must not change before the run is done; they are kept alive until then.
                With None the call returns when the outputs are there.

        Returns:
            An array for each of `self.outputs`. Its memory is the caller's as long as the array is held, or one that shares
            it by DLPack; `DeviceArray` says when it is used again.

        Raises:
            InputError: a name, dtype, rank, size or memory layout does not fit, or an array lies on another GPU.
            BackendError: the backend failed, or the session is closed.
        """
        self.require_own_process()
        callers = None if stream is None else self._device.adopt_stream(stream)
        with self._slot(callers) as slot:
            # Inputs: checked before anything is queued
            queue = callers or slot.stream
            slot.start(queue)
            views = {
                name: device_view(name, value, self._device, queue)
                for name, value in inputs.items()
                if is_device_array(value)
            }
            self._check(inputs, views)
            _require_aligned(views)
            shapes = self._shapes_of({**inputs, **views})
            work = Work(self._choose(shapes), shapes)

            # Inputs in host memory are copied. Outputs get memory that the caller may keep, so there is no CUDA graph.
            found: dict[str, DeviceArray] = {}
            try:
                addresses = [
                    (name, views[name].address)
                    if name in views
                    else (name, slot.upload(name, inputs[name], self._dtypes[name], queue))
                    for name in self._input_names
                ]
                for name, what in self._outputs(slot, work, queue).items():
                    found[name] = self._device_array(*what, queue)
                    addresses.append((name, found[name].address))
                slot.execute(work, tuple(addresses), queue)
                if callers is not None:
                    slot.leave_running(queue, views)
                    return found
                self._device.synchronize(queue)
                slot.finish()
            except BaseException:
                with contextlib.suppress(BackendError):  # what was queued uses the memory of the slot, which is freed now
                    self._device.synchronize(queue)
                _finish(found)
                raise
            _finish(found)
            return found

    @property
    def device_dtypes(self) -> dict[str, str]:
        """The dtype of each input and output on the device. Before TensorRT 10 it is int32 where the contract says int64."""
        return dict(self._dtypes)

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._idle) == self._made)  # runs that have begun end first
            slots, self._idle, self._made = self._idle, [], 0
        with self._device.active():
            for slot in slots:
                slot.close()
            self._pool.close()
        self._loaded = None
        self._plan = b""

    @contextlib.contextmanager
    def _slot(self, stream: Optional[Stream] = None) -> Iterator[ExecutionSlot]:
        """Lends a slot for a run in a stream of its own or of the caller's, with the device active."""
        slot: Optional[ExecutionSlot] = None
        with self._device.active():
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._idle or self._made < self._contexts)
                if self._closed:
                    raise BackendError("the session is closed")
                slot = self._choose_slot(stream)
                self._made += slot is None
            try:
                slot = slot or self._new_slot()
                yield slot
            except InputError:  # it is raised before anything is queued
                self._give_back(slot)
                raise
            except BaseException:
                self._discard(slot)  # nobody knows what is queued in it
                raise
            self._give_back(slot)

    def _choose_slot(self, stream: Optional[Stream]) -> Optional[ExecutionSlot]:
        """An idle slot; None stands for a new one.

        The slot that was used last comes first, because its graphs are warm; but not if the run would have to wait there for
        one in another stream, and need not elsewhere.
        """
        free = [slot for slot in self._idle if not slot.is_busy(stream)]
        if not free and self._made < self._contexts:
            return None
        slot = (free or self._idle)[-1]
        self._idle.remove(slot)
        return slot

    def _give_back(self, slot: Optional[ExecutionSlot]) -> None:
        with self._changed:
            if slot is None:
                self._made -= 1
            else:
                self._idle.append(slot)
            self._changed.notify_all()

    def _discard(self, slot: Optional[ExecutionSlot]) -> None:
        if slot is not None:
            with contextlib.suppress(BackendError):
                slot.close()
        self._give_back(None)

    def _new_slot(self) -> ExecutionSlot:
        assert self._loaded is not None  # because a closed session lends no slots
        runtime, engine = self._loaded
        if self._made > 1 and not self._library.generation.shares_profiles:
            runtime, engine = self._library.load_engine(self._plan, self._host_code)
        return ExecutionSlot(self._device, self._library, engine, runtime, self._graphs)

    def _allowed_graphs(self, wanted: Optional[int]) -> int:
        # Each graph has its own context beside the plain one, so TensorRT must let both use one profile.
        possible = self._device.captures_graphs and self._library.generation.shares_profiles
        if wanted is None:
            return _DEFAULT_GRAPHS if possible else 0
        if wanted < 0:
            raise BackendError(f"cuda_graphs is {wanted}; expected 0 or more")
        if wanted and not possible:
            raise BackendError("CUDA graphs need TensorRT 10 and cuda-python (PyCUDA has none); set cuda_graphs=0")
        return wanted

    def _shapes_of(self, arrays: Mapping[str, Any]) -> Shapes:
        return tuple((name, tuple(arrays[name].shape)) for name in self._input_names)

    def _choose(self, shapes: Shapes) -> int:
        profile = tightest(self.profiles, dict(shapes))
        if profile is None:
            given = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes)
            raise InputError(f"the engine has no profile for {given}; it takes {describe_profiles(self.profiles)}")
        return profile

    def _outputs(self, slot: ExecutionSlot, work: Work, stream: Stream) -> dict[str, tuple[tuple[int, ...], str]]:
        """The shape and dtype of each output."""
        found = self._shapes.get(work)
        if found is None:
            found = slot.output_shapes(work, self._output_names, stream)
            if len(self._shapes) < _SHAPES_KEPT:
                self._shapes[work] = found
        return {name: (shape, self._dtypes[name]) for name, shape in found.items()}

    def _check(self, inputs: Mapping[str, Any], views: Mapping[str, DeviceView]) -> None:
        """The checks of the contract. They see an array on the device as a numpy array without memory of its own."""
        described = {
            name: np.broadcast_to(np.empty((), self._contract_dtype(name, views[name])), views[name].shape)
            if name in views
            else value
            for name, value in inputs.items()
        }
        check_inputs(self.inputs, described, self.metadata)

    def _contract_dtype(self, name: str, view: DeviceView) -> np.dtype:
        """The dtype in the contract of an array on the device, which must have the engine's dtype: it is not converted."""
        if name in self._dtypes and view.dtype != self._dtypes[name]:
            raise InputError(f"{name} is {view.dtype} on the device; the engine takes {self._dtypes[name]} there")
        return next((np.dtype(spec.dtype) for spec in self.inputs if spec.name == name), view.dtype)

    def _device_array(self, shape: tuple[int, ...], dtype: str, writer: Stream) -> DeviceArray:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        address = self._pool.take(nbytes, writer)
        return DeviceArray(
            self._device,
            address,
            shape,
            np.dtype(dtype),
            writer,
            lambda events: self._pool.give_back(address, nbytes, events),
            self._to_host,
        )

    def _to_host(self, array: DeviceArray) -> np.ndarray:
        result = np.empty(array.shape, array.dtype)
        with self._device.active():
            stream = array.writer or self._device.create_stream()
            self._device.download(result, array.address, stream)
            self._device.synchronize(stream)
            if array.writer is None:
                self._device.destroy_stream(stream)
        return result


def _require_aligned(views: Mapping[str, DeviceView]) -> None:
    for name, view in views.items():
        if view.address % _ALIGNMENT:
            raise InputError(
                f"{name} begins at {view.address:#x}, which is no multiple of {_ALIGNMENT}; with torch, pass {name}.clone()"
            )


def _finish(arrays: Mapping[str, DeviceArray]) -> None:
    for array in arrays.values():
        array.finish()


def _sizes(shapes: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    minimum, optimum, maximum = (tuple(int(size) for size in shape) for shape in shapes)
    return minimum, optimum, maximum


def _spec(engine: Any, name: str, dtype: str) -> TensorSpec:
    return TensorSpec(name, dtype, tuple(UNKNOWN if size < 0 else int(size) for size in engine.get_tensor_shape(name)))
