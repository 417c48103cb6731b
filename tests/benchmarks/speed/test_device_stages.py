from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from detr_export.benchmarks.speed.device_stages import STAGES, run_engine_in_stages, run_ort_in_stages
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.verification.cases import Case, make_inputs
from tests.tensorrt_double.engines import write_engine
from tests.tensorrt_double.fixtures import NEWEST, OLDEST, Install


def test_the_outputs_are_those_of_a_whole_run(tiny_onnx: Path) -> None:
    session = onnxruntime.InferenceSession(str(tiny_onnx), providers=["CPUExecutionProvider"])
    for seed, case in enumerate((Case(96, 128, ((96, 128), (64, 100))), Case(64, 96, ((64, 96),)))):
        inputs = make_inputs(case, 3, True, seed)
        outputs, stages = run_ort_in_stages(session, inputs, "cpu")
        expected = session.run(None, inputs)
        assert list(outputs) == [item.name for item in session.get_outputs()]
        for found, wanted in zip(outputs.values(), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        times = dict(zip(STAGES, stages.astuple(), strict=True))
        assert all(value > 0 for value in times.values())
        assert times["compute_ms"] >= times["enqueue_ms"]


@pytest.mark.parametrize("version", [NEWEST, OLDEST])  # the older one takes the mask as int32
def test_an_engine(version: str, install_tensorrt: Install, tiny_onnx: Path, tmp_path: Path) -> None:
    knobs = install_tensorrt(version)
    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

    engine = write_engine(tiny_onnx, tmp_path / "tiny.engine", version)
    inputs = make_inputs(Case(96, 128, ((96, 128), (64, 100))), 3, True, 0)
    with OrtSession(tiny_onnx, threads=1) as reference:
        expected = reference.run(inputs)
    with TensorRTSession(engine) as session:
        for _ in range(3):  # memory is used again from the second on
            outputs, stages = run_engine_in_stages(session, inputs)
            assert outputs.keys() == expected.keys()
            for name, array in outputs.items():
                np.testing.assert_allclose(array, expected[name], atol=1e-5)
            assert stages.compute_ms >= stages.enqueue_ms > 0
    assert not knobs.device.blocks  # everything was given back
