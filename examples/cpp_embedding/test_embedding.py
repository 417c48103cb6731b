"""Compiles the program and runs it on a tiny model. `make embedding-test` runs this file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.runtimes.metadata import METADATA_KEY, Metadata

HERE = Path(__file__).parent
SIDE = 600  # of the matrices that make the model slow
FRAMES = 4  # that the program looks at

# Python imports this first. It tells where the processor finds pixels, and how far a second Python thread comes meanwhile.
SPY = """
import ctypes, sys, threading, time
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.processing.image_processor import DetrImageProcessor

ticks = 0

def clock():
    global ticks
    while True:
        time.sleep(0.001)
        ticks += 1

def tell(*words):
    print(*words, file=sys.stderr, flush=True)

def preprocess(self, images, original=DetrImageProcessor.preprocess, **options):
    blue_first = images[0][..., ::-1]  # the processor gets an RGB view of the BGR frame
    tell("pixels at", blue_first.__array_interface__["data"][0])
    return original(self, images, **options)

def run(self, inputs, original=OrtSession._run):
    before = ticks
    outputs = original(self, inputs)
    tell(ticks - before, "Python ticks while the model ran")
    before = ticks
    ctypes.PyDLL(None).usleep(200_000)  # PyDLL keeps the GIL
    tell(ticks - before, "Python ticks under the GIL")
    return outputs

DetrImageProcessor.preprocess, OrtSession._run = preprocess, run
threading.Thread(target=clock, daemon=True).start()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled with all warnings as errors."""
    build = tmp_path_factory.mktemp("build")
    for command in (
        ["cmake", "-S", str(HERE), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "detect_embedded"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the inputs and outputs of a DETR. It finds one object, "red" or "blue", from the image's mean, slowly."""

    def constant(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, dtype), name)

    weights = [
        constant("to_logits", [[2, 0, 0, 0, 0, 0], [0] * 6, [0, 2, 0, 0, 0, 0]]),  # red and blue of the first query
        constant("logit_bias", [0, 0, 0, 0, 0, 9]),  # the second query finds nothing
        constant("to_boxes", np.zeros((3, 8))),
        constant("box_bias", [0.5, 0.5, 1, 0.5, 0.5, 0.5, 1, 1]),
        constant("logits_shape", [-1, 2, 3], np.int64),
        constant("boxes_shape", [-1, 2, 4], np.int64),
        constant("zero", 0),
        constant("square", [SIDE, SIDE], np.int64),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values"], ["means"], axes=[2, 3], keepdims=0),
        # Slow: zeros that depend on the image, times themselves
        helper.make_node("ReduceMean", ["pixel_values"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Expand", ["nothing", "square"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(20)),
        helper.make_node("ReduceMean", ["m20"], ["still_nothing"], keepdims=0),
        # The answer
        helper.make_node("Add", ["means", "still_nothing"], ["colours"]),
        helper.make_node("Gemm", ["colours", "to_logits", "logit_bias"], ["flat_logits"]),
        helper.make_node("Gemm", ["colours", "to_boxes", "box_bias"], ["flat_boxes"]),
        helper.make_node("Reshape", ["flat_logits", "logits_shape"], ["logits"]),
        helper.make_node("Reshape", ["flat_boxes", "boxes_shape"], ["pred_boxes"]),
    ]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, size])
        for name, size in (("logits", 3), ("pred_boxes", 4))
    ]
    graph = helper.make_graph(nodes, "colours", [pixels], outputs, weights)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    settings = {"image_processor_type": "DetrImageProcessor", "size": {"height": 96, "width": 120}}
    metadata = Metadata("detection", {0: "red", 1: "blue"}, settings, pixel_mask=False)
    helper.set_model_props(file, {METADATA_KEY: metadata.to_json()})
    path = tmp_path_factory.mktemp("model") / "colours.onnx"
    path.write_bytes(file.SerializeToString())
    return path


@pytest.fixture(scope="module")
def told(program: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What the program says, and what the spy inside of it says."""
    spy = tmp_path_factory.mktemp("spy")
    (spy / "sitecustomize.py").write_text(SPY)
    path = os.pathsep.join(filter(None, (str(spy), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [program, model],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def numbers(pattern: str, text: str) -> list[int]:
    return [int(number) for number in re.findall(pattern, text)]


def test_it_finds_what_the_camera_sees(told: tuple[str, str]) -> None:
    """The colours would be exchanged without `color`, and the boxes wrong with other strides."""
    found = re.findall(r"^(\w+) (\d\.\d\d) at (.*)$", told[0], re.MULTILINE)
    assert [name for name, _, _ in found] == ["red", "blue"] * (FRAMES // 2)
    assert all(float(score) > 0.9 and box == "0 120 600 360" for _, score, box in found)


def test_the_pixels_are_read_where_the_program_has_them(told: tuple[str, str]) -> None:
    frames = numbers(r"frame at (\d+)", told[0])
    assert len(frames) == FRAMES
    assert numbers(r"pixels at (\d+)", told[1]) == frames


def test_other_threads_go_on_while_the_model_runs(told: tuple[str, str]) -> None:
    meanwhile = numbers(r"(\d+) ticks meanwhile", told[0])
    free = numbers(r"(\d+) Python ticks while the model ran", told[1])
    held = numbers(r"(\d+) Python ticks under the GIL", told[1])
    assert len(meanwhile) == len(free) == len(held) == FRAMES
    assert min(meanwhile) > 10  # a thread of the program
    assert min(free) > 10  # a thread of Python
    assert min(held) <= 3  # which is what a runtime that keeps the GIL would show; a busy machine may add to single ones


def test_errors_are_one_line(program: Path, tmp_path: Path) -> None:
    done = subprocess.run([program, tmp_path / "none.onnx"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*none\.onnx.*does not exist.*\n", done.stderr)
    assert subprocess.run([program], capture_output=True, check=False).returncode == 2
