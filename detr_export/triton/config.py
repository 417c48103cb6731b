"""`config.pbtxt`: Triton's configuration of a model, made with Triton's own schema, and read back with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from detr_export import __version__
from detr_export.runtimes.backends.tensorrt.profiles import parse_profile
from detr_export.runtimes.devices import CPU, CUDA, KINDS, OPENVINO, Device, parse_device
from detr_export.runtimes.errors import ArtifactError, InputError
from detr_export.runtimes.files import require_regular
from detr_export.runtimes.session import TensorSpec, largest_batch
from detr_export.runtimes.triton.interface import (
    PIXELS,
    VARIES,
    Settings,
    Tensor,
    digest_parameter,
    inputs_of,
    outputs_of,
)
from detr_export.triton.options import TritonOptions
from detr_export.triton.source import PLAIN_ENGINE, PLAIN_ONNX, PYTHON, Source

DEFAULT_BATCH, DEFAULT_THRESHOLD = 8, 0.5
ID2LABEL = "id2label"
_ONLY_PYTHON = {"task": "--task", "form": "--input", "threshold": "--threshold"}
_MOST_BYTES = 16 * 2**20  # of a config.pbtxt that is read
_CHANNELS = 3
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "float64": "TYPE_FP64",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "uint8": "TYPE_UINT8",
}


def make_config(source: Source, options: TritonOptions, name: str, version: int) -> Any:
    """The configuration of a model.

    Args:
        source: the model.
        options: what the user wants.
        name: of the model in the server.
        version: of the file, whose digest is noted.

    Returns:
        A `ModelConfig`.

    Raises:
        ArtifactError: an engine takes no single picture.
        BackendError: the device is unknown, or the backend does not have it.
        InputError: an option is out of what the model takes, or does not apply to it.
    """
    device = _device(source, options)
    batch = _max_batch(source, options, device)
    config = ModelConfig(name=name, backend=source.backend, max_batch_size=batch)
    inputs, outputs = _tensors(source, options, batched=batch > 0)
    for tensor in inputs:
        config.input.add(name=tensor.name, data_type=tensor.type, dims=tensor.dims, optional=tensor.optional)
    for tensor in outputs:
        config.output.add(name=tensor.name, data_type=tensor.type, dims=tensor.dims)
    if source.backend != PYTHON:
        config.default_model_filename = source.name

    # How requests become runs
    _add_batching(config, options, batch)
    config.version_policy.latest.num_versions = options.keep_versions or 1
    group = config.instance_group.add(count=options.instances or 1, kind=_kind(device))
    if ":" in _device_name(source, options):
        group.gpus.append(device.index)
    if source.backend == PLAIN_ENGINE:
        group.profile.extend(str(number) for number in range(len(source.profiles)))
    for size in options.warm_up:
        _add_warm_up(config, inputs[0], size)

    # What the model and its users have to know
    for key, value in _parameters(source, options, version).items():
        config.parameters[key].string_value = value
    return config


def task_of(source: Source, options: TritonOptions) -> str:
    """What the model does in the Python backend.

    Raises:
        InputError: the model cannot do what was asked for.
    """
    tasks = source.predictor.tasks
    if options.task is None:
        return "panoptic" if source.predictor.draws_masks else tasks[0]
    if options.task not in tasks:
        raise InputError(f"{source.file} cannot do the task {options.task!r}; expected one of {', '.join(tasks)}")
    return options.task


def _device_name(source: Source, options: TritonOptions) -> str:
    return options.device or (CUDA if source.is_engine else CPU)


def _device(source: Source, options: TritonOptions) -> Device:
    device = parse_device(_device_name(source, options))
    if source.is_engine and options.threads is not None:
        raise InputError("an engine runs on the GPU; leave --threads out")
    if source.is_engine:
        device.require((CUDA,), "an engine")
    elif source.backend == PLAIN_ONNX:
        device.require((CPU, CUDA), "an end-to-end file in Triton's ONNX Runtime backend")
    else:
        device.require(KINDS, "the Python backend")
    return device


def _kind(device: Device) -> int:
    on_cpu = device.kind in (CPU, OPENVINO)
    return int(ModelInstanceGroup.KIND_CPU if on_cpu else ModelInstanceGroup.KIND_GPU)


def _max_batch(source: Source, options: TritonOptions, device: Device) -> int:
    """`max_batch_size`; 0 says that the first axis is as the model declares it, and no batch of requests."""
    session = source.predictor.session
    fixed = session.inputs[0].shape[0]
    largest = largest_batch(session, str(device))
    smallest = 1 if session.metadata is None else session.metadata.ranges.get("batch", (1, None))[0]
    if source.profiles:
        profiles = [parse_profile(text) for text in source.profiles]
        smallest = min(profile.minimum[0] for profile in profiles)
        most = max(profile.maximum[0] for profile in profiles)
        largest = most if largest is None else min(most, largest)
    if source.backend != PYTHON and isinstance(fixed, int):
        if options.max_batch not in (None, 1):
            raise InputError(f"max_batch is {options.max_batch}, and {source.file} has batches of {fixed}; leave it out")
        return 0
    if smallest > 1:
        raise ArtifactError(f"{source.file} takes {smallest} pictures at least; build it again for 1, which a request has")
    if options.max_batch is None:
        return min(DEFAULT_BATCH, DEFAULT_BATCH if largest is None else largest)
    if largest is not None and options.max_batch > largest:
        raise InputError(f"max_batch is {options.max_batch}; {source.file} takes {largest} at most on the device {device}")
    return options.max_batch


def _tensors(source: Source, options: TritonOptions, batched: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs, the picture first."""
    if source.backend == PYTHON:
        task = task_of(source, options)
        if task == "semantic" and options.threshold is not None:
            raise InputError("a semantic map has no threshold; leave --threshold out")
        return inputs_of(options.form or PIXELS, task), outputs_of(task)
    for name, option in _ONLY_PYTHON.items():
        if getattr(options, name) is not None:
            raise InputError(
                f"{source.file} is end to end, so Triton runs it as it is and {option} means nothing; leave that out, or "
                "export the file without --end-to-end"
            )
    session = source.predictor.session
    inputs, outputs = ([_plain(spec, batched) for spec in specs] for specs in (session.inputs, session.outputs))
    return tuple(inputs), tuple(outputs)


