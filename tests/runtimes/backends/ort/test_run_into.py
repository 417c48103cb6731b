"""Outputs that are written into the caller's arrays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import BackendError, InputError
from detr_export.verification.cases import Case, make_inputs

INPUTS = make_inputs(Case(70, 90, ((70, 90), (50, 61))), 3, True, seed=4)
X = np.array([[0, 1, 2], [3, 4, 5]], np.float32)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrtSession]:
    """A model whose outputs come about in all ways: computed, passed on, constant, as many as the data say."""
    float_, int_ = TensorProto.FLOAT, TensorProto.INT64
    outputs = [
        helper.make_tensor_value_info("sum", float_, ["n", 3]),
        helper.make_tensor_value_info("same", float_, ["n", 3]),
        helper.make_tensor_value_info("constant", float_, [2]),
        helper.make_tensor_value_info("found", int_, ["k", 2]),
    ]
    nodes = [
        helper.make_node("Add", ["x", "one"], ["sum"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["two"], ["constant"]),
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["found"]),
    ]
    weights = [numpy_helper.from_array(np.full(size, 5, np.float32), name) for size, name in ((3, "one"), (2, "two"))]
    x = helper.make_tensor_value_info("x", float_, ["n", 3])
    graph = helper.make_graph(nodes, "g", [x], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file = tmp_path_factory.mktemp("kinds") / "kinds.onnx"
    file.write_bytes(model.SerializeToString())
    with OrtSession(file, threads=1) as session:
        yield session


def empty(**changes: Any) -> dict[str, Any]:
    """Arrays that fit the outputs for X, some of them replaced, or left out with None."""
    arrays = {
        "sum": np.zeros((2, 3), np.float32),
        "same": np.zeros((2, 3), np.float32),
        "constant": np.zeros(2, np.float32),
        "found": np.zeros((5, 2), np.int64),
    }
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


@pytest.mark.parametrize("own", [(), ("sum",), ("found", "same"), ("sum", "same", "constant", "found")], ids=str)
def test_arrays_are_filled_and_handed_back(own: tuple[str, ...], kinds: OrtSession) -> None:
    expected = kinds.run({"x": X})
    outputs = {name: array for name, array in empty().items() if name in own}
    addresses = {name: array.ctypes.data for name, array in outputs.items()}
    results = kinds.run_into({"x": X}, outputs)
    assert list(results) == ["sum", "same", "constant", "found"]
    for name, wanted in expected.items():
        assert np.array_equal(results[name], wanted)
        assert results[name].dtype == wanted.dtype
        if name in own:
            assert results[name] is outputs[name]
            assert results[name].ctypes.data == addresses[name]


def test_new_arrays_belong_to_the_caller(kinds: OrtSession) -> None:
    first = kinds.run_into({"x": X}, {})
    kept = first["sum"].copy()
    kinds.run_into({"x": X * 2}, {})
    assert np.array_equal(first["sum"], kept)
    first["sum"][:] = 0


def test_a_detr_writes_what_it_returns(tiny_onnx: Path) -> None:
    with OrtSession(tiny_onnx) as session:
        expected = session.run(INPUTS)
        outputs = {name: np.full_like(value, np.nan) for name, value in expected.items()}
        for _ in range(3):
            session.run_into({name: np.asfortranarray(value) for name, value in INPUTS.items()}, outputs)
            for name, wanted in expected.items():
                assert np.array_equal(outputs[name], wanted)
                outputs[name][:] = np.nan


def read_only() -> np.ndarray:
    array = np.zeros((2, 3), np.float32)
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda: {"sums": X}, "outputs has 'sums'; expected some of sum, same, constant, found"),
        (lambda: empty(sum=[[0.0] * 3] * 2), "output sum is a list; expected a numpy array of float32"),
        (lambda: empty(sum=np.zeros((2, 3))), "output sum is <f8; expected float32"),
        (lambda: empty(sum=np.zeros((2, 3), ">f4")), "output sum is >f4; expected float32 in this machine's byte order"),
        (lambda: empty(sum=np.zeros(6, np.float32)), r"output sum has shape \(6,\); expected \(n, 3\)"),
        (lambda: empty(sum=np.zeros((2, 4), np.float32)), r"output sum has shape \(2, 4\); expected \(n, 3\)"),
        (lambda: empty(sum=np.zeros((3, 2), np.float32).T), "output sum is not C-contiguous; expected a writable array"),
        (lambda: empty(sum=np.zeros((4, 3), np.float32)[::2]), "output sum is not C-contiguous"),
        (lambda: empty(sum=read_only()), "output sum is read-only; expected a writable array"),
        (lambda: empty(sum=X), "output sum and input x share memory; expected an array for each"),
        (lambda: dict.fromkeys(("sum", "same"), X.copy()), "output same and output sum share memory"),
        # Only the run knows these
        (lambda: empty(sum=np.zeros((3, 3), np.float32)), r"output sum has shape \(3, 3\), .* the model gives \(2, 3\)"),
        (lambda: empty(same=np.zeros((1, 3), np.float32)), r"output same has shape \(1, 3\), .* the model gives \(2, 3\)"),
        (
            lambda: empty(found=np.zeros((6, 2), np.int64)),
            r"gives \(5, 2\); pass numpy.empty\(\(5, 2\), 'int64'\), or leave",
        ),
        (lambda: {"found": np.zeros((0, 2), np.int64)}, r"output found has shape \(0, 2\), .* the model gives \(5, 2\)"),
    ],
)
def test_arrays_that_do_not_fit(
    outputs: Callable[[], dict[str, Any]], message: str, kinds: OrtSession, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message):
        kinds.run_into({"x": X}, outputs())
    assert capfd.readouterr().err == ""  # ONNX Runtime prints nothing beside it


def test_an_output_without_elements(kinds: OrtSession) -> None:
    outputs = {"found": np.zeros((0, 2), np.int64)}
    results = kinds.run_into({"x": np.zeros_like(X)}, outputs)
    assert results["found"] is outputs["found"]


def test_inputs_are_checked_and_a_closed_session_says_so(tiny_onnx: Path) -> None:
    session = OrtSession(tiny_onnx)
    with pytest.raises(InputError, match="expected pixel_values, pixel_mask"):
        session.run_into({"pixel_values": INPUTS["pixel_values"]}, {})
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        session.run_into(INPUTS, {})


def test_another_failure_is_not_called_a_wrong_shape(tmp_path: Path) -> None:
    x, shape, y = (
        helper.make_tensor_value_info(name, kind, dims)
        for name, kind, dims in (("x", 1, ["n"]), ("s", 7, [1]), ("y", 1, ["m"]))
    )
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "s"], ["y"])], "g", [x, shape], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    inputs = {"x": np.zeros(3, np.float32), "s": np.array([2], np.int64)}
    with OrtSession(tmp_path / "a.onnx") as session:
        for outputs in ({}, {"y": np.zeros(2, np.float32)}):
            with pytest.raises(BackendError, match="ONNX Runtime failed: "):
                session.run_into(inputs, outputs)


def test_eight_threads_with_their_own_arrays(tiny_onnx: Path) -> None:
    batches = [make_inputs(Case(64, 48 + 8 * index, ((64, 48 + 8 * index),)), 3, True, seed=index) for index in range(8)]
    with OrtSession(tiny_onnx, threads=1) as session, ThreadPoolExecutor(8) as pool:
        expected = [session.run(inputs) for inputs in batches]
        start = threading.Barrier(8)

        def loop(index: int) -> bool:
            outputs = {name: np.empty_like(value) for name, value in expected[index].items()}
            start.wait()
            same = True
            for _ in range(5):
                session.run_into(batches[index], outputs)
                same &= all(np.array_equal(outputs[name], expected[index][name]) for name in outputs)
            return same

        assert all(pool.map(loop, range(8)))
