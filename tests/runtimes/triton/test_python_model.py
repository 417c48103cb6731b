"""The model in Triton's Python backend, on a double of the backend. `make triton-test` runs it in the real one."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from PIL import Image

from detr_export.runtimes import Predictor
from detr_export.runtimes.errors import DetrError
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.triton.answering import Question, answer_all, arrays_of
from detr_export.runtimes.triton.interface import Settings, inputs_of, outputs_of
from detr_export.triton.config import read_config
from detr_export.triton.options import TritonOptions
from detr_export.triton.repository import CONFIG, write_repository
from tests.runtimes.triton.backend_double import Request, Tensor, TritonError, TritonModelException, double

Start = Callable[..., Any]
TYPES = {"TYPE_FP32": "float32", "TYPE_INT64": "int64", "TYPE_INT32": "int32", "TYPE_STRING": "object"}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Writes a repository and starts its model.py as Triton does: `start(model, task="detection")`."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", double())
    monkeypatch.delitem(sys.modules, "detr_export.runtimes.triton.python_model", raising=False)
    started = []

    def begin(model: Path, change: Callable[[Path], None] = lambda folder: None, **options: Any) -> Any:
        write_repository(model, tmp_path / "repository", TritonOptions(name="net", threads=1, **options))
        folder = tmp_path / "repository" / "net"
        change(folder)
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = json.dumps(json_format.MessageToDict(read_config(folder / CONFIG)[1], preserving_proto_field_name=True))
        place = {"model_repository": str(folder), "model_version": "1", "model_instance_kind": "CPU"}
        found = module.TritonPythonModel()
        started.append(found)
        found.initialize({"model_config": config, **place})
        return found

    yield begin
    for model in started:
        model.finalize()
    monkeypatch.delitem(sys.modules, "detr_export.runtimes.triton.python_model", raising=False)


def pictures() -> list[np.ndarray]:
    """Two of one size, one of another."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((96, 128), (120, 80), (96, 128))]


def pixels(picture: np.ndarray, threshold: float | None = None) -> Request:
    lowest = {} if threshold is None else {"threshold": np.array([[threshold]], np.float32)}
    return Request(image=picture[np.newaxis], **lowest)


def encoded(content: bytes) -> Request:
    image = np.empty((1, 1), dtype=np.object_)
    image[0, 0] = content
    return Request(image=image)


def png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def assert_is(response: Any, expected: Any) -> None:
    """The response has the arrays of a result, in the shapes and types that config.pbtxt declares."""
    assert response.error is None, response.error.message
    arrays = arrays_of(expected)
    assert set(response.outputs) == set(arrays)
    for name, array in response.outputs.items():
        np.testing.assert_array_equal(array[0], arrays[name], err_msg=name)


def test_detections_are_those_of_the_predictor(start: Start, tiny_onnx: Path) -> None:
    model = start(tiny_onnx, task="detection", threshold=0.15)
    asked = [*map(pixels, pictures()), pixels(pictures()[0], 0.68), pixels(pictures()[1], 1.0)]
    responses = model.execute(asked)
    with Predictor.load(tiny_onnx, threads=1) as predictor:
        first, second, third = pictures()
        together = predictor.detect([first, third], 0.15)
        expected = [together[0], predictor.detect(second, 0.15), together[1]]
        expected += [predictor.detect(first, 0.68), predictor.detect(second, 1.0)]
    assert len(expected[0]) > len(expected[3])
    assert len(expected[4]) == 0
    for response, result in zip(responses, expected, strict=True):
        assert_is(response, result)
    assert model.execute([]) == []


@pytest.mark.parametrize("task", ["panoptic", "instances", "semantic"])
def test_segments_are_those_of_the_predictor(start: Start, segmenter_onnx: Path, task: str) -> None:
    model = start(segmenter_onnx, task=task)
    responses = model.execute([pixels(picture) for picture in pictures()[:2]])
    with Predictor.load(segmenter_onnx, threads=1) as predictor:
        expected = [predictor.predict(picture, task) for picture in pictures()[:2]]
    assert all(result.segments for result in expected)
    for response, result in zip(responses, expected, strict=True):
        assert_is(response, result)
        for tensor in outputs_of(task):
            array = response.outputs[tensor.name][0]
            assert array.dtype == TYPES[tensor.type]
            assert array.ndim == len(tensor.dims)
            assert all(declared in (-1, size) for declared, size in zip(tensor.dims, array.shape, strict=True))


def test_an_error_reaches_its_own_request_only(start: Start, tiny_onnx: Path) -> None:
    good = png(pictures()[0])
    bad = [b"", b"no picture", good[:200]]
    model = start(tiny_onnx, task="detection", form="encoded", warm_up=((96, 128),))
    responses = model.execute([encoded(good), *map(encoded, bad), encoded(good)])
    with Predictor.load(tiny_onnx, threads=1) as predictor:
        expected = predictor.detect([good, good])
    assert_is(responses[0], expected[0])
    assert_is(responses[4], expected[1])
    for content, response in zip(bad, responses[1:4], strict=True):
        with pytest.raises(DetrError) as reason:
            load_image(content)
        assert (response.error.message, response.error.code) == (str(reason.value), TritonError.INVALID_ARG)