def _plain(spec: TensorSpec, batched: bool) -> Tensor:
    dims = tuple(size if isinstance(size, int) else VARIES for size in spec.shape)
    return Tensor(spec.name, _TYPES[spec.dtype], dims[1:] if batched else dims)


def _add_batching(config: Any, options: TritonOptions, batch: int) -> None:
    if batch <= 1:
        if options.max_wait is not None or options.preferred_batches:
            raise InputError("the model takes one picture at a time; leave --max-wait-ms and --preferred-batch out")
        return
    if any(size > batch for size in options.preferred_batches):
        raise InputError(f"a preferred batch is {max(options.preferred_batches)}; expected at most max_batch, {batch}")
    config.dynamic_batching.max_queue_delay_microseconds = round((options.max_wait or 0.0) * 1e6)
    config.dynamic_batching.preferred_batch_size.extend(sorted(set(options.preferred_batches)))


def _add_warm_up(config: Any, image: Tensor, size: tuple[int, int]) -> None:
    height, width = size
    sample = config.model_warmup.add(name=size_text(size), batch_size=1)
    if image.type == "TYPE_UINT8":
        dims = [*image.dims[:-3], height, width, _CHANNELS]
        found = sample.inputs[image.name]
        found.data_type, found.random_data = image.type, True
        found.dims.extend(1 if size == VARIES else size for size in dims)
        for place, (wanted, declared) in enumerate(zip(dims, image.dims, strict=True)):
            if declared not in (VARIES, wanted):
                raise InputError(f"the warm-up of {size_text(size)} has {wanted} in the place {place}; expected {declared}")
    else:
        found = sample.inputs[image.name]
        found.data_type, found.input_data_file = image.type, size_text(size)
        found.dims.append(1)


def size_text(size: tuple[int, int]) -> str:
    """HEIGHTxWIDTH: the name of a warm-up, and of its file."""
    return "x".join(map(str, size))


def _parameters(source: Source, options: TritonOptions, version: int) -> dict[str, str]:
    metadata = source.predictor.metadata
    found = {
        "detr_export": __version__,
        ID2LABEL: json.dumps({str(label): name for label, name in sorted(metadata.id2label.items())}),
        digest_parameter(version): source.sha256,
    }
    if source.backend == PYTHON:
        default = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
        task, form = task_of(source, options), options.form or PIXELS
        settings = Settings(source.name, task, form, default, _device_name(source, options), options.threads)
        return {**found, **settings.to_parameters()}
    if metadata.end_to_end is not None:
        found["color"] = metadata.end_to_end.color
    if options.threads is not None:
        found["intra_op_thread_count"] = str(options.threads)
    return found


def to_text(config: Any) -> str:
    """The text of `config.pbtxt`."""
    return str(text_format.MessageToString(config, as_utf8=True))


def tensor_texts(tensors: Iterable[Any]) -> dict[str, str]:
    """Type and dimensions of inputs or outputs, for people, by name."""
    return {
        tensor.name: f"{DataType.Name(tensor.data_type)[len('TYPE_') :]} "
        f"({', '.join('any' if size == VARIES else str(size) for size in tensor.dims)})"
        for tensor in tensors
    }


def read_config(file: Path) -> tuple[str, Any]:
    """The text of a `config.pbtxt`, and its `ModelConfig`.

    Raises:
        ArtifactError: it is missing, too large, or not of Triton's schema.
    """
    require_regular(file, ArtifactError)
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ArtifactError(f"{file} has more than {_MOST_BYTES} bytes; expected a config.pbtxt")
        text = data.decode()
        return text, text_format.Parse(text, ModelConfig())
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise ArtifactError(f"{file} is no configuration of Triton ({error}); correct it, or add --overwrite") from error


def require_same_interface(found: Any, wanted: Any, file: Path) -> None:
    """Refuses a version that clients of the others could not use.

    Args:
        found: the configuration that is there.
        wanted: that of the new version alone.
        file: the one that is there, for the message.

    Raises:
        InputError: names the first thing that differs.
    """
    for what in ("backend", "max_batch_size", "default_model_filename"):
        _require_equal(file, what, getattr(found, what), getattr(wanted, what))
    for what in ("input", "output"):
        _require_equal(file, what, _texts(getattr(found, what)), _texts(getattr(wanted, what)))
    own = ("file", "task", "input", "color")
    for key in (ID2LABEL, *(key for key in own if key in found.parameters or key in wanted.parameters)):
        _require_equal(file, key, found.parameters[key].string_value, wanted.parameters[key].string_value)


def _texts(tensors: Iterable[Any]) -> str:
    return "; ".join(text_format.MessageToString(tensor, as_one_line=True) for tensor in tensors)


def _require_equal(file: Path, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise InputError(
            f"{file}: {what} is {found!r:.300}, and the new version has {wanted!r:.300}; all versions of a model have the "
            "same: give another --name"
        )
