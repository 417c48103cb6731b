from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.device_stages import STAGES, run_ort_in_stages
from detr_export.verification import Case, make_inputs


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