def test_refuses_requests(start: Start, tiny_onnx: Path) -> None:
    model = start(tiny_onnx, task="detection")
    first = pictures()[0]
    asked = [Request(image=np.stack([first, first])), pixels(first, float("nan")), pixels(first[:0])]
    two, threshold, empty = (response.error.message for response in model.execute(asked))
    assert two == "the request has 2 pictures; expected one: the server makes batches of requests"
    assert threshold == "threshold is nan; expected a number from 0 to 1"
    assert "shape (0, 128, 3)" in empty


class Failing:
    """A predictor that fails with some pictures, or in some way."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.batches: list[int] = []

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def predict(self, images: list[np.ndarray], task: str, threshold: float, batch_size: int) -> list[Any]:
        self.batches.append(len(images))
        if any(image[0, 0, 0] == 13 for image in images):
            raise self.error
        return [[] for _ in images]  # no tables


def test_a_batch_that_fails_runs_one_by_one() -> None:
    predictor: Any = Failing(RuntimeError("no memory"))
    images = [np.full((4, 5, 3), value, np.uint8) for value in (1, 13, 2)]
    answers = answer_all(predictor, "tables", [Question(image, 0.5) for image in images])
    assert predictor.batches == [3, 1, 1, 1]
    assert [type(answer) for answer in answers] == [dict, RuntimeError, dict]
    assert isinstance(answers[0], dict)
    assert json.loads(answers[0]["tables"][0]) == {"tables": []}
    larger = [Question(np.zeros((4, size, 3), np.uint8), 0.5) for size in (5, 6, 5)]
    predictor.batches.clear()
    answer_all(predictor, "tables", larger)
    assert predictor.batches == [2, 1]  # sizes are not mixed


def test_an_unknown_error_is_internal(start: Start, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = start(tiny_onnx, task="detection")
    monkeypatch.setattr(model, "_predictor", Failing(ValueError("strange\nand long")))
    (response,) = model.execute([pixels(np.full((4, 5, 3), 13, np.uint8))])
    assert (response.error.message, response.error.code) == ("ValueError: strange", TritonError.INTERNAL)
    monkeypatch.setattr(model, "_predictor", None)


def _other_file(folder: Path) -> None:
    with (folder / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")


def _no_digest(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("sha256.1", "sha256.2"))


def _no_file(folder: Path) -> None:
    (folder / "1" / "model.onnx").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [(_other_file, "its SHA-256 differs"), (_no_digest, "has no SHA-256 of"), (_no_file, "does not exist")],
)
def test_a_version_that_is_not_what_it_says(
    start: Start, tiny_onnx: Path, change: Callable[[Path], None], message: str
) -> None:
    with pytest.raises(TritonModelException, match=message):
        start(tiny_onnx, change, task="detection")


def test_refuses_a_backend_that_garbles_arrays(start: Start, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of Triton 2.51 does with NumPy 2."""

    def without_strides(name: str, other: Tensor) -> Tensor:
        return Tensor(name, np.broadcast_to(other.array[:1], other.array.shape))

    monkeypatch.setattr(Tensor, "from_dlpack", staticmethod(without_strides))
    with pytest.raises(TritonModelException, match=r"was built for NumPy 1 and garbles .* install numpy<2"):
        start(tiny_onnx, task="detection")


def test_an_instance_takes_the_gpu_that_triton_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", double())
    from detr_export.runtimes.triton.python_model import device_of

    third = {"model_instance_kind": "GPU", "model_instance_device_id": "2"}
    names = ("cuda", "tensorrt", "cuda:1", "cpu", "openvino")
    assert [device_of(name, third) for name in names] == ["cuda:2", "tensorrt:2", "cuda:1", "cpu", "openvino"]
    assert device_of("cuda", {"model_instance_kind": "CPU", "model_instance_device_id": "0"}) == "cuda"
    monkeypatch.delitem(sys.modules, "detr_export.runtimes.triton.python_model")


def test_settings_come_back() -> None:
    for settings in (
        Settings("model.onnx", "detection", "pixels", 0.1, "cpu", None),
        Settings("model.engine", "panoptic", "encoded", 1 / 3, "cuda:1", 4),
    ):
        assert Settings.from_parameters(settings.to_parameters()) == settings


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("task", None, "has no parameter 'task'"),
        ("task", "sleep", "the parameter task of config.pbtxt is 'sleep'; expected one of detection, "),
        ("input", "audio", "the parameter input of config.pbtxt is 'audio'; expected one of pixels, encoded"),
        ("threshold", "high", "a parameter of config.pbtxt is no number"),
        ("threads", "many", "a parameter of config.pbtxt is no number"),
    ],
)
def test_settings_are_checked(name: str, value: str | None, message: str) -> None:
    parameters: dict[str, Any] = Settings("model.onnx", "detection", "pixels", 0.1, "cpu", None).to_parameters()
    parameters[name] = value
    with pytest.raises(DetrError, match=message):
        Settings.from_parameters({key: item for key, item in parameters.items() if item is not None})


def test_inputs() -> None:
    assert [tensor.name for tensor in inputs_of("pixels", "semantic")] == ["image"]
    image, threshold = inputs_of("encoded", "detection")
    assert (image.type, image.dims, image.optional) == ("TYPE_STRING", (1,), False)
    assert threshold.optional
