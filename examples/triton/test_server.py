"""The real tritonserver, with its Python backend, on loopback: what `make triton-test` runs, with files that it made.

The server is the one inside of nvidia-pytriton's wheel. It has no ONNX Runtime backend, so an end-to-end file only gets as
far as its configuration. Its Python backend takes NumPy 1 alone, so this runs in an environment of its own, without PyTorch.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from google.protobuf import text_format
from PIL import Image

from detr_export.runtimes import Predictor
from detr_export.runtimes.errors import DetrError
from detr_export.runtimes.triton.answering import arrays_of
from detr_export.triton.config import read_config
from detr_export.triton.options import TritonOptions
from detr_export.triton.repository import CONFIG, write_repository

ROOT = Path(__file__).parents[2]
MADE = Path(os.environ["TRITON_MADE"])  # a folder with demo.onnx, whole.onnx and drawn pictures
SERVER = Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver"
PIXELS_LIMIT = 300_000  # of the server's DETR_EXPORT_LIMITS
START_SECONDS = 120.0
NO_BACKEND = "unable to find backend library for backend 'onnxruntime'"


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Drawn pictures in three sizes, two of which are the same to the model but not to Triton."""
    drawn = [Image.open(file).convert("RGB") for file in sorted((MADE / "drawn" / "val").glob("*.*"))]
    return [np.array(picture.resize(size)) for picture in drawn for size in ((256, 192), (200, 260), (320, 240))]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with all kinds of models."""
    place = tmp_path_factory.mktemp("triton") / "repository"
    kinds = {
        "detection": TritonOptions(task="detection", threads=1, max_wait=0.02, warm_up=((192, 256), (240, 320))),
        "single": TritonOptions(task="detection", threads=1, max_batch=1, instances=2),
        "encoded": TritonOptions(task="detection", form="encoded", threads=1, warm_up=((192, 256),)),
        "panoptic": TritonOptions(threads=1),
        "semantic": TritonOptions(task="semantic", threads=1, max_batch=2, preferred_batches=(2,), keep_versions=2),
    }
    for name, options in kinds.items():
        write_repository(MADE / "demo.onnx", place, TritonOptions(**{**vars(options), "name": name}))
    write_repository(MADE / "whole.onnx", place, TritonOptions(warm_up=((192, 256),)))
    return place


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="session")
def address(repository: Path) -> Iterator[str]:
    """A server that has read the repository, with strict configurations: it completes none."""
    stub = f"python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}/triton_python_backend_stub"
    shutil.copy(SERVER / stub, SERVER / "backends" / "python")
    http, port = free_port(), free_port()
    command = [SERVER / "bin" / "tritonserver", "--model-repository", repository, "--disable-auto-complete-config"]
    command += ["--backend-directory", SERVER / "backends", "--exit-on-error", "false", "--allow-metrics", "false"]
    command += ["--http-address", "127.0.0.1", "--http-port", http, "--grpc-address", "127.0.0.1", "--grpc-port", port]
    command += ["--model-control-mode", "explicit", "--load-model", "*"]
    environment = {
        **os.environ,
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",  # the Python of the backend
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"),  # its libpython
        "PYTHONPATH": str(ROOT),
        "DETR_EXPORT_LIMITS": f"pixels={PIXELS_LIMIT}",
    }
    log = repository.parent / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen([*map(str, command)], env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + START_SECONDS
        with grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while not _is_up(client):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(60)
        finally:
            server.kill()
    assert server.returncode == 0, log.read_text()


def _is_up(client: grpc.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live())
    except grpc.InferenceServerException:
        return False


@pytest.fixture
def client(address: str) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(address) as found:
        yield found


@pytest.fixture(scope="session")
def predictor() -> Iterator[Predictor]:
    with Predictor.load(MADE / "demo.onnx", threads=1) as found:
        yield found


def as_input(image: np.ndarray | bytes) -> grpc.InferInput:
    if isinstance(image, bytes):
        return grpc.InferInput("image", [1, 1], "BYTES").set_data_from_numpy(np.array([[image]], dtype=np.object_))
    return grpc.InferInput("image", [1, *image.shape], "UINT8").set_data_from_numpy(image[np.newaxis])


def ask(
    client: grpc.InferenceServerClient, model: str, image: np.ndarray | bytes, threshold: float | None = None
) -> dict[str, np.ndarray]:
    inputs = [as_input(image)]
    if threshold is not None:
        lowest = np.array([[threshold]], np.float32)
        inputs.append(grpc.InferInput("threshold", [1, 1], "FP32").set_data_from_numpy(lowest))
    answer = client.infer(model, inputs)
    return {output.name: answer.as_numpy(output.name)[0] for output in answer.get_response().outputs}


def png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def assert_same(found: dict[str, np.ndarray], expected: Any) -> None:
    arrays = arrays_of(expected)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_detections_bit_for_bit(
    client: grpc.InferenceServerClient, predictor: Predictor, pictures: list[np.ndarray]
) -> None:
    objects = 0
    for picture in pictures:
        expected = predictor.detect(picture)
        objects += len(expected)
        assert_same(ask(client, "detection", picture), expected)
        assert_same(ask(client, "encoded", png(picture)), expected)
        assert_same(ask(client, "detection", picture, 0.9), predictor.detect(picture, 0.9))
    assert objects > len(pictures)
    nothing = ask(client, "detection", pictures[0], 1.0)
    assert (nothing["boxes"].shape, nothing["names"].shape) == ((0, 4), (0,))


def test_segmentations_bit_for_bit(
    client: grpc.InferenceServerClient, predictor: Predictor, pictures: list[np.ndarray]
) -> None:
    for picture in pictures:
        assert_same(ask(client, "panoptic", picture), predictor.segment_panoptic(picture))
        assert_same(ask(client, "panoptic", picture, 0.85), predictor.segment_panoptic(picture, 0.85))
        assert_same(ask(client, "semantic", picture), predictor.segment_semantic(picture))


def test_many_clients_get_their_own_answers(
    client: grpc.InferenceServerClient, predictor: Predictor, pictures: list[np.ndarray]
) -> None:
    """Bit for bit where each runs alone; in batches, floats may round otherwise, on some processors."""
    asked = sorted(pictures * 4, key=np.shape)  # the server only batches neighbours of one size
    expected = [predictor.detect(picture) for picture in asked]
    with ThreadPoolExecutor(8) as threads:
        alone = [*threads.map(lambda picture: ask(client, "single", picture), asked)]
        batched = [*threads.map(lambda picture: ask(client, "detection", picture), asked)]
    for found, result in zip(alone, expected, strict=True):
        assert_same(found, result)
    for found, result in zip(batched, expected, strict=True):
        np.testing.assert_array_equal(found["labels"], result.labels)
        np.testing.assert_allclose(found["scores"], result.scores, atol=1e-4)
        np.testing.assert_allclose(found["boxes"], result.boxes, atol=1e-2)
    (counts,) = client.get_inference_statistics("detection").model_stats
    assert counts.execution_count < counts.inference_count  # some shared a run


def test_an_error_is_that_of_its_request(
    client: grpc.InferenceServerClient, predictor: Predictor, pictures: list[np.ndarray]
) -> None:
    good = png(pictures[0])
    large = png(np.zeros((600, 501, 3), np.uint8))
    bad = [b"", b"no picture", good[: len(good) // 2]]

    def try_to(content: bytes) -> Any:
        try:
            return ask(client, "encoded", content)
        except grpc.InferenceServerException as error:
            return error.message()

    with ThreadPoolExecutor(8) as threads:
        answers = [*threads.map(try_to, [good, *bad, large, good, *bad, good])]
    expected = predictor.detect(pictures[0])
    for number in (0, 5, 9):
        assert_same(answers[number], expected)
    messages = [_message(predictor, content) for content in bad]
    assert answers[1:4] == messages
    assert answers[6:9] == messages
    assert f"expected at most {PIXELS_LIMIT}" in answers[4], answers[4]


def _message(predictor: Predictor, content: bytes) -> str:
    with pytest.raises(DetrError) as reason:
        predictor.detect(content)
    return str(reason.value)


def test_requests_that_do_not_fit(client: grpc.InferenceServerClient, pictures: list[np.ndarray]) -> None:
    with pytest.raises(grpc.InferenceServerException, match=r"threshold is 2\.0; expected a number from 0 to 1"):
        ask(client, "detection", pictures[0], 2.0)
    two = np.stack([pictures[0]] * 2)
    inputs = [grpc.InferInput("image", two.shape, "UINT8").set_data_from_numpy(two)]
    with pytest.raises(grpc.InferenceServerException, match="the request has 2 pictures; expected one"):
        client.infer("detection", inputs)
    with pytest.raises(grpc.InferenceServerException, match="batch"):
        client.infer("single", inputs)
    with pytest.raises(grpc.InferenceServerException, match="shape"):
        ask(client, "detection", pictures[0][..., :1])


def test_the_configurations_are_what_the_server_runs(client: grpc.InferenceServerClient, repository: Path) -> None:
    for name in ("detection", "single", "encoded", "panoptic", "semantic"):
        written = read_config(repository / name / CONFIG)[1]
        running = client.get_model_config(name).config
        for field in ("name", "backend", "max_batch_size"):
            assert getattr(running, field) == getattr(written, field)
        for field in ("input", "output"):
            texts = [[*map(text_format.MessageToString, getattr(found, field))] for found in (running, written)]
            assert texts[0] == texts[1]
        for key, value in written.parameters.items():
            assert running.parameters[key].string_value == value.string_value


def test_an_end_to_end_file_gets_as_far_as_its_backend(client: grpc.InferenceServerClient, repository: Path) -> None:
    """The server reads the configuration, finds it good, and lacks the backend. A bad one is refused before that."""
    with pytest.raises(grpc.InferenceServerException, match=NO_BACKEND):
        client.load_model("whole")
    good = (repository / "whole" / CONFIG).read_text()
    bad = {"max_batch_size: 8": "max_batch_size: -8", "TYPE_INT64": "TYPE_WRONG", "dims: 16": "dims: 0"}
    for text, wrong in bad.items():
        assert text in good
        shutil.copytree(repository / "whole", repository / "wrong")
        try:
            (repository / "wrong" / CONFIG).write_text(good.replace(text, wrong).replace('"whole"', '"wrong"'))
            with pytest.raises(grpc.InferenceServerException) as error:
                client.load_model("wrong")
            assert NO_BACKEND not in error.value.message(), wrong
        finally:
            shutil.rmtree(repository / "wrong")


def test_a_second_version_takes_over(
    client: grpc.InferenceServerClient, repository: Path, pictures: list[np.ndarray]
) -> None:
    before = ask(client, "single", pictures[0])
    write_repository(MADE / "demo.onnx", repository, TritonOptions(name="single", version=2))
    client.load_model("single")
    states = {item.version: item.state for item in client.get_model_repository_index().models if item.name == "single"}
    assert states["2"] == "READY"
    assert states["1"] != "READY"
    after = ask(client, "single", pictures[0])
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_the_example_prints_what_the_predictor_finds(address: str, predictor: Predictor) -> None:
    picture = sorted((MADE / "drawn" / "val").glob("*.*"))[0]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "triton_client.py", address, "detection", picture, "0.7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = predictor.detect(picture, 0.7)
    assert len(found) > 0
    assert done.stdout.splitlines() == [
        " ".join([item.name, f"{item.score:.6f}", *(f"{side:.6g}" for side in item.box)]) for item in found
    ]
