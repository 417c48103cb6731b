"""OpenVINO's session: the gate, its precision, and what it refuses. test_onnx_sessions.py has the contract."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx, verify_file
from detr_export.loading import reference_session
from detr_export.runtimes.backends.openvino.session import OpenVinoSession, shared_core
from detr_export.runtimes.backends.ort import session as ort
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import ArtifactError, BackendError, VerificationError
from detr_export.runtimes.predictor import Predictor
from detr_export.verification.cases import GRID, Case, make_inputs
from detr_export.verification.comparison import compare, require
from detr_export.verification.reference import reference_of

SMALL = tuple(case for case in GRID if case.height * case.width * len(case.valid) < 110_000)
INPUTS = make_inputs(Case(70, 90, ((70, 90), (50, 61))), 3, True, seed=4)
FORMS: dict[str, dict[str, Any]] = {
    "attentions-no-mask": {"attentions": True, "pixel_mask": False, "simplify": False},
    "uint8": {"input": "uint8", "simplify": False},
    "fp16": {"precision": "fp16"},
    "fp16-io": {"precision": "fp16", "fp16_io": True},
}


def one_node(path: Path, *node: Any, **attributes: Any) -> Path:
    """A model of one node, from `x` to `y`, with the weight `sizes`."""
    shapes = (("x", ["b", 3, "h", "w"]), ("y", None))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    sizes = numpy_helper.from_array(np.array([1, 3, 20, 30], np.int64), "sizes")
    graph = helper.make_graph([helper.make_node(*node, **attributes)], "g", [x], [y], [sizes])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my.own", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


# ---- the gate -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_detector_passes_the_gate(form: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(verify=False, **FORMS[form])
    checkpoint = load_checkpoint(tiny_checkpoint)
    file = export_onnx(checkpoint, tmp_path / "a.onnx", options).path
    reference = reference_of(reference_session(checkpoint, attentions=options.attentions, pixel_mask=options.pixel_mask))
    with OpenVinoSession(file, threads=1) as session, OrtSession(file) as other:
        assert (session.inputs, session.outputs, session.metadata) == (other.inputs, other.outputs, other.metadata)
        require(compare(session, reference, SMALL), form)


def test_a_segmenter_passes_the_gate(segmenter: Path, segmenter_one_graph: Path) -> None:
    reference = reference_of(reference_session(load_checkpoint(segmenter)))
    with OpenVinoSession(segmenter_one_graph, threads=1) as session, OrtSession(segmenter_one_graph) as other:
        assert (session.inputs, session.outputs) == (other.inputs, other.outputs)
        require(compare(session, reference, SMALL), "the file")


def test_bfloat16_would_not_pass_the_gate(segmenter: Path, segmenter_one_graph: Path) -> None:
    """Or the tests above would not see that OpenVINO takes it: that is what it does when it is left alone."""
    core = shared_core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    reference = reference_of(reference_session(load_checkpoint(segmenter)))
    with OpenVinoSession(segmenter_one_graph, threads=1) as session:
        session._model = core.compile_model(str(segmenter_one_graph), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        with pytest.raises(VerificationError):
            require(compare(session, reference, SMALL), "the file")


def test_an_end_to_end_file_passes_the_gate(
    tiny_checkpoint: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(verify=False, end_to_end=True)
    file = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "a.onnx", options).path
    with Predictor.load(str(file)) as known, Predictor.load(str(file), "openvino") as predictor:
        found, expected = predictor.detect(photo, threshold=0.0), known.detect(photo, threshold=0.0)
        assert len(found) == len(expected) > 0
        assert np.abs(found.boxes - expected.boxes).max() < 0.5  # pixels
    opened: list[OpenVinoSession] = []

    def open_openvino(path: Path, *arguments: Any, spinning: bool) -> OpenVinoSession:
        opened.append(OpenVinoSession(path, threads=1))
        return opened[-1]

    monkeypatch.setattr(ort, "OrtSession", open_openvino)
    parity = verify_file(file, tiny_checkpoint)
    require(parity, "the file")
    assert parity.end_to_end is not None
    assert len(opened) >= 4


# ---- what it computes with ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_computes_in_float32(threads: int | None, tiny_onnx: Path) -> None:
    with OpenVinoSession(tiny_onnx, threads=threads) as session:
        assert session.runtime.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
        if threads is not None:
            assert session.runtime.get_property("INFERENCE_NUM_THREADS") == threads
    assert session.runtime is None


def test_another_precision_is_an_error(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino.CompiledModel, "get_property", lambda *_: openvino.Type.bf16)
    with pytest.raises(BackendError, match="OpenVINO did not take float32 as its precision"):
        OpenVinoSession(tiny_onnx)


def test_a_request_serves_again(tiny_onnx: Path) -> None:
    with OpenVinoSession(tiny_onnx, threads=1) as session:
        session.run(INPUTS)
        first = session._idle[0]
        session.run(INPUTS)
        assert list(session._idle) == [first]
    assert not session._idle


def test_without_openvino(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "detr_export.runtimes.backends.openvino.session")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"openvino is not installed; run: pip install 'detr-export\[openvino\]'"):
        Predictor.load(str(tiny_onnx), "openvino")


# ---- files --------------------------------------------------------------------------------------------------------------


def test_an_operator_that_openvino_does_not_read(tmp_path: Path) -> None:
    file = one_node(tmp_path / "a.onnx", "Foo", ["x"], ["y"], domain="my.own")
    with pytest.raises(ArtifactError, match=r"a\.onnx cannot be loaded by OpenVINO: .*my\.own\.Foo") as caught:
        OpenVinoSession(file)
    assert "\n" not in str(caught.value)
    assert "Exception from" not in str(caught.value)


@pytest.mark.parametrize("antialias", [0, 1])
def test_an_antialiased_resize_is_refused(antialias: int, tmp_path: Path) -> None:
    node = ("Resize", ["x", "", "", "sizes"], ["y"])
    file = one_node(tmp_path / "a.onnx", *node, mode="linear", antialias=antialias)
    x = np.random.default_rng(0).random((1, 3, 50, 70), dtype=np.float32)
    if antialias:
        with pytest.raises(ArtifactError, match=r"it ignores the antialias of a Resize.*--resize matmul"):
            OpenVinoSession(file)
        return
    with OpenVinoSession(file) as session, OrtSession(file) as other:
        assert np.abs(session.run({"x": x})["y"] - other.run({"x": x})["y"]).max() < 1e-5


def test_an_output_without_a_shape(tmp_path: Path) -> None:
    with OpenVinoSession(one_node(tmp_path / "a.onnx", "Resize", ["x", "", "", "sizes"], ["y"])) as session:
        assert [str(spec) for spec in (*session.inputs, *session.outputs)] == [
            "x float32 (b, 3, h, w)",
            "y float32 (1, 3, 20, 30)",
        ]


_CLOSED_IN_ORDER = """
import faulthandler, os, signal, sys
faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda number, frame: print("handled", flush=True))
from detr_export.runtimes.backends.openvino.session import OpenVinoSession
first, second = OpenVinoSession(sys.argv[1]), OpenVinoSession(sys.argv[1])
first.close()
second.close()
del first, second
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of users")
def test_a_signal_after_sessions_were_closed_is_handled(tiny_onnx: Path) -> None:
    """OpenVINO leaves no stack for the handler when two cores are freed in the order in which they were made."""
    command = [sys.executable, "-c", _CLOSED_IN_ORDER, str(tiny_onnx)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
